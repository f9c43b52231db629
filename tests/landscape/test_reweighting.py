"""An objective under a table of class weights is the objective of the loss that has these weights."""

import copy

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import fastest_objective, kernels_for
from landscape import Objective

STEPS = [0, 7, 13, 20, 39]
KINDS = {
    "cross entropy": dynloss.DynamicalCrossEntropy,
    "squared error by sample": lambda *a: dynloss.DynamicalSquaredError(*a, weighting="sample"),
    "squared error by component": lambda *a: dynloss.DynamicalSquaredError(*a, weighting="component"),
}


@pytest.mark.parametrize("kernel", ["autograd", "closed form, torch", "closed form, numba"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_a_table_are_the_weights_of_another_amplitude(kind, kernel):
    model, data = dynloss.mlp(2, 6, 3, seed=0), dynloss.spiral(9, 3, seed=0)
    mild, strong = KINDS[kind](3, 2, 40), KINDS[kind](3, 70, 40)
    if kernel not in kernels_for(model, mild):
        pytest.skip("the compiled closed forms need numba: pip install '.[fast]'")
    objective, expected = (fastest_objective(model, loss, *data, kernel=kernel) for loss in (mild, strong))
    other = objective.reweighted(strong.class_weights(STEPS))
    rng = np.random.default_rng(0)
    params = torch.from_numpy(rng.standard_normal((len(STEPS), objective.n_params)))
    vectors = torch.from_numpy(rng.standard_normal((len(STEPS), 2, objective.n_params)))
    rows = np.arange(len(STEPS))
    same = {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(other.losses(params, rows), expected.losses(params, STEPS), **same)
    torch.testing.assert_close(other.gradient(params, rows), expected.gradient(params, STEPS), **same)
    torch.testing.assert_close(other.hvp(params, vectors, rows), expected.hvp(params, vectors, STEPS), **same)
    for row, step in enumerate(STEPS):  # one at a time, where other code paths are taken
        one = params[row]
        torch.testing.assert_close(other.loss(one, row), expected.loss(one, step), **same)
        torch.testing.assert_close(other.gradient(one, row), expected.gradient(one, step), **same)
        torch.testing.assert_close(other.hvp(one, vectors[row], row), expected.hvp(one, vectors[row], step), **same)
    assert other.kernel == kernel
    # The objective that it was made of keeps its weights.
    assert (objective.losses(params[:1], 20) - expected.losses(params[:1], 20)).abs() > 1e-3


class Parts:
    """Two class losses of θ itself, called in a way that does not look at `class_weights`."""

    def class_weights(self, step):
        return torch.ones(*torch.as_tensor(step).shape, 2, dtype=torch.float64)

    def terms(self, outputs, targets):
        return torch.stack([(outputs**2).sum(), outputs.sum()])

    def __call__(self, outputs, targets, step):
        return self.terms(outputs, targets).sum()


class Theta(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta


def parts(loss_fn=None):
    return Objective(Theta(), loss_fn or Parts(), torch.zeros(1, 1), torch.zeros(1))


def test_a_loss_of_one_s_own_is_weighted_also_where_it_ignores_its_weights():
    objective = parts()
    other = objective.reweighted([[1, 0], [0, 1], [2, -3]])
    theta = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert [other.loss(theta, s).item() for s in range(3)] == [25, 7, 29]
    assert other.losses(theta.expand(3, 2), [2, 1, 0]).tolist() == [29, 7, 25]
    assert other.gradient(theta, 2).tolist() == [9, 13]
    assert other.hvp(theta, theta, 2).tolist() == [12, 16]
    assert objective.loss(theta, 2).item() == 32
    assert isinstance(other.loss_fn, Parts)
    assert type(other) is Objective
    assert copy.deepcopy(other).loss(theta, 2).item() == 29


@pytest.mark.parametrize("step", [-1, 2])
def test_a_step_that_is_no_row_is_refused(step):
    other = parts().reweighted([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match=rf"have rows 0 … 1, got step {step}"):
        other.loss(torch.ones(2), step)


def test_what_is_no_table_and_a_loss_without_terms_are_refused():
    for table in ([1.0, 2.0], [[1.0, np.nan]], np.empty((0, 2))):
        with pytest.raises(ValueError, match=r"must be finite, of shape \(row, class\)"):
            parts().reweighted(table)
    with pytest.raises(ValueError, match="2 class terms, the table of class weights 3 columns"):
        parts().reweighted([[1, 2, 3]]).loss(torch.ones(2), 0)
    with pytest.raises(ValueError, match="only a loss with class terms"):
        parts(lambda outputs, targets, step: outputs.sum()).reweighted([[1, 2]])
