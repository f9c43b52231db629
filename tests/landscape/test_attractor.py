"""Attractors of frozen maps: the logistic map's known orbits, a cubic map's two-cycle, a network's plain descent."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import Objective, attractor_diagram


class Theta(torch.nn.Module):
    """A model whose output is θ, so that a loss of the output is any function F(θ, t)."""

    def __init__(self, n=1):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


class Logistic:
    """F = Γ_0 θ²/2 − Γ_1 (θ²/2 − θ³/3), with Γ = (1, r(t)).

    With η = 1 descent is θ → r θ(1 − θ). With Γ = (1, 2) it is θ → (1 + η)θ − 2ηθ², the logistic map with r = 1 + η in
    the variable x = 2ηθ/(1 + η).
    """

    def __init__(self, rate=lambda step: 0 * step + 2.0):
        self.rate = rate

    def class_weights(self, step):
        rate = torch.as_tensor(self.rate(torch.as_tensor(step)), dtype=torch.float64)
        return torch.stack([torch.ones_like(rate), rate], dim=-1)

    def terms(self, outputs, targets):
        return torch.stack([(outputs**2 / 2).sum(), -(outputs**2 / 2 - outputs**3 / 3).sum()])

    def __call__(self, outputs, targets, step):
        return self.class_weights(step) @ self.terms(outputs, targets)


class LogisticObjective(Objective):
    """The same by its closed forms, so that thousands of iterates take no time."""

    def __init__(self, loss=None):
        super().__init__(Theta(), loss or Logistic(), torch.zeros(1, 1), torch.zeros(1))

    def value_and_gradient(self, params, step):
        one, rate = self.class_weights(step).expand(len(params), 2).T
        x = params[:, 0]
        losses = one * x**2 / 2 - rate * (x**2 / 2 - x**3 / 3)
        return losses, (one * x - rate * (x - x**2))[:, None]

    def linearize(self, params, step):
        x = self.as_params(params)
        one, rate = self.class_weights(step).expand(x.numel(), 2).T
        curvature = (one - rate * (1 - 2 * x.reshape(-1))).reshape(x.shape)
        return lambda vectors: vectors * (curvature[:, None] if vectors.ndim == 3 else curvature)


def function_of(function, n=1):
    """F(θ, t) = `function(theta, step)`."""
    return Objective(Theta(n), lambda theta, _, step: function(theta, step), torch.zeros(1, 1), torch.zeros(1))


def checkpoint_at(params, step=0, **attrs):
    """One checkpoint."""
    return xr.Dataset({"params": ("param", params)}, {"step": step}, attrs)


KNOWN = {2.8: 1, 3.2: 2, 3.5: 4, 3.55: 8, 3.9: 0, 3.83: 3, 3.7389: 5}
"""r → period of the logistic map's attractor."""

SETTLED = {"n_transient": 400, "n_keep": 64}
START = checkpoint_at([0.31], optimizer="gd", learning_rate=1.0)
UPWARDS = xr.Dataset({"eigenvector": (("mode", "param"), [[1.0]])}, {"step": 0})
"""So that the projection is θ − θ_0, with this sign."""


def weights(r):
    return np.stack([np.ones(len(r)), r], axis=1)


def orbit(r, n=64):
    """The last of many iterates of the logistic map."""
    x = 0.37
    for _ in range(20_000):
        x = r * x * (1 - x)
    values = []
    for _ in range(n):
        x = r * x * (1 - x)
        values.append(x)
    return np.array(values)


def by(control, r, **options):
    """The diagram of the logistic map with r as class weight, as step or as learning rate; and its x."""
    r = np.asarray(r, float)
    options = {"eigs": UPWARDS} | SETTLED | options
    if control == "class_weights":
        found = attractor_diagram(LogisticObjective(), START, class_weights=weights(r), **options)
    elif control == "steps":
        objective = LogisticObjective(Logistic(lambda step: torch.as_tensor(r)[step]))
        found = attractor_diagram(objective, START, steps=range(len(r)), **options)
    else:
        found = attractor_diagram(LogisticObjective(), START, learning_rates=r - 1, **options)
    theta = found.projection.values + 0.31
    return found, theta * (2 * (r - 1) / r)[:, None] if control == "learning_rates" else theta


