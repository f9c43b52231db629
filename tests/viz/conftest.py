"""Hand-built Datasets in the shapes that landscape returns, and a check that no figure is left open."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr

matplotlib.use("agg")
sys.path.insert(0, str(Path(__file__).parent))  # for tests that drive a browser by chromium.py


@pytest.fixture(autouse=True)
def figures():
    """Fail a test whose plot leaves a figure that the test did not ask for; close those it asked for."""
    import matplotlib.pyplot as plt

    plt.close("all")
    asked = []
    yield asked
    left = set(plt.get_fignums()) - {figure.number for figure in asked}
    plt.close("all")
    assert not left, f"figures left open: {sorted(left)}"


@pytest.fixture
def new_axes(figures):
    """`new_axes(**kwargs)` makes one axes, closed after the test."""
    import matplotlib.pyplot as plt

    def make(*args, **kwargs):
        figure, axes = plt.subplots(*args, **kwargs)
        figures.append(figure)
        return axes

    return make


@pytest.fixture
def keep(figures):
    """`keep(axes)` says that the test asked for the figure of these axes, draws it, and returns the axes."""

    def kept(axes):
        figure = np.ravel(axes)[0].figure
        figures.append(figure)
        figure.canvas.draw()
        return axes

    return kept


@pytest.fixture
def history():
    step = np.arange(40)
    weights = np.stack([1 + step / 40, 1 - step / 80, 1 - step / 80], axis=1)
    return xr.Dataset(
        {
            "loss": ("step", np.exp(-step / 10), {"long_name": "loss"}),
            "accuracy": ("step", step / 40, {"long_name": "training accuracy"}),
            "validation_accuracy": ("step", step / 50),
            "gradient_norm": ("step", 1 / (1 + step)),
            "class_weight": (("step", "class"), weights),
        },
        coords={"step": ("step", step, {"long_name": "step", "units": "updates"}), "class": [0, 1, 2]},
    )


@pytest.fixture
def onsets():
    return xr.Dataset({"onset_step": ("onset", [12.0, 30.0]), "onset_phase": ("onset", [0.8, 0.75])})


@pytest.fixture
def eigs():
    step = np.array([0, 5, 10, 15, 20, 21, 22, 23, 24])
    value = np.linspace(1, 2.5, 9)[:, None] * [1, 0.5]
    certified = np.ones((9, 2), np.int8)
    certified[3, 1] = 0
    converged = np.ones((9, 2), bool)
    converged[6, 0] = False
    return xr.Dataset(
        {
            "eigenvalue": (("step", "mode"), value),
            "converged": (("step", "mode"), converged),
            "certified": (("step", "mode"), certified),
            "threshold": ("step", np.full(9, 2.0)),
        },
        coords={"step": step, "mode": [0, 1]},
    )


@pytest.fixture
def spectrum():
    at, step = np.linspace(-1, 4, 201), np.array([0, 1000, 2000])
    peaks = np.exp(-((at - np.array([[0], [0.1], [0.2]])) ** 2) / 0.02) + 0.1 * np.exp(-((at - 3) ** 2) / 0.02)
    density = peaks / np.sqrt(2 * np.pi * 0.01)
    return xr.Dataset(
        {"density": (("step", "eigenvalue"), density), "standard_error": (("step", "eigenvalue"), 0.2 * density)},
        coords={"step": step, "eigenvalue": ("eigenvalue", at, {"long_name": "Eigenvalue of the Hessian"})},
        attrs={"n": 20, "width": 0.1},
    )


@pytest.fixture
def grads():
    step = np.arange(0, 50, 5)
    component = np.stack([step / 50 + 0.1, -0.2 - 0 * step], axis=1)
    bulk = np.full(10, 0.3)
    inside = np.linalg.norm(component, axis=1)
    norm = np.hypot(inside, bulk)
    return xr.Dataset(
        {
            "component": (("step", "mode"), component),
            "gradient_norm": ("step", norm),
            "inside_norm": ("step", inside),
            "bulk_norm": ("step", bulk),
            "dominant_fraction": ("step", inside / norm),
        },
        coords={"step": step, "mode": [0, 1]},
    )


@pytest.fixture
def widths():
    step, mode, rise = np.arange(0, 60, 10), np.array([0, 1]), np.array([0.05, 0.1])
    width = 1 + step[:, None, None] / 60 + mode[None, :, None] + rise
    dims = ("step", "mode", "rise")
    width[2, 0, 0] = np.nan
    return xr.Dataset(
        {"width": (dims, width), "harmonic_width": (dims, 0.9 * width), "stable_width": (dims, 0 * width + 0.5)},
        coords={"step": step, "mode": mode, "rise": rise},
    )


@pytest.fixture
def change():
    step = np.arange(20)
    motion, time = -0.01 - 0.001 * step, 0.02 * np.sin(step)
    motion[[0, 12]] = time[[0, 12]] = np.nan
    parts = {"change": motion + time, "motion_part": motion, "time_part": time}
    return xr.Dataset({name: ("step", part) for name, part in parts.items()}, coords={"step": step})


@pytest.fixture
def sharp():
    step = np.arange(0, 60, 10)
    return xr.Dataset(
        {
            "largest_eigenvalue": ("step", 1 + step / 60, {"long_name": "Largest eigenvalue"}),
            "largest_eigenvalue_certified": ("step", np.array([1, 1, 0, 1, 1, 1], np.int8)),
            "sam": ("step", 0.01 * np.exp(step / 10)),
            "average": ("step", 0.01 * step - 0.1),
            "average_standard_error": ("step", np.full(6, 0.02)),
        },
        coords={"step": step},
    )


@pytest.fixture
def plane():
    alpha, beta = np.linspace(-1, 1, 7), np.linspace(-0.5, 0.5, 5)
    loss = 0.3 + alpha[:, None] ** 2 + 0.5 * beta[None] ** 2
    return xr.Dataset({"loss": (("alpha", "beta"), loss)}, coords={"alpha": alpha, "beta": beta, "step": 9050})


@pytest.fixture
def path():
    step = np.arange(9048, 9053)
    sign = (-1.0) ** step
    return xr.Dataset(
        {"alpha": ("step", 0.3 * sign), "beta": ("step", 0.01 * (step - 9050)), "off_plane": ("step", 0.1 + 0 * sign)},
        coords={"step": step},
    )


@pytest.fixture
def live():
    step = np.arange(12)
    period = np.array([np.nan, np.nan, 1, 1, 2, 2, 4, 8, np.inf, 0, 0, 1])
    change = np.r_[np.nan, (-0.1) ** np.arange(11)]
    return xr.Dataset({"change": ("step", change), "orbit_period": ("step", period)}, coords={"step": step})


@pytest.fixture
def frozen():
    control = np.array([0.5, 0.6, 0.7])
    states = np.arange(12.0).reshape(3, 4)
    return xr.Dataset(
        {
            "projection": (("control", "iterate"), states),
            "loss": (("control", "iterate"), states**2),
            "orbit_period": ("control", [1.0, 2.0, 0.0]),
            "eigenvalue": ("control", [1.5, 1.9, 2.2]),
            "threshold": ("control", [2.0, 2.0, 2.5]),
        },
        coords={
            "control": ("control", control, {"long_name": "phase"}),
            "amplitude": ("control", [10.0, 30.0, 70.0]),
            "step": 8700,
        },
    )


@pytest.fixture
def growth():
    step = np.arange(8500, 8507)
    exponent = np.stack([np.linspace(-0.2, 0.1, 7), np.linspace(-0.4, -0.1, 7)], axis=1)
    exponent[0] = np.nan
    exponent[3, 1] = -np.inf
    return xr.Dataset(
        {"exponent": (("step", "mode"), exponent, {"long_name": "Lyapunov exponent", "units": "1/step"})},
        coords={"step": step, "mode": [0, 1]},
    )


@pytest.fixture
def curved():
    return xr.Dataset(
        {
            "eigenvalue": ("onset", [1.88, 3.84]),
            "eigenvalue_sharper": ("onset", [2.2, 4.5]),
            "eigenvalue_flatter": ("onset", [1.6, 3.2]),
            "threshold": ("onset", [2.0, 4.0]),
        }
    )


@pytest.fixture
def regions():
    predicted = [[0, 0, 1], [2, -1, 1], [2, 2, 1]]
    return xr.Dataset({"predicted": (("y", "x"), predicted)}, {"y": [-1.0, 0.0, 1.0], "x": [-2.0, 0.0, 2.0]})


@pytest.fixture
def accuracies():
    return xr.Dataset(
        {"accuracy": ("width", [0.4, 0.5, 0.7]), "standard_error": ("width", [0.01, 0.02, 0.03])},
        {"width": [5, 10, 50]},
    )


@pytest.fixture
def phases():
    values = [[0.5, 0.6, np.nan], [0.7, 0.4, 0.8]]
    return xr.Dataset(
        {"accuracy": (("amplitude", "period"), values), "static_accuracy": 0.55},
        {"amplitude": [2.0, 70.0], "period": [100, 1000, 5000]},
    )


@pytest.fixture
def rated(curved):
    return curved.assign_coords(
        learning_rate=("onset", [2.0, 0.5]), threshold=("onset", [1.0, 4.0]), loss=("onset", ["one", "two"])
    )


@pytest.fixture
def line():
    alpha = np.linspace(-1, 1, 9)
    return xr.Dataset({"loss": ("alpha", 0.1 + alpha**2)}, coords={"alpha": alpha})
