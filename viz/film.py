"""Short films for pages and talks: frames drawn by matplotlib, written as one small file."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from tqdm import tqdm

from viz.film_files import WRITERS, check_encoder
from viz.style import style

STILL_DPI = 300


@dataclass(frozen=True)
class Film:
    """A film that was written; a notebook shows it.

    Attributes
    ----------
    path : Path
        The animated WebP, or the MP4.
    still : Path
        One of its frames as a picture for print.
    n_frames : int
        Number of frames.
    text : str
        What it shows, for those who cannot see it.
    """

    path: Path
    still: Path
    n_frames: int
    text: str

    def _repr_html_(self) -> str:
        still = io.BytesIO()
        with Image.open(self.still) as picture:
            picture.convert("RGB").save(still, "webp", quality=60)
        film, still = (base64.b64encode(data).decode() for data in (self.path.read_bytes(), still.getvalue()))
        text = html.escape(self.text, quote=True)
        if self.path.suffix.lower() == ".mp4":
            return (
                f'<video class="film" controls loop muted playsinline aria-label="{text}" style="max-width: 100%" '
                f'poster="data:image/webp;base64,{still}" src="data:video/mp4;base64,{film}"></video>'
            )
        # Whoever asked the system for less motion gets the still.
        return (
            '<picture class="film"><source media="(prefers-reduced-motion: reduce), print" '
            f'srcset="data:image/webp;base64,{still}">'
            f'<img src="data:image/webp;base64,{film}" alt="{text}" style="max-width: 100%; height: auto"></picture>'
        )


def save_film(
    draw: Callable,
    frames: Iterable,
    path: str | os.PathLike,
    *,
    still: int = -1,
    text: str = "",
    fps: float = 10,
    figsize: tuple[float, float] = (7.0, 2.5),
    dpi: float = 110,
    quality: int = 50,
    **subplots,
) -> Film:
    """Draw a frame after the other and write them as a film, with one of them as a PNG beside it.

    The layout is that of the still in all frames, so that nothing jumps; give the axes common limits in `draw`.

    Parameters
    ----------
    draw : callable
        ``draw(axes, frame)`` draws one of `frames` on empty axes, such as by the plots of this package.
    frames : iterable
        What `draw` is called with: steps, Datasets, or anything else.
    path : path-like
        Where to write: ".webp" is an animated picture for pages; ".mp4" is a video in H.264 for talks, for which the
        program ffmpeg must be installed. The still lies beside it and ends with ".png". Older files are replaced.
    still : int
        Which frame to write as a picture, counted as in a list.
    text : str
        What the film shows, for those who cannot see it.
    fps : float
        Frames a second.
    figsize : (float, float)
        Width and height in inches.
    dpi : float
        Pixels an inch of the film; the still has 300.
    quality : int
        Of the lossy compression, 0 to 100.
    **subplots
        For `Figure.subplots`; or ``mosaic=…`` and what `Figure.subplot_mosaic` takes.

    Returns
    -------
    Film
        Shown by a notebook; it has the paths.

    Raises
    ------
    ValueError
        If there are no frames, a number is out of range, or the ending of `path` is another.
    FileNotFoundError
        If the folder of `path` does not exist.
    RuntimeError
        If what writes the film is not installed, or `draw` fails; the error says at which frame.
    """
    path, frames = Path(path).resolve(), list(frames)
    _check(path, frames, still, fps, quality)
    with style():
        figure = plt.figure(figsize=figsize, dpi=dpi, layout="constrained")
        try:
            _draw(figure, draw, frames, still % len(frames), subplots)
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=STILL_DPI)
            figure.draw_without_rendering()  # at the film's own resolution
            places = [ax.get_position() for ax in figure.axes]
            figure.set_layout_engine("none")
            images = []
            for i in tqdm(range(len(frames)), desc="film", unit="frame", delay=1, disable=None):
                _draw(figure, draw, frames, i, subplots)
                if len(figure.axes) != len(places):
                    raise RuntimeError(f"frame {i} has {len(figure.axes)} axes, the still {len(places)}: draw as many")
                for ax, place in zip(figure.axes, places, strict=True):
                    ax.set_position(place)
                figure.canvas.draw()
                images.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()))
        finally:
            plt.close(figure)
    WRITERS[path.suffix.lower()](images, path, fps, quality)
    path.with_suffix(".png").write_bytes(picture.getvalue())
    return Film(path, path.with_suffix(".png"), len(frames), text)


def _check(path: Path, frames: list, still: int, fps: float, quality: int) -> None:
    check_encoder(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first")
    if not frames:
        raise ValueError("frames must hold at least one frame")
    if not -len(frames) <= still < len(frames):
        raise ValueError(f"still must be one of the {len(frames)} frames, counted from 0, got {still}")
    if not (0 < fps <= 100 and 0 <= quality <= 100):
        raise ValueError(f"fps must be above 0 and at most 100, quality from 0 to 100, got {fps} and {quality}")


def _draw(figure, draw: Callable, frames: list, i: int, subplots: dict) -> None:
    """Frame `i` on new axes in the emptied figure."""
    figure.clear()
    mosaic = subplots.get("mosaic")
    options = {name: value for name, value in subplots.items() if name != "mosaic"}
    axes = figure.subplots(**options) if mosaic is None else figure.subplot_mosaic(mosaic, **options)
    try:
        draw(axes, frames[i])
    except Exception as error:
        raise RuntimeError(f"drawing frame {i} of {len(frames)} failed: {type(error).__name__}: {error}") from error