@pytest.mark.parametrize("control", ["class_weights", "steps", "learning_rates"])
def test_the_logistic_map_has_its_known_attractors_whatever_the_control(control):
    found, x = by(control, list(KNOWN))
    assert found.orbit_period.values.tolist() == list(KNOWN.values())
    for i, r in enumerate(KNOWN):
        if KNOWN[r]:
            apart = np.abs(x[i][:, None] - orbit(r))
            assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-7
        else:
            assert 0.05 < x[i].min() < x[i].max() <= r / 4 + 1e-12
    assert found.projection.dims == found.loss.dims == ("control", "iterate")
    assert found.attrs["control"] == {"steps": "step", "learning_rates": "learning_rate"}.get(control, control)
    assert found.iterate.values.tolist() == list(range(400, 464))
    assert not found.diverged.any()
    expected = {"steps": np.arange(7), "learning_rates": np.array(list(KNOWN)) - 1, "class_weights": np.arange(7)}
    np.testing.assert_array_equal(found.control, expected[control])
    rates = found.control if control == "learning_rates" else np.ones(7)
    np.testing.assert_allclose(found.threshold, 2 / rates)


@pytest.mark.parametrize(("point", "before", "after"), [(3.0, 1, 2), (1 + np.sqrt(6), 2, 4), (3.54409, 4, 8)])
def test_periods_double_where_the_logistic_map_does(point, before, after):
    r = point + np.linspace(-0.0205, 0.0205, 12)
    period = by("class_weights", r)[0].orbit_period.values
    assert set(period) == {before, after}
    first = np.argmax(period == after)
    assert (period[:first] == before).all()
    assert (period[first:] == after).all()
    assert r[first - 1] - 0.004 <= point <= r[first] + 0.004  # what splits off is seen from 3 % of the orbit on


def test_a_long_period_is_told_apart_from_an_aperiodic_orbit():
    # Between 3.56876 and 3.56969 the period is 32; its second half differs from the first by less than a percent.
    found, x = by("class_weights", [3.5692, 3.9], rtol=0.002)
    assert found.orbit_period.values.tolist() == [np.inf, 0]
    assert len(np.unique(x[0].round(6))) == 32
    assert by("class_weights", [3.5692])[0].orbit_period.item() == 16  # within 3 %


def test_an_orbit_that_still_dies_out_is_a_fixed_point():
    # The multiplier is 2 − r: slow decay on both sides of the one that settles within the transient.
    r = [1.03, 1.3, 2.7, 2.9, 2.95, 2.97, 2.98, 2.99]
    found, x = by("class_weights", r, n_transient=20)
    assert found.orbit_period.values.tolist() == [1] * len(r)
    assert (np.ptp(x, axis=1)[-4:] > 1e-4).all()
    assert by("class_weights", [3.02], n_transient=20)[0].orbit_period.item() == 2


def test_a_fixed_point_that_rounding_keeps_moving_is_at_rest():
    r = np.linspace(2.7, 2.95, 40)
    found, x = by("class_weights", r, n_transient=1000)
    assert 0 < np.ptp(x, axis=1).max() < 1e-14
    assert found.orbit_period.values.tolist() == [1] * 40


def test_orbits_below_the_resolution_count_as_rest():
    r = [3.005, 3.2]
    assert by("class_weights", r, n_transient=2000)[0].orbit_period.values.tolist() == [2, 2]
    found, x = by("class_weights", r, n_transient=2000, resolution=0.2)
    assert 0.01 < np.ptp(x[0]) < 0.2 < np.ptp(x[1])
    assert found.orbit_period.values.tolist() == [1, 2]


def test_the_sharpness_is_that_of_the_midpoint_and_the_loss_that_of_each_iterate():
    r = np.array([2.8, 3.2, 3.5, 3.83])
    found, x = by("class_weights", r)
    midpoint = x[:, -2:].mean(axis=1)
    np.testing.assert_allclose(found.eigenvalue, 1 - r * (1 - 2 * midpoint), rtol=1e-9)
    expected = x**2 / 2 - r[:, None] * (x**2 / 2 - x**3 / 3)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-12)
    assert found.certified.all()
    assert (found.residual < 1e-4).all()
    # The fixed point loses its stability where λ_1 reaches 2/η: x* = 1 − 1/r has λ_1 = r − 1.
    np.testing.assert_allclose(by("class_weights", [2.99], n_transient=2500)[0].eigenvalue, 1.99, rtol=1e-6)


