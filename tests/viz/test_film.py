"""Films: frames in order, a still for print, a layout that does not jump, and errors that say at which frame."""

import base64
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import viz


def shade(axes, level):
    """A frame whose axes are filled with a grey level."""
    axes.set_facecolor(str(level))
    axes.set(xticks=[], yticks=[])


def middle(image):
    """Grey level in the middle of an image, 0 to 1."""
    pixels = np.asarray(image.convert("L"), dtype=float) / 255
    return pixels[tuple(n // 2 for n in pixels.shape)]


def test_frames_come_in_order_at_the_rate_asked_for_and_run_again(tmp_path):
    levels = [0.1, 0.8, 0.4, 0.6]
    film = viz.save_film(shade, iter(levels), tmp_path / "grey.webp", fps=8, figsize=(2, 1), dpi=50)
    assert film.path == tmp_path / "grey.webp"
    with Image.open(film.path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (4, (100, 50), 0)
        seen = []
        for i in range(4):
            image.seek(i)
            image.load()
            seen.append((middle(image), image.info["duration"]))
    np.testing.assert_allclose([level for level, _ in seen], levels, atol=0.03)
    assert {duration for _, duration in seen} == {125}


def test_the_still_is_the_frame_asked_for_at_the_resolution_of_print(tmp_path):
    film = viz.save_film(shade, [0.2, 0.7, 0.4], tmp_path / "grey.webp", still=1, figsize=(2, 1), dpi=50)
    with Image.open(film.still) as image:
        assert (film.still.name, image.size) == ("grey.png", (600, 300))
        assert middle(image) == pytest.approx(0.7, abs=0.01)


def test_a_page_holds_film_and_still_and_says_what_they_show(tmp_path):
    film = viz.save_film(shade, [0.2, 0.7], tmp_path / "grey.webp", text='a "film"', figsize=(2, 1), dpi=50)
    page = film._repr_html_()
    still, moving = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert base64.b64decode(moving) == film.path.read_bytes()
    assert "prefers-reduced-motion" in page[: page.index(still)]
    assert 'alt="a &quot;film&quot;"' in page
    assert "http" not in page


def test_axes_stay_where_they_are_in_the_still(tmp_path):
    places = []

    def draw(axes, high):
        axes["left"].set_ylim(0, high)  # wider labels would push the axes to the right
        places.append(axes["left"])

    viz.save_film(draw, [1, 1e5], tmp_path / "x.webp", still=0, figsize=(3, 1), mosaic=[["left", "right"]])
    first, second = (ax.get_position().bounds for ax in places[1:])
    assert first == second


def test_plots_of_datasets_make_a_film(tmp_path, plane, path):
    def draw(axes, factor):
        viz.plot_plane_slice(plane.assign(loss=factor * plane.loss), axes, levels=np.linspace(0.2, 3, 10))
        viz.plot_path(path, axes)

    assert viz.save_film(draw, [1, 1.5, 2], tmp_path / "x.webp").n_frames == 3


def test_bad_films_are_refused_in_a_line(tmp_path):
    for frames, name, options, error, says in (
        ([], "x.webp", {}, ValueError, "at least one frame"),
        ([1], "x.gif", {}, ValueError, r"must end with \.webp or \.mp4, got 'x\.gif'"),
        ([1], "no/x.webp", {}, FileNotFoundError, "no does not exist"),
        ([1], "x.webp", {"still": 1}, ValueError, "one of the 1 frames"),
        ([1], "x.webp", {"fps": 0}, ValueError, "fps must be above 0"),
        ([1], "x.webp", {"quality": 101}, ValueError, "quality from 0 to 100"),
    ):
        with pytest.raises(error, match=says):
            viz.save_film(shade, frames, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
def test_a_video_holds_the_frames_and_a_page_can_stop_it(tmp_path):
    levels = [0.1, 0.8, 0.4]
    film = viz.save_film(shade, levels, tmp_path / "grey.mp4", fps=5, figsize=(1.01, 1), dpi=101, quality=80)
    command = ["ffmpeg", "-loglevel", "error", "-i", str(film.path), "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    frames = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    frames = frames.reshape(3, 102, 102) / 255  # of an odd size before
    np.testing.assert_allclose(frames[:, 50, 50], levels, atol=0.04)
    page = film._repr_html_()
    assert page.startswith("<video")
    assert " controls " in page
    assert base64.b64encode(film.path.read_bytes()).decode() in page


def test_without_ffmpeg_a_video_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"install it, or write \.webp"):
        viz.save_film(lambda axes, x: pytest.fail("drawn"), [1], tmp_path / "x.mp4")


def test_what_ffmpeg_says_is_in_the_error(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'Unknown encoder libx264' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match=r"could not write x\.mp4: Unknown encoder libx264; write \.webp"):
        viz.save_film(shade, [0.1, 0.2], tmp_path / "x.mp4", figsize=(1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_a_frame_that_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="drawing frame 1 of 2 failed: ZeroDivisionError"):
        viz.save_film(lambda axes, x: shade(axes, 1 / x), [2, 0], tmp_path / "x.webp")

    def draw(axes, i):
        if i:
            axes.inset_axes([0, 0, 0.1, 0.1])
            axes.figure.add_axes([0, 0, 0.1, 0.1])

    with pytest.raises(RuntimeError, match="frame 1 has 2 axes, the still 1"):
        viz.save_film(draw, [0, 1], tmp_path / "x.webp", still=0)
    assert not list(tmp_path.iterdir())
