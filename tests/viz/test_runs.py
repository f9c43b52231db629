"""Runs side by side: each column draws its own run, in units of its own threshold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import viz


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def run(rate, n_steps=80):
    step = np.arange(n_steps)
    history = xr.Dataset(
        {"class_weight": (("step", "class"), np.ones((n_steps, 2))), "loss": ("step", rate + step)}, {"step": step}
    )
    live = xr.Dataset({"change": ("step", np.ones(n_steps)), "orbit_period": ("step", np.full(n_steps, 2.0))})
    eigs = xr.Dataset(
        {"eigenvalue": (("step", "mode"), [[1.0, 0.5], [3.0, 0.5]]), "threshold": ("step", [2 / rate, 2 / rate])},
        {"step": [0, 40], "mode": [0, 1]},
    )
    onsets = xr.Dataset({"onset_step": ("onset", [30])})
    return {"history": history, "live": live.assign_coords(step=step), "eigenvalues": eigs, "onsets": onsets}


def test_each_column_is_its_run_and_sharpness_is_in_units_of_the_threshold():
    axes = viz.plot_runs({"slow": run(0.5), "fast": run(2.0)})
    assert axes.shape == (4, 2)
    assert [ax.get_title() for ax in axes[0]] == ["slow", "fast"]
    for column, rate in zip(axes.T, (0.5, 2.0), strict=True):
        np.testing.assert_array_equal(column[1].lines[0].get_ydata(), rate + np.arange(80))
        dots = next(line for line in column[3].lines if line.get_label() == r"$\lambda_{1}$")
        np.testing.assert_allclose(dots.get_ydata(), np.array([1.0, 3.0]) * rate / 2)
    labels = {text.get_text() for text in axes[0, 0].figure.legends[0].get_texts()}
    assert labels == {"class 0", "class 1", "onset", "period 2", "stability threshold"}


def test_rows_share_their_vertical_axes():
    axes = viz.plot_runs({"slow": run(0.5), "fast": run(2.0)})
    assert all(row[0].get_ylim() == row[1].get_ylim() for row in axes)


def test_a_run_that_lacks_something_is_named():
    incomplete = {name: dataset for name, dataset in run(1.0).items() if name != "live"}
    with pytest.raises(ValueError, match="run 'b' lacks live"):
        viz.plot_runs({"a": run(1.0), "b": incomplete})
    with pytest.raises(ValueError, match="at least one run"):
        viz.plot_runs({})
    assert not plt.get_fignums()