def test_the_two_cycle_of_a_cubic_map_has_its_closed_form():
    # x → x − η(λx − x³) alternates between ±(λ − 2/η)^(1/2) for 2 < ηλ < 3, and rests at 0 below.
    objective, rates = function_of(lambda theta, _: 1.1 * theta[0] ** 2 - theta[0] ** 4 / 4), np.array([0.5, 0.95, 1.2])
    found = attractor_diagram(objective, checkpoint_at([0.1]), learning_rates=rates, n_transient=300)
    assert found.orbit_period.values.tolist() == [1, 2, 2]
    cycle = np.sqrt(np.maximum(2.2 - 2 / rates, 0))
    np.testing.assert_allclose(np.abs(found.projection[0]), 0.1, atol=1e-6)
    for i in (1, 2):
        ends = np.sort(np.abs(found.projection[i].values))[[0, -1]]
        np.testing.assert_allclose(ends, [abs(cycle[i] - 0.1), cycle[i] + 0.1], rtol=1e-9)
    np.testing.assert_allclose(found.eigenvalue, 2.2, rtol=1e-6)  # the midpoint is 0 for all of them


def test_a_map_that_diverges_leaves_the_others_alone():
    r = [2.8, 5.0, 3.5, 4.5]
    found, _ = by("class_weights", r, n_transient=4)
    alone, _ = by("class_weights", [2.8, 3.5], n_transient=4)
    assert found.diverged.values.tolist() == [False, True, False, True]
    xr.testing.assert_allclose(
        found.isel(control=[0, 2]).drop_vars("control"), alone.drop_vars("control"), rtol=1e-12, atol=1e-12
    )
    bad = found.isel(control=[1, 3])
    assert np.isnan(bad[["orbit_period", "eigenvalue", "residual"]].to_array()).all()
    assert not bad.certified.any()
    finite = np.isfinite(bad.projection.values)
    assert finite[:, 0].all()
    assert not finite[:, -1].any()
    assert (np.diff(finite.astype(int), axis=1) <= 0).all()  # NaN from there on
    all_bad, _ = by("class_weights", [5.0, 6.0])
    assert all_bad.diverged.all()


def test_controls_are_iterated_in_chunks(monkeypatch):
    whole, _ = by("learning_rates", [2.8, 3.2, 3.5, 3.83, 3.55])
    seen = []
    objective = LogisticObjective()
    plain = objective.value_and_gradient
    monkeypatch.setattr(objective, "value_and_gradient", lambda p, s: seen.append(len(p)) or plain(p, s))
    monkeypatch.setattr("landscape.attractor.CHUNK_ROWS", 2)
    rates = np.array([1.8, 2.2, 2.5, 2.83, 2.55])
    parts = attractor_diagram(objective, START, learning_rates=rates, eigs=UPWARDS, **SETTLED)
    assert set(seen) == {1, 2}
    xr.testing.assert_allclose(parts, whole, rtol=1e-9)


@pytest.mark.parametrize("momentum", [None, 0.6])
def test_a_network_descends_as_torch_does_with_its_loss_frozen(descent, oracle, momentum):
    start, frozen_at = 20, [3, 17, 31]
    checkpoint = descent.checkpoints.sel(step=start)
    attrs = {"optimizer": "momentum", "momentum": momentum} if momentum else {}
    found = attractor_diagram(
        descent.objective, checkpoint.assign_attrs(attrs, period=40), steps=frozen_at, n_transient=3, n_keep=34
    )
    top = np.linalg.eigh(descent.derivatives(start)[2])[1][:, -1]
    for i, step in enumerate(frozen_at):
        model = copy.deepcopy(descent.model)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(checkpoint.params.values.copy()), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum or 0.0)
        states, losses = [], []
        for _ in range(37):
            optimizer.zero_grad()
            loss = descent.loss_fn(model(descent.data.inputs), descent.data.targets, step)
            states.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        along = (np.array(states[3:]) - states[0]) @ top
        sign = np.sign(along @ found.projection[i].values)
        np.testing.assert_allclose(found.projection[i], sign * along, atol=1e-6)
        np.testing.assert_allclose(found.loss[i], losses[3:], rtol=1e-10)
        midpoint = (states[-1] + states[-2]) / 2
        hessian = oracle(descent.model, descent.loss_fn, *descent.data, midpoint, step)[2]
        np.testing.assert_allclose(found.eigenvalue[i], np.linalg.eigvalsh(hessian)[-1], rtol=1e-6)
    np.testing.assert_allclose(found.threshold, 2 * (1 + (momentum or 0)) / 0.5)
    np.testing.assert_allclose(found.phase, np.array(frozen_at) / 40)
    assert int(found.step) == start
    assert found.attrs["eigenvector_step"] == start


