"""Numbers at the edges: NaN and inf, zero, one parameter, both precisions, steps in any order, k = 1 and k = n."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import dynloss
from landscape import (
    Objective,
    ParamLayout,
    RunWriter,
    bifurcation_diagram,
    gradient_decomposition,
    motion,
    open_run,
    top_eigenpairs,
    valley_width,
)

LAYOUT = ParamLayout(("w",), ((3,),))
EXTREMES = [0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.7976931348623157e308, -1e-300]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_number_is_recorded_bit_by_bit(tmp_path, dtype):
    params = np.array(EXTREMES, dtype="f8").repeat(3).reshape(-1, 3)
    with np.errstate(over="ignore"):
        params = params.astype(dtype)
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"], dtype=dtype, block_rows=3) as writer:
        for step, (loss, row) in enumerate(zip(EXTREMES, params, strict=True)):
            writer.append(step, torch.from_numpy(row), loss=loss)
    with open_run(tmp_path / "a.h5") as run:
        assert run.history.loss.values.tobytes() == np.array(EXTREMES).tobytes()
        assert run.checkpoints.params.dtype == dtype
        assert run.checkpoints.params.values.tobytes() == params.tobytes()


def test_steps_may_leave_gaps_but_not_repeat_or_go_back_and_a_refused_row_harms_no_other(tmp_path):
    with RunWriter(tmp_path / "a.h5", LAYOUT, history=["loss"], block_rows=2) as writer:
        writer.append(-5, np.zeros(3), loss=0.0)
        for step in (3, 4, 10**12):
            writer.append(step, np.full(3, step), loss=step)
            for wrong in (step, step - 1, -6):
                with pytest.raises(ValueError, match=f"steps must increase: .* already holds step {step}, got {wrong}"):
                    writer.append(wrong, np.full(3, np.nan), loss=np.nan)
    with open_run(tmp_path / "a.h5") as run:
        assert run.status == "complete"
        for table in (run.history, run.checkpoints):
            assert table.step.values.tolist() == [-5, 3, 4, 10**12]
        assert run.history.loss.values.tolist() == [0, 3, 4, 10**12]
        assert run.checkpoints.params[:, 1].values.tolist() == [0, 3, 4, 10**12]


class HalfSquare:
    """Half the mean square of the outputs; its gradient and Hessian for a linear model are known."""

    def __call__(self, outputs, targets, step):
        return (outputs**2).mean() / 2


def line(weight, dtype=torch.float64):
    """The model x ↦ (w x, 0), of one parameter."""

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([float(weight)], dtype=dtype))

        def forward(self, x):
            return torch.cat([self.w * x, torch.zeros_like(x)], dim=1)

    return Line()


def ones(dtype=torch.float64):
    return torch.ones(4, 1, dtype=dtype), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_a_model_of_one_parameter_descends_as_its_closed_form(tmp_path, dtype, rtol):
    path, name = tmp_path / "a.h5", str(dtype).removeprefix("torch.")
    options = {"learning_rate": 0.5, "n_steps": 20, "checkpoint_every": 1, "eigenpairs": 1, "eigenpairs_every": 1}
    dynloss.train(line(3, dtype), HalfSquare(), ones(dtype), record=path, **options)
    with open_run(path) as run:  # F = w²/4, so that w ← 3w/4 and the Hessian is 1/2
        w = 3 * 0.75 ** np.arange(21)
        assert run.checkpoints.params.dtype == name
        np.testing.assert_allclose(run.checkpoints.params[:, 0], w, rtol=20 * rtol)
        np.testing.assert_allclose(run.history.loss, w[:-1] ** 2 / 4, rtol=40 * rtol)
        np.testing.assert_allclose(run.history.gradient_norm, w[:-1] / 2, rtol=40 * rtol)
        np.testing.assert_allclose(run.history.update_cosine[2:], 1, rtol=10 * rtol)
        np.testing.assert_allclose(run.eigenpairs.eigenvalue, 0.5, rtol=10 * rtol)
        assert run.eigenpairs.converged.all()


def test_a_loss_of_exactly_zero_is_recorded_and_nothing_moves(tmp_path):
    options = {"n_steps": 5, "checkpoint_every": 1, "eigenpairs": 1, "eigenpairs_every": 1}
    with open_run(dynloss.train(line(0), HalfSquare(), ones(), record=tmp_path / "a.h5", **options)) as run:
        assert run.status == "complete"
        assert (run.history.loss == 0).all()
        assert (run.history.gradient_norm == 0).all()
        assert (run.history.update_norm[1:] == 0).all()
        assert run.history.update_cosine.isnull().all()  # no direction
        assert (run.checkpoints.params == 0).all()
        np.testing.assert_allclose(run.eigenpairs.eigenvalue, 0.5)


@pytest.mark.parametrize(("rate", "last"), [(1e160, np.inf), (1e308, np.inf)])
def test_a_loss_that_overflows_is_kept_with_its_gradient_and_the_run_says_diverged(tmp_path, rate, last):
    with pytest.warns(RuntimeWarning, match="the loss is not finite at step 1"):
        path = dynloss.train(line(3), HalfSquare(), ones(), record=tmp_path / "a.h5", learning_rate=rate, n_steps=9)
    with open_run(path) as run:
        assert run.status == "diverged"
        assert run.history.loss.values.tolist() == [2.25, last]
        assert run.history.gradient_norm[0] == 1.5
        assert not np.isfinite(run.history.gradient_norm[1]) or run.history.gradient_norm[1] > 1e150
        assert run.checkpoints.step.values.tolist() == [0, 1]


def test_a_loss_that_is_nan_is_kept(tmp_path):
    class Undefined(HalfSquare):
        def __call__(self, outputs, targets, step):
            return super().__call__(outputs, targets, step) * (np.nan if step == 3 else 1)

    with pytest.warns(RuntimeWarning, match="the loss is not finite at step 3"):
        path = dynloss.train(line(3), Undefined(), ones(), record=tmp_path / "a.h5", learning_rate=0.5, n_steps=9)
    with open_run(path) as run:
        np.testing.assert_array_equal(np.isnan(run.history.loss), [False, False, False, True])
        np.testing.assert_array_equal(np.isnan(run.history.gradient_norm), [False, False, False, True])
        assert run.checkpoints.params.sel(step=3) == 3 * 0.75**3


def test_a_model_without_trainable_parameters_is_refused_before_any_file_is_made(tmp_path):
    model = line(3).requires_grad_(False)
    with pytest.raises(ValueError, match=r"has no parameter that requires gradients; call model\.requires_grad_"):
        dynloss.train(model, HalfSquare(), ones(), record=tmp_path / "a.h5")
    with pytest.raises(ValueError, match="has no parameter that requires gradients"):
        Objective(model, HalfSquare(), *ones())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("k", [1, 51])
def test_one_eigenpair_and_all_of_them_are_those_of_the_dense_hessian(descent, k):
    eigs = top_eigenpairs(descent.objective, descent.checkpoints, k)
    assert eigs.eigenvector.shape == (4, k, 51)
    for step in (0, 30):
        _, _, hessian = descent.derivatives(step)
        exact = np.linalg.eigvalsh(hessian)[::-1][:k]
        np.testing.assert_allclose(eigs.eigenvalue.sel(step=step), exact, atol=1e-4 * exact[0])
    for wrong in (0, 52):
        with pytest.raises(ValueError, match=f"k must be between 1 and 51, the number of parameters, got {wrong}"):
            top_eigenpairs(descent.objective, descent.checkpoints, wrong)


@pytest.fixture(scope="module")
def pairs(descent):
    return top_eigenpairs(descent.objective, descent.checkpoints, 2, tol=1e-8)


def test_rows_in_another_order_give_the_same_results(descent, pairs):
    shuffled = descent.checkpoints.isel(step=[2, 0, 3, 1])
    eigs = top_eigenpairs(descent.objective, shuffled, 2, tol=1e-8)
    assert eigs.step.values.tolist() == [20, 0, 30, 10]
    np.testing.assert_allclose(eigs.sortby("step").eigenvalue, pairs.eigenvalue, rtol=1e-6)
    for analysis in (gradient_decomposition, valley_width):
        expected = analysis(descent.objective, descent.checkpoints, pairs)
        assert analysis(descent.objective, shuffled, pairs).identical(expected)
        assert analysis(descent.objective, descent.checkpoints, pairs.isel(step=[3, 1, 0, 2])).identical(expected)


@pytest.mark.parametrize("analysis", [gradient_decomposition, valley_width])
def test_a_step_held_twice_is_refused_where_rows_are_matched_by_step(descent, pairs, analysis):
    rows = [0, 1, 1, 2]
    with pytest.raises(ValueError, match=r'checkpoints hold step 10 more than once; keep one: .*drop_duplicates\("st'):
        analysis(descent.objective, descent.checkpoints.isel(step=rows), pairs)
    with pytest.raises(ValueError, match="eigs hold step 10 more than once"):
        analysis(descent.objective, descent.checkpoints, pairs.isel(step=rows))
    twice = top_eigenpairs(descent.objective, descent.checkpoints.isel(step=rows), 2, tol=1e-8)
    np.testing.assert_allclose(twice.eigenvalue, pairs.eigenvalue.isel(step=rows), rtol=1e-6)


@pytest.mark.parametrize("steps", [[0, 2, 1, *range(3, 40)], [0, 1, 1, *range(3, 40)], [*range(39, -1, -1)]])
def test_a_signal_out_of_order_is_refused(steps):
    signal = xr.DataArray(np.arange(40.0), {"step": steps}, "step")
    with pytest.raises(ValueError, match="the steps of signal must increase"):
        bifurcation_diagram(signal, window=34)


def test_motion_knows_no_update_between_rows_that_do_not_follow_each_other():
    steps = [0, 1, 1, 2, 1, 2, 4]
    path = xr.Dataset({"params": (("step", "param"), np.arange(7.0)[:, None])}, {"step": steps})
    np.testing.assert_array_equal(motion(path).update_norm, [np.nan, 1, np.nan, 1, np.nan, 1, np.nan])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_checkpoint_that_is_not_finite_is_marked_and_leaves_the_others_as_they_are(descent, pairs, value):
    poisoned = descent.checkpoints.copy(deep=True)
    poisoned["params"][1, 7] = value
    good = [0, 2, 3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eigs = top_eigenpairs(descent.objective, poisoned, 2, tol=1e-8)
        gradients = gradient_decomposition(descent.objective, poisoned, pairs)
        widths = valley_width(descent.objective, poisoned, pairs)
    assert any("10" in str(warning.message) for warning in caught)
    assert eigs.eigenvalue[1].isnull().all()
    assert not eigs.converged[1].any()
    assert not eigs.certified[1].any()
    np.testing.assert_allclose(eigs.eigenvalue[good], pairs.eigenvalue[good], rtol=1e-6)
    for found, analysis in ((gradients, gradient_decomposition), (widths, valley_width)):
        expected = analysis(descent.objective, descent.checkpoints, pairs)
        for name in expected.data_vars:
            np.testing.assert_allclose(found[name][good], expected[name][good], rtol=1e-6, atol=1e-9, err_msg=name)
    assert gradients.gradient_norm[1].isnull()
    assert widths.width[1].isnull().all()
