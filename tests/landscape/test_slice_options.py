"""Lines, several steps, other quantities, planes of directions of every kind, and slices written to a file."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import (
    Objective,
    interpolation_directions,
    line_slice,
    load_dataset,
    pca_directions,
    plane_slice,
    project,
    random_directions,
    reweight,
    save_dataset,
    top_eigenpairs,
)


@pytest.fixture(scope="module")
def eigs(descent):
    return top_eigenpairs(descent.objective, descent.checkpoints, k=2, tol=1e-9)


@pytest.fixture(scope="module")
def center(descent):
    return descent.checkpoints.sel(step=20)


@pytest.fixture(scope="module")
def pair(eigs):
    return eigs.sel(step=20)


def at_points(plane, function):
    """`function` of the parameters at each point of a plane."""
    d, c = plane.direction.values, plane.center.values
    return np.array([[function(c + a * d[0] + b * d[1]) for b in plane.beta.values] for a in plane.alpha.values])


class Bowl(torch.nn.Module):
    """A loss ½ Σ λ_i θ_i² + q θ_0⁴, whatever the samples."""

    def __init__(self, curvature, quartic=0.0):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(len(curvature), dtype=torch.float64))
        self.curvature, self.quartic = torch.tensor(curvature, dtype=torch.float64), quartic

    def forward(self, x):
        value = 0.5 * (self.curvature * self.theta**2).sum() + self.quartic * self.theta[0] ** 4
        return value.expand(len(x))


def bowl(curvature, quartic=0.0):
    ones = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(Bowl(curvature, quartic), lambda outputs, targets, step: outputs.mean(), ones, ones)
    zero = xr.Dataset({"params": ("param", np.zeros(len(curvature)))}, {"step": 0})
    return objective, zero


def test_a_line_through_a_bowl_is_its_closed_form():
    objective, zero = bowl([3.0, 1.0, -2.0], quartic=0.5)
    line = line_slice(objective, zero, np.array([5.0, 0, 0]), half_width=2, n_points=11)
    alpha = line.alpha.values
    np.testing.assert_allclose(line.loss, 1.5 * alpha**2 + 0.5 * alpha**4, rtol=1e-14)
    assert alpha[5] == 0  # in the middle, exactly
    assert line.loss.dims == ("alpha",)
    assert line.direction.values.tolist() == [[1, 0, 0]]
    assert line.length.values.tolist() == [5]  # how long it was is not lost


def test_a_line_is_the_row_of_the_plane(descent, center, pair):
    plane = plane_slice(descent.objective, center, pair, half_width=(0.4, 0.3), n_points=(7, 5), terms=True)
    along_beta = line_slice(descent.objective, center, pair.isel(mode=1), half_width=0.3, n_points=5, terms=True)
    along_alpha = line_slice(descent.objective, center, pair.isel(mode=[0]), half_width=0.4, n_points=7)
    np.testing.assert_allclose(along_beta.loss, plane.loss.sel(alpha=0), rtol=1e-12)
    np.testing.assert_allclose(along_alpha.loss, plane.loss.sel(beta=0), rtol=1e-12)
    np.testing.assert_allclose(along_beta.term_loss, plane.term_loss.sel(alpha=0), rtol=1e-12)
    later = reweight(along_beta, descent.loss_fn.class_weights(33))
    again = line_slice(descent.objective, center, pair.isel(mode=1), half_width=0.3, n_points=5, step=33)
    np.testing.assert_allclose(later.loss, again.loss, rtol=1e-12)
    assert along_beta.alpha.attrs["long_name"] == "Distance along v2"


def test_the_curvature_of_a_line_is_the_eigenvalue_where_the_loss_is_smooth(oracle):
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    objective = Objective(net, lambda o, y, step: torch.nn.functional.cross_entropy(o, y), inputs, targets)
    params = objective.layout.flatten_model(net).numpy()
    checkpoint = xr.Dataset({"params": ("param", params)}, {"step": 0})
    top = top_eigenpairs(objective, checkpoint, k=1, tol=1e-10).isel(mode=0)
    h = 1e-3
    low, middle, high = line_slice(objective, checkpoint, top, half_width=h, n_points=3).loss.values
    assert (low - 2 * middle + high) / h**2 == pytest.approx(float(top.eigenvalue), rel=1e-5)


@pytest.mark.parametrize("has_terms", [True, False])
def test_several_steps_are_those_one_by_one(descent, center, pair, has_terms):
    objective = descent.objective
    if not has_terms:
        loss = descent.loss_fn
        objective = Objective(descent.model, lambda o, y, step: loss(o, y, step), *descent.data)
    steps = [20, 0, 65]
    many = plane_slice(objective, center, pair, n_points=(4, 3), steps=steps, quantities=["gradient_norm", "accuracy"])
    assert many.loss.dims == many.gradient_norm.dims == ("step", "alpha", "beta")
    assert many.accuracy.dims == ("alpha", "beta")
    for step in steps:
        one = plane_slice(objective, center, pair, n_points=(4, 3), step=step, quantities=["gradient_norm"])
        np.testing.assert_allclose(many.loss.sel(step=step), one.loss, rtol=1e-12)
        np.testing.assert_allclose(many.gradient_norm.sel(step=step), one.gradient_norm, rtol=1e-12)
        assert one.step.ndim == 0
    line = line_slice(objective, center, pair.isel(mode=0), n_points=3, steps=steps)
    assert line.loss.dims == ("step", "alpha")


def test_quantities_are_those_of_the_model_at_each_point(descent, center, pair, oracle):
    names = ["accuracy", "gradient_norm", "eigenvalue"]
    plane = plane_slice(descent.objective, center, pair, half_width=0.3, n_points=(3, 4), quantities=names)
    model = copy.deepcopy(descent.model)

    def accuracy(params):
        torch.nn.utils.vector_to_parameters(torch.as_tensor(params), model.parameters())
        return float((model(descent.data.inputs).argmax(1) == descent.data.targets).double().mean())

    def derivatives(params):
        return oracle(descent.model, descent.loss_fn, *descent.data, params, 20)

    np.testing.assert_allclose(plane.accuracy, at_points(plane, accuracy), rtol=1e-12)
    np.testing.assert_allclose(
        plane.gradient_norm, at_points(plane, lambda p: np.linalg.norm(derivatives(p)[1])), rtol=1e-9
    )
    largest = at_points(plane, lambda p: np.linalg.eigvalsh(derivatives(p)[2])[-1])
    np.testing.assert_allclose(plane.eigenvalue, largest, rtol=1e-3)


def test_a_loss_that_is_not_finite_stays_so():
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return (self.theta[0].sqrt() + 1 / self.theta[1]).expand(len(x))

    ones = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(Root(), lambda o, y, step: o.mean(), ones, ones)
    checkpoint = xr.Dataset({"params": ("param", np.zeros(2))}, {"step": 0})
    plane = plane_slice(objective, checkpoint, np.eye(2), n_points=3)
    assert np.isnan(plane.loss.sel(alpha=-1)).all()
    assert np.isinf(plane.loss.sel(alpha=1, beta=0))
    assert float(plane.loss.sel(alpha=1, beta=1)) == 2
    again = plane_slice(objective, checkpoint, np.eye(2), n_points=3)
    xr.testing.assert_identical(plane, again)  # nothing is drawn at random, nothing replaced


def test_the_users_model_is_left_as_it_was(descent, center, pair):
    before = copy.deepcopy(descent.model.state_dict())
    plane_slice(descent.objective, center, pair, n_points=3, quantities=["accuracy", "eigenvalue"])
    for name, tensor in descent.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_random_directions_keep_their_lengths_and_a_plane_by_lengths_is_li_and_others(descent, center):
    drawn = random_directions(center, normalisation="filter", seed=3)
    widths = tuple(drawn.length.values)
    plane = plane_slice(descent.objective, center, drawn, half_width=widths, n_points=3)
    np.testing.assert_allclose(plane.length, drawn.length)
    assert plane.attrs["orthogonalised"] == 1
    assert plane.alpha.attrs["long_name"] == "Distance along d1"
    moved = center.params.values + drawn.direction.values[0]
    assert float(plane.loss[2, 1]) == pytest.approx(float(descent.objective.loss(moved, 20)), rel=1e-12)


def test_principal_axes_put_the_plane_at_their_own_centre(descent, center):
    axes = pca_directions(descent.checkpoints)
    plane = plane_slice(descent.objective, center, axes, half_width=2, n_points=5)
    np.testing.assert_array_equal(plane.center, axes.center)
    assert float(plane.loss.sel(alpha=0, beta=0)) == pytest.approx(
        float(descent.objective.loss(axes.center.values, 20)), rel=1e-12
    )


def test_a_line_between_two_checkpoints_ends_at_their_losses(descent, center):
    ends = descent.checkpoints.isel(step=[0, 3])
    between = interpolation_directions(ends)
    half = float(between.distance[0]) / 2
    line = line_slice(descent.objective, center, between, half_width=half, n_points=5, step=7)
    expected = [float(descent.objective.loss(p, 7)) for p in ends.params.values]
    np.testing.assert_allclose(line.loss[[0, -1]], expected, rtol=1e-10)
    assert line.alpha.attrs["long_name"] == "Distance along the line 1 to 2"


def test_several_runs_on_one_plane(descent, center):
    """A planar path lies on its plane, and another run on the same plane has its own distance."""
    objective, zero = bowl([1.0, 2.0, 3.0, 4.0])
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(4, 2)))[0].T
    first = xr.Dataset({"params": (("step", "param"), rng.normal(size=(6, 2)) @ axes)}, {"step": np.arange(6)})
    joint = pca_directions(first)
    plane = plane_slice(objective, zero, joint, half_width=5, n_points=41)
    path = project(objective, first, plane)
    np.testing.assert_allclose(path.off_plane, 0, atol=1e-12)
    np.testing.assert_allclose(path.loss, 0.5 * (first.params.values**2) @ [1, 2, 3, 4], rtol=1e-12)
    other = first.copy(data={"params": first.params.values + np.array([0, 0, 0, 1])})
    off = np.linalg.norm(np.array([0, 0, 0, 1]) - axes.T @ (axes @ [0, 0, 0, 1]))
    np.testing.assert_allclose(project(objective, other, plane).off_plane, off, rtol=1e-10)


@pytest.mark.parametrize("kind", ["plane", "line", "steps"])
def test_a_slice_in_a_file_is_the_one_in_memory(descent, center, pair, tmp_path, kind):
    def compute(out=None):
        if kind == "line":
            return line_slice(descent.objective, center, pair.isel(mode=0), n_points=9, terms=True, out=out)
        options = {"terms": True, "quantities": ["accuracy", "eigenvalue"]}
        options |= {"steps": [20, 30]} if kind == "steps" else {}
        return plane_slice(descent.objective, center, pair, n_points=(5, 4), **options, out=out)

    expected, found = compute(), compute(tmp_path / "a.h5")
    loaded = load_dataset(tmp_path / "a.h5")
    for written in (found, loaded):
        assert set(written.variables) == set(expected.variables)
        assert set(written.coords) == set(expected.coords)
        for name in expected.variables:
            assert written[name].dims == expected[name].dims
            np.testing.assert_allclose(written[name], expected[name], rtol=1e-12)
        assert written.attrs == expected.attrs
    found.close()
    save_dataset(expected, tmp_path / "b.h5")
    assert not (tmp_path / "a.h5.part").exists()


class Counting:
    """An objective whose planes can be interrupted, and are counted."""

    def __init__(self, objective, fails_after=None):
        self.objective, self.n_rows, self.fails_after = objective, 0, fails_after

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def plane_losses(self, center, directions, alpha, beta, step):
        if self.fails_after is not None and self.n_rows + len(alpha) > self.fails_after:
            raise KeyboardInterrupt
        self.n_rows += len(alpha)
        return self.objective.plane_losses(center, directions, alpha, beta, step)


def test_an_interrupted_slice_goes_on_where_it_was(descent, center, pair, tmp_path):
    expected = plane_slice(descent.objective, center, pair, n_points=(40, 3))
    with pytest.raises(KeyboardInterrupt):
        plane_slice(Counting(descent.objective, 25), center, pair, n_points=(40, 3), out=tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    rest = Counting(descent.objective)
    with plane_slice(rest, center, pair, n_points=(40, 3), out=tmp_path / "a.h5") as plane:
        np.testing.assert_allclose(plane.loss, expected.loss, rtol=1e-12)
    assert rest.n_rows < 40


def test_what_another_loss_left_is_not_used(descent, center, pair, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        plane_slice(Counting(descent.objective, 25), center, pair, n_points=(40, 3), out=tmp_path / "a.h5")
    other = descent.objective.on(1.1 * descent.data.inputs, descent.data.targets)
    expected = plane_slice(other, center, pair, n_points=(40, 3))
    with pytest.warns(UserWarning, match="values of another loss"):
        found = plane_slice(other, center, pair, n_points=(40, 3), out=tmp_path / "a.h5")
    with found:
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)


def test_what_cannot_be_is_refused_in_a_line(descent, center, pair):
    cases = [
        ({"quantities": ["entropy"]}, "accuracy, gradient_norm, eigenvalue"),
        ({"quantities": "accuracy"}, "must be a list"),
        ({"step": 1, "steps": [1, 2]}, "step or steps"),
        ({"steps": []}, "at least one step"),
        ({"half_width": (1, 2, 3)}, "2 axes"),
        ({"half_width": np.inf}, "must be positive"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            plane_slice(descent.objective, center, pair, **options)
    with pytest.raises(ValueError, match=r"needs one direction, shape \(1, 51\)"):
        line_slice(descent.objective, center, pair)
    values = Objective(
        descent.model, lambda o, y, step: (o[:, 0] - y).square().mean(), descent.data.inputs, torch.ones(45)
    )
    with pytest.raises(ValueError, match="accuracy needs one class"):
        plane_slice(values, center, pair, quantities=["accuracy"])
