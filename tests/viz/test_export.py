"""Files for others: figures of the size asked for whose text stays text, and surfaces that VTK's readers understand."""

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import viz


@pytest.fixture
def figure(figures, history):
    with viz.style(width="double", height=50):
        figure, axes = plt.subplots(1, 2)
        viz.plot_history(history, axes[0], variable="loss")
        viz.panel_letters(axes)
    figures.append(figure)
    return figure


def test_sizes_are_those_of_the_column_in_mm(figures):
    for options, size in (
        ({}, (86.36, 58.42)),
        ({"width": "single", "height": 70}, (86.36, 70)),
        ({"width": "double", "height": 60.5}, (177.8, 60.5)),
        ({"width": 89}, (89, 58.42)),
    ):
        with viz.style(**options):
            figures.append(plt.figure())
        np.testing.assert_allclose(figures[-1].get_size_inches() * 25.4, size)


def test_text_grows_together_and_never_falls_below_seven_points(new_axes):
    for text, small in ((8, 7), (7, 7), (10, 9)):
        with viz.style(text=text):
            ax = new_axes()
            ax.legend(ax.plot([0, 1]), ["line"])
            viz.panel_letters(ax)
        assert ax.xaxis.label.get_fontsize() == ax.texts[0].get_fontsize() == text
        assert ax.get_xticklabels()[0].get_fontsize() == ax.get_legend().get_texts()[0].get_fontsize() == small


def test_sizes_out_of_range_are_refused():
    for options, says in (
        ({"text": 6}, "from 7 to 24 points"),
        ({"width": "triple"}, '"single", "double" or a number'),
        ({"width": 5}, "from 10 to 500 mm"),
        ({"height": 600}, "got 86 and 600"),
    ):
        with pytest.raises(ValueError, match=says):
            viz.style(**options)


def test_files_have_the_size_of_the_figure_and_text_stays_text(figure, tmp_path):
    pdf, svg, png = viz.save_figure(figure.axes, tmp_path / "figure.3", formats=["pdf", "svg", "png"], dpi=200)
    assert (pdf.name, svg.name, png.name) == ("figure.3.pdf", "figure.3.svg", "figure.3.png")
    content = pdf.read_bytes()
    box = [float(x) for x in re.search(rb"/MediaBox \[([^\]]*)\]", content)[1].split()]
    np.testing.assert_allclose(box, [0, 0, 504, 50 / 25.4 * 72], atol=0.01)
    assert b"/FontFile2" in content  # the embedded TrueType program
    assert b"/Type3" not in content
    drawing = svg.read_text(encoding="utf-8")
    assert re.search(r"<text[^>]*>Loss</text>", drawing)
    assert 'width="504pt"' in drawing
    with Image.open(png) as image:
        np.testing.assert_allclose(image.size, (1400, 50 / 25.4 * 200), atol=1)


def test_the_same_figure_gives_the_same_file_and_an_ending_says_the_format(figure, tmp_path):
    for form in ("pdf", "svg"):
        (first,) = viz.save_figure(figure, tmp_path / f"first.{form}", formats=["png"])
        (second,) = viz.save_figure(figure, tmp_path / f"second.{form}")
        assert first.suffix == f".{form}"
        assert first.read_bytes() == second.read_bytes()
    assert mpl.rcParams["svg.fonttype"] == mpl.rcParamsDefault["svg.fonttype"]


def test_small_text_is_named_and_bad_calls_are_refused(figure, tmp_path):
    figure.text(0.5, 0.5, "tiny", fontsize=5)
    with pytest.warns(UserWarning, match="the text 'tiny' has 5 points"):
        viz.save_figure(figure, tmp_path / "x.png")
    with pytest.raises(ValueError, match="among pdf, svg, eps, png, tiff, got gif"):
        viz.save_figure(figure, tmp_path / "x", formats=["png", "gif"])
    with pytest.raises(FileNotFoundError, match="make it first"):
        viz.save_figure(figure, tmp_path / "no" / "x.pdf")