def test_the_direction_is_that_of_the_last_eigenpairs_up_to_the_checkpoint():
    objective = function_of(lambda theta, _: (theta**2).sum() / 2, 2)
    vectors = np.array([[1.0, 0], [0, 1], [-1, 0]])[:, None]
    eigs = xr.Dataset({"eigenvector": (("step", "mode", "param"), vectors)}, {"step": [2, 8, 12]})
    start = checkpoint_at([2.0, 6.0], 10, learning_rate=0.5)
    found = attractor_diagram(objective, start, steps=[0], eigs=eigs, n_transient=1)
    assert found.attrs["eigenvector_step"] == 8
    np.testing.assert_allclose(found.projection[0, :3], [-3, -4.5, -5.25])
    with pytest.raises(ValueError, match="eigs begin after the checkpoint's step 10"):
        attractor_diagram(objective, start, steps=[0], eigs=eigs.sel(step=[12]))


def test_a_table_with_a_coordinate_names_the_control():
    r = xr.DataArray(weights(np.array([2.8, 3.2])), {"amplitude": [10.0, 70.0]}, ("amplitude", "class"))
    found = attractor_diagram(LogisticObjective(), START, class_weights=r, **SETTLED)
    assert found.attrs["control"] == "amplitude"
    assert found.control.values.tolist() == [10, 70]
    assert found.control.attrs["long_name"] == "Amplitude"
    assert "phase" not in found.coords


def test_a_learning_rate_given_counts_and_is_recorded():
    objective = function_of(lambda theta, _: theta[0] ** 2 / 2)
    found = attractor_diagram(objective, checkpoint_at([1.0]), steps=[0], learning_rate=0.5, n_transient=0)
    np.testing.assert_allclose(np.abs(found.projection[0, :3]), [0, 0.5, 0.75])
    assert found.attrs["learning_rate"] == 0.5
    assert found.threshold.item() == 4


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        (START, {}, "exactly one control: steps=, learning_rates= or class_weights=; got none"),
        (START, {"steps": [1], "learning_rates": [1.0]}, "got steps and learning_rates"),
        (START, {"steps": [0.5]}, "steps must be whole numbers"),
        (START, {"steps": []}, r"steps must have shape \(control,\)"),
        (START, {"class_weights": [1.0, 2.0]}, r"class_weights must have shape \(control, class\), got \(2,\)"),
        (START, {"steps": [1], "n_keep": 33}, "n_keep must be at least 34 and n_transient at least 0, got 33, 200"),
        (START, {"steps": [1], "rtol": 1.5}, "rtol must lie between 0 and 1"),
        (START.expand_dims("step"), {"steps": [1]}, r"starts from one checkpoint, e\.g\. checkpoints\.sel"),
        (START.drop_attrs(), {"steps": [1]}, "name no learning_rate; give learning_rate="),
        (START.assign_attrs(optimizer="adam"), {"steps": [1]}, "knows gd or momentum only, .* trained by 'adam'"),
    ],
)
def test_what_has_no_diagram_is_refused(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        attractor_diagram(LogisticObjective(), checkpoint, **options)


def test_eigenvalues_without_a_certificate_are_counted_in_one_warning():
    objective = function_of(lambda theta, _: (theta**2 * torch.linspace(1, 2, 400)).sum() / 2, 400)
    start = checkpoint_at(np.full(400, 0.1), learning_rate=0.1)
    eigs = xr.Dataset({"eigenvector": (("mode", "param"), np.eye(1, 400))}, {"step": 0})
    with pytest.warns(UserWarning, match="eigenvalues of 2 of 2 attractors are not certified") as caught:
        attractor_diagram(objective, start, steps=[0, 1], eigs=eigs, n_transient=0, tol=1e-14)
    assert len(caught) == 1
