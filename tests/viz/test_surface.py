"""Surfaces: drawn heights are the losses of the Dataset, for print and on a page, and states stand on them."""

import sys

import matplotlib.text
import numpy as np
import pytest
import xarray as xr

import viz
from viz.surface import height_ticks, on_surface


@pytest.fixture
def planes(plane):
    """Three phases of an uneven plane, so that a wrong order of axes is seen."""
    phase = xr.DataArray([1.0, 2.0, 4.0], dims="phase", coords={"phase": [0.0, 0.25, 0.5]})
    loss = (plane.loss * phase + 0.1 * plane.alpha).drop_vars("step")
    return xr.Dataset({"loss": loss.transpose("phase", "alpha", "beta")})


def corners(ax):
    """Distinct corners of the drawn facets."""
    faces = np.asarray(ax.collections[0]._faces).reshape(-1, 3)
    return np.unique(faces.round(9), axis=0)


def expected(plane, height):
    alpha, beta = xr.broadcast(plane.alpha, plane.beta)
    cells = np.stack([alpha.values.ravel(), beta.values.ravel(), np.asarray(height).ravel()], axis=1)
    return np.unique(cells.round(9), axis=0)


def test_the_printed_surface_holds_every_loss(plane, keep):
    tilted = plane.assign(loss=plane.loss + 0.1 * plane.alpha)
    np.testing.assert_allclose(corners(keep(viz.plot_surface(tilted))), expected(tilted, tilted.loss))
    turned = tilted.transpose("beta", "alpha")
    np.testing.assert_allclose(corners(keep(viz.plot_surface(turned))), expected(tilted, tilted.loss))
    capped = keep(viz.plot_surface(tilted, cap=0.7))
    np.testing.assert_allclose(corners(capped), expected(tilted, np.minimum(tilted.loss, 0.7)))
    assert capped.get_zlim() == pytest.approx((float(tilted.loss.min()), 0.7))
    logarithmic = keep(viz.plot_surface(tilted, scale="log"))
    np.testing.assert_allclose(corners(logarithmic), expected(tilted, np.log10(tilted.loss)))


def test_states_stand_on_the_surface_and_those_outside_are_left_out(plane, path, keep):
    path = path.assign(alpha=path.alpha.copy(data=[0.3, -0.3, 1.2, -0.3, 0.3]))
    ax = keep(viz.plot_surface(plane, path=path))
    x, _, z = (np.asarray(part) for part in ax.lines[0].get_data_3d())
    np.testing.assert_array_equal(x, path.alpha)
    lift = z - plane.loss.drop_vars("step").interp(alpha=path.alpha, beta=path.beta).values
    assert np.flatnonzero(np.isnan(z)).tolist() == [2]
    np.testing.assert_allclose(lift[~np.isnan(lift)], 0.012 * np.ptp(plane.loss.values))


