"""Figures as files for a manuscript: vector graphics whose text stays text, and pixels at the resolution of print."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from viz.style import RC, SMALLEST_TEXT

# Without dates: the same figure gives the same file.
METADATA = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "eps": {}, "png": {}, "tiff": {}}
EMBEDDED = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "viz"}


def save_figure(
    figure: Figure | Axes | Iterable[Axes],
    path: str | os.PathLike,
    *,
    formats: Sequence[str] = ("pdf",),
    dpi: float = 300,
) -> list[Path]:
    """Write a figure at its own size, with TrueType fonts that PDF and EPS embed, and return the files.

    Nothing is cropped, so that the width on the page is the one asked for and text keeps its size. SVG holds its text
    as text, and looks right where the font is installed.

    Parameters
    ----------
    figure : Figure or Axes or iterable of Axes
        A figure, or what a plot returns.
    path : path-like
        Where to write. An ending that is one of the formats wins over `formats`; otherwise each format is added to it.
    formats : sequence of {"pdf", "svg", "eps", "png", "tiff"}
        Which files to write.
    dpi : float
        Pixels an inch, also of those parts of vector graphics that are pixels: long lines and surfaces.

    Returns
    -------
    list of Path
        The files, in the order of the formats. Older ones are replaced.

    Warns
    -----
    UserWarning
        If a text is smaller than 7 points.

    Raises
    ------
    ValueError
        If a format is unknown.
    FileNotFoundError
        If the folder does not exist.
    """
    figure = _figure(figure)
    path = Path(path)
    ending = path.suffix[1:].lower()
    named = ending in METADATA
    formats = (ending,) if named else tuple(formats)
    unknown = [form for form in formats if form not in METADATA]
    if unknown or not formats:
        raise ValueError(f"formats must be among {', '.join(METADATA)}, got {', '.join(unknown) or 'none'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first")
    files = [path if named else path.with_name(f"{path.name}.{form}") for form in formats]
    with mpl.rc_context({name: value for name, value in RC.items() if name.startswith("agg.")} | EMBEDDED):
        figure.draw_without_rendering()  # the first drawing settles a constrained layout
        for form, file in zip(formats, files, strict=True):
            figure.savefig(file, format=form, dpi=dpi, bbox_inches=None, metadata=METADATA[form] or None)
    _warn_of_small_text(figure)
    return files


def _figure(figure) -> Figure:
    first = figure if isinstance(figure, Figure | Axes) else np.ravel(list(figure))[0]
    return first if isinstance(first, Figure) else first.get_figure(root=True)


def _warn_of_small_text(figure: Figure) -> None:
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    small = min(texts, key=Text.get_fontsize, default=None)
    if small is not None and small.get_fontsize() < SMALLEST_TEXT:
        size, words = small.get_fontsize(), small.get_text()
        warnings.warn(
            f"the text {words!r} has {size:g} points, journals ask for {SMALLEST_TEXT} or more: "
            "make the figure in `with viz.style():`",
            stacklevel=3,
        )
