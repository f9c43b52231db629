"""The matrix whose eigenpairs are asked for: blocks, Gauss–Newton, preconditioned, each against a dense one."""

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import Objective, stability_threshold, top_eigenpairs


def positions(layout, names):
    spans = zip(layout.names, layout.offsets, layout.sizes, strict=True)
    return np.concatenate([np.arange(at, at + n) for name, at, n in spans if name in names])


def assert_pairs(eigs, matrix, k=3):
    """The largest eigenpairs of the dense `matrix`, certified."""
    values, vectors = np.linalg.eigh(matrix)
    assert eigs.certified.all()
    np.testing.assert_allclose(eigs.eigenvalue, values[::-1][:k], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(eigs.eigenvector.values.T * vectors[:, ::-1][:, :k], 0)), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("hidden.*", {"hidden.weight", "hidden.bias"}),
        ("*.bias", {"hidden.bias", "output.bias"}),
        (["output.weight", "hidden.bias"], {"hidden.bias", "output.weight"}),
        ("output.bias", {"output.bias"}),
    ],
)
def test_a_block_has_the_eigenpairs_of_the_dense_block_and_vectors_that_are_zero_elsewhere(descent, parameters, names):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=3, tol=1e-7, parameters=parameters)
    chosen = positions(descent.objective.layout, names)
    assert eigs.attrs["parameters"] == parameters
    for row, step in enumerate(descent.checkpoints.step.values):
        H = descent.derivatives(step)[2]
        pairs = eigs.isel(step=row)
        assert_pairs(pairs.isel(param=chosen), H[np.ix_(chosen, chosen)])
        np.testing.assert_array_equal(np.delete(pairs.eigenvector.values, chosen, axis=1), 0)


def test_patterns_that_match_nothing_are_refused_with_names_that_are_near(descent):
    with pytest.raises(ValueError, match=r"no parameter matches 'hiden\.weight'; names are like hidden\.weight"):
        top_eigenpairs(descent.objective, descent.checkpoints, parameters="hiden.weight")
    with pytest.raises(ValueError, match="no parameter matches 'c'"):
        top_eigenpairs(descent.objective, descent.checkpoints, parameters=["*", "c"])
    with pytest.raises(ValueError, match="names no tensor"):
        top_eigenpairs(descent.objective, descent.checkpoints, parameters=[])
    with pytest.raises(ValueError, match="k must be between 1 and 3, the number of parameters, got 4"):
        top_eigenpairs(descent.objective, descent.checkpoints, k=4, parameters="output.bias")


def test_the_gauss_newton_matrix_is_that_of_the_dense_jacobian(descent):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k=3, tol=1e-7, matrix="gauss_newton")
    inputs, targets = descent.data
    for row, step in enumerate(descent.checkpoints.step.values):
        theta = torch.from_numpy(descent.checkpoints.params.sel(step=step).values)

        def outputs(params):
            tensors = descent.objective.layout.unflatten(params)
            return torch.func.functional_call(descent.model, tensors, (inputs,))

        J = torch.autograd.functional.jacobian(outputs, theta).flatten(0, 1)
        curved = torch.autograd.functional.hessian(
            lambda o, step=step: descent.loss_fn(o, targets, int(step)), outputs(theta)
        )
        assert_pairs(eigs.isel(step=row), (J.T @ curved.reshape(len(J), len(J)) @ J).detach().numpy())
    with pytest.raises(ValueError, match='"hessian" or "gauss_newton", got \'fisher\''):
        top_eigenpairs(descent.objective, descent.checkpoints, matrix="fisher")