def test_the_surface_between_grid_points_is_bilinear():
    alpha, beta = np.array([0.0, 1.0, 3.0]), np.array([-1.0, 1.0])
    height = 2 + alpha[:, None] - 3 * beta + alpha[:, None] * beta
    x, y = np.array([0.5, 2.5, 3.0, 3.1, np.nan]), np.array([0.2, -0.9, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(on_surface(x, y, alpha, beta, height)[:3], (2 + x - 3 * y + x * y)[:3])
    assert np.isnan(on_surface(x, y, alpha, beta, height)[3:]).all()


def test_ticks_say_the_loss_and_that_the_cap_stands_for_more():
    ticks, texts = height_ticks(-1, 1, "log")
    np.testing.assert_allclose(10 ** np.array(ticks), [float(text) for text in texts])
    assert texts == ["0.1", "1", "10"]
    ticks, texts = height_ticks(0, 0.95, "linear", cap=0.95)
    assert (ticks[-1], texts[-1]) == (0.95, "≥ 0.95")
    assert [float(text) for text in texts[:-1]] == pytest.approx(ticks[:-1])


def test_a_printed_surface_is_legible_and_takes_three_dimensional_axes_only(plane, path, keep, new_axes):
    ax = keep(viz.plot_surface(plane, path=path))
    texts = [t for t in ax.figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text()]
    assert min(t.get_fontsize() for t in texts) >= 7
    assert ax.get_title() == "step 9,050"
    own = new_axes(subplot_kw={"projection": "3d"})
    assert viz.plot_surface(plane, own, limits=(0, 2)) is own
    assert own.get_zlim() == (0, 2)
    with pytest.raises(ValueError, match='projection="3d"'):
        viz.plot_surface(plane, new_axes())


def test_bad_surfaces_are_refused(plane):
    for options, allowed in (({"scale": "sqrt"}, "linear"), ({"cap": 0.1}, r"above the smallest loss, 0\.3, got 0\.1")):
        with pytest.raises(ValueError, match=allowed):
            viz.plot_surface(plane, **options)
    with pytest.raises(ValueError, match="positive loss"):
        viz.plot_surface(plane - 1, scale="log")
    with pytest.raises(ValueError, match="no loss on this plane is finite"):
        viz.plot_surface(plane * np.nan)
    with pytest.raises(ValueError, match="'loss' is missing"):
        viz.plot_surface(plane.drop_vars("loss"))


def test_every_frame_on_a_page_holds_the_losses_of_its_phase(planes, path):
    pytest.importorskip("plotly")
    figure = viz.interactive_surface(planes.transpose("beta", "phase", "alpha"), path)
    surface, states = figure.data
    np.testing.assert_allclose(surface.x, planes.alpha)
    np.testing.assert_allclose(surface.y, planes.beta)
    assert len(figure.frames) == 3
    low, high = float(planes.loss.min()), float(planes.loss.max())
    for frame, loss in zip(figure.frames, planes.loss, strict=True):
        np.testing.assert_allclose(frame.data[0].z, loss.transpose("beta", "alpha"), rtol=1e-6)
        below = loss.interp(alpha=path.alpha, beta=path.beta).values
        np.testing.assert_allclose(frame.data[1].z, below + 0.012 * (high - low), rtol=1e-5)
    np.testing.assert_allclose(states.x, path.alpha, rtol=1e-6)
    assert (surface.cmin, surface.cmax) == figure.layout.scene.zaxis.range == pytest.approx((low, high))
    assert [step.label for step in figure.layout.sliders[0].steps] == ["0", "0.25", "0.5"]
    assert [step.args[0] for step in figure.layout.sliders[0].steps] == [(frame.name,) for frame in figure.frames]
    assert figure.layout.sliders[0].currentvalue.prefix == "Phase "


def test_a_page_names_axes_and_units_and_numbers_are_single_precision(planes):
    pytest.importorskip("plotly")
    named = planes.assign_coords(alpha=planes.alpha.assign_attrs(long_name="Distance along v1"))
    figure = viz.interactive_surface(named, scale="log")
    assert figure.layout.scene.xaxis.title.text == "Distance along v<sub>1</sub> (in θ)"
    assert figure.data[0].z.dtype == np.float32
    assert "cdn" not in figure.to_html(include_plotlyjs=False)
    np.testing.assert_allclose(figure.frames[2].data[0].z, np.log10(planes.loss[2]).T, rtol=1e-6)


def test_one_plane_has_no_slider_and_a_tail_follows_the_steps(plane, path):
    pytest.importorskip("plotly")
    assert not viz.interactive_surface(plane).frames
    steps = xr.concat([plane.assign_coords(step=step) for step in (9048, 9050, 9052)], "step")
    figure = viz.interactive_surface(steps, path, tail=2)
    assert [frame.data[1].text for frame in figure.frames] == [
        ("step 9,048",),
        ("step 9,049", "step 9,050"),
        ("step 9,051", "step 9,052"),
    ]
    with pytest.raises(ValueError, match="needs a path and a dim step"):
        viz.interactive_surface(plane, path, tail=2)
    with pytest.raises(ValueError, match="one for the slider"):
        viz.interactive_surface(steps.expand_dims("seed"))


def test_without_plotly_the_error_says_how_to_get_it(plane, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ModuleNotFoundError, match="pip install plotly"):
        viz.interactive_surface(plane)