def test_a_surface_read_by_another_library_holds_points_and_fields(plane, tmp_path):
    meshio = pytest.importorskip("meshio")
    terms = xr.concat([plane.loss, 2 * plane.loss], "class").drop_vars("step")
    plane = plane.assign(loss=plane.loss + 0.1 * plane.alpha, term_loss=terms, center=("param", [1.0, 2.0]))
    (file,) = viz.save_vtk(plane.transpose("beta", ...), tmp_path / "plane.vtk")
    mesh = meshio.read(file)
    expected = plane.loss.stack(point=("beta", "alpha"))
    np.testing.assert_array_equal(mesh.points, np.stack([expected.alpha, expected.beta, expected], axis=1))
    assert {kind: len(cells) for kind, cells in mesh.cells_dict.items()} == {"quad": 6 * 4}
    assert set(mesh.point_data) == {"loss", "term_loss_0", "term_loss_1"}
    np.testing.assert_array_equal(mesh.point_data["loss"].ravel(), expected)
    second = plane.term_loss[1].stack(point=("beta", "alpha"))
    np.testing.assert_array_equal(mesh.point_data["term_loss_1"].ravel(), second)


def test_heights_may_be_logarithms_and_what_is_not_finite_is_on_top(plane, tmp_path):
    meshio = pytest.importorskip("meshio")
    plane = plane.assign(loss=plane.loss.copy())
    plane.loss[1, 2] = np.inf
    (file,) = viz.save_vtk(plane, tmp_path / "plane.vtk", scale="log", cap=1.0, stretch=3)
    mesh = meshio.read(file)
    loss = plane.loss.transpose("beta", "alpha").values.ravel()
    np.testing.assert_allclose(mesh.points[:, 2], 3 * np.log10(np.minimum(loss, 1)))
    np.testing.assert_array_equal(mesh.point_data["loss"].ravel(), loss)


def test_phases_become_numbered_files(plane, tmp_path):
    many = xr.concat([plane * i for i in range(1, 12)], xr.DataArray(np.arange(11) / 10, dims="phase", name="phase"))
    files = viz.save_vtk(many, tmp_path / "plane.vtk")
    assert [file.name for file in files[:2]] == ["plane_00.vtk", "plane_01.vtk"]
    assert len(files) == 11
    assert files[3].read_text().splitlines()[1] == "Loss on a plane, step 9050, phase 0.3"


def test_states_are_a_line_through_vertices_with_their_steps(plane, path, tmp_path):
    path = path.assign(loss=("step", [0.5, 0.6, np.nan, 0.7, 0.8]))
    _, file = viz.save_vtk(plane, tmp_path / "plane.vtk", states=path)
    assert file.name == "plane_states.vtk"
    words = file.read_text().split("\n")
    assert words[:5] == [
        "# vtk DataFile Version 3.0",
        "States of a run on a plane",
        "ASCII",
        "DATASET POLYDATA",
        "POINTS 5 double",
    ]
    points = np.array([row.split() for row in words[5:10]], dtype=float)
    np.testing.assert_array_equal(points, np.stack([path.alpha, path.beta, [0.5, 0.6, 0, 0.7, 0.8]], axis=1))
    assert words[10:18] == ["VERTICES 5 10", *(f"1 {i}" for i in range(5)), "LINES 1 6", "5 0 1 2 3 4"]
    assert words[18] == "POINT_DATA 5"
    at = words.index("SCALARS step double 1")
    assert [float(word) for word in words[at + 2 : at + 7]] == path.step.values.tolist()
    assert {"SCALARS off_plane double 1", "SCALARS loss double 1"} <= set(words)


def test_bad_surfaces_for_vtk_are_refused(plane, path, tmp_path):
    for call, error, says in (
        (lambda: viz.save_vtk(plane, tmp_path / "x.vts"), ValueError, r"end with \"\.vtk\""),
        (lambda: viz.save_vtk(plane, tmp_path / "no" / "x.vtk"), FileNotFoundError, "make it first"),
        (lambda: viz.save_vtk(plane.expand_dims(["a", "b"]), tmp_path / "x.vtk"), ValueError, "at most one more"),
        (lambda: viz.save_vtk(path, tmp_path / "x.vtk"), ValueError, "'loss' is missing"),
        (lambda: viz.save_vtk(plane, tmp_path / "x.vtk", states=plane), ValueError, "'alpha'"),
        (lambda: viz.save_vtk(plane.loss, tmp_path / "x.vtk"), TypeError, "Dataset"),
    ):
        with pytest.raises(error, match=says):
            call()
    assert not list(tmp_path.iterdir())