class Quadratic(torch.nn.Module):
    """Outputs θ itself."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta.expand(len(inputs), -1)


def adaptive(optimizer, n=40, n_steps=60):
    """Checkpoints of torch's own optimiser on a quadratic, and what P is at each, read back from its updates."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    A = torch.from_numpy((Q * np.geomspace(0.1, 10, n)) @ Q.T)
    theta = torch.nn.Parameter(torch.from_numpy(rng.normal(size=n)))
    rule = optimizer([theta])
    rows, moments, divisors = [], [], []
    for _ in range(n_steps):
        gradient = A @ theta.detach()
        state = rule.state.get(theta, {})
        rows.append(theta.detach().numpy().copy())
        moments.append(state["exp_avg_sq" if "exp_avg_sq" in state else "square_avg"].numpy().copy() if state else 0)
        before = theta.detach().clone()
        theta.grad = gradient
        rule.step()
        step = rule.state[theta]
        lead = step["exp_avg"] / (1 - 0.9 ** len(rows)) if "exp_avg" in step else gradient
        divisors.append((rule.defaults["lr"] * lead / (before - theta.detach())).numpy())
    moments[0] = np.zeros(n)
    return A, np.stack(rows), np.stack(moments), np.stack(divisors)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_the_preconditioned_hessian_is_scaled_by_what_the_optimiser_divides_its_update_by(name):
    if name == "adam":
        attrs = {"optimizer": "adam", "learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3}
        made = adaptive(lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99), eps=1e-3))
    else:
        attrs = {"optimizer": "rmsprop", "learning_rate": 0.01, "alpha": 0.9, "epsilon": 1e-3}
        made = adaptive(lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3))
    A, params, moments, divisors = made
    zero = torch.zeros(1, 1, dtype=torch.float64)
    objective = Objective(Quadratic(), lambda z, _, step: (z @ A @ z.T).sum() / 2, zero, zero)
    variables = {"params": (("step", "param"), params), "second_moment": (("step", "param"), moments)}
    checkpoints = xr.Dataset(variables, {"step": np.arange(60)}, attrs).isel(step=[0, 1, 7, 59])
    eigs = top_eigenpairs(objective, checkpoints, k=3, tol=1e-7, preconditioned=True, batch_rows=3)
    for row, step in enumerate(checkpoints.step.values):
        root = divisors[step] ** -0.5
        assert_pairs(eigs.isel(step=row), root[:, None] * A.numpy() * root)
        assert eigs.threshold[row] == stability_threshold(attrs, preconditioned=True, step=int(step))
    assert eigs.attrs["preconditioned"] is True
    block = top_eigenpairs(objective, checkpoints, k=3, tol=1e-7, preconditioned=True, parameters="theta")
    np.testing.assert_allclose(block.eigenvalue, eigs.eigenvalue, rtol=1e-8)


def test_a_recorded_run_of_adam_has_preconditioned_pairs_and_gradient_descent_none(tmp_path, descent):
    model, data = dynloss.mlp(2, 8, 3, seed=0), dynloss.spiral(15, 3, seed=0)
    settings = {"n_steps": 40, "learning_rate": 0.02, "checkpoint_every": 20}
    dynloss.train(model, dynloss.CrossEntropy(3), data, optimizer="adam", record=tmp_path / "adam.h5", **settings)
    from landscape import open_run

    with open_run(tmp_path / "adam.h5") as run:
        objective = dynloss.objective(run)
        eigs = top_eigenpairs(objective, run.checkpoints, k=2, preconditioned=True)
        assert eigs.certified.all()
        assert np.isfinite(eigs.threshold).all()
        with pytest.raises(ValueError, match="the checkpoints lack second_moment; save"):
            top_eigenpairs(objective, run.checkpoints.drop_vars("second_moment"), preconditioned=True)
    with pytest.raises(ValueError, match="optimizer 'gd' has no preconditioner"):
        top_eigenpairs(descent.objective, descent.checkpoints, preconditioned=True)


def test_batches_are_as_many_rows_as_fit_in_cache(descent):
    from landscape.curvature import Curvature

    small = Curvature(descent.objective, descent.checkpoints)
    assert small.batch_rows() == 64
    assert [len(batch.steps) for batch in small.batches(3, "test")] == [3, 1]
    assert [len(batch.steps) for batch in small.batches(None, "test", 1)] == [3]
