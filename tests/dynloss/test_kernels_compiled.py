"""What the compiled closed forms promise beyond their values: the same bits in any company, and NaN kept."""

import numpy as np
import pytest
import torch

import dynloss
from dynloss.kernels import fastest_objective
from dynloss.kernels.class_weights import BLOCK, ClassWeights

pytest.importorskip("numba", reason="the compiled closed forms need numba: pip install '.[fast]'")
from dynloss.kernels.numba_loops import AT_ONCE

LOSSES = [
    dynloss.CrossEntropy(3),
    dynloss.DynamicalCrossEntropy(3, 30, 50),
    dynloss.DynamicalSquaredError(3, 30, 50, weighting="sample"),
    dynloss.DynamicalSquaredError(3, 30, 50, weighting="component"),
]
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name} {getattr(loss, 'weighting', '')}")


def compiled(loss, width=13, dtype=torch.float64, kernel="closed form, numba"):
    model = dynloss.mlp(2, width, 3, seed=3, dtype=dtype)
    return fastest_objective(model, loss, *dynloss.spiral(15, 3, seed=0), kernel=kernel)


def rows_of(objective, n_rows=5, n_vectors=4):
    rng = np.random.default_rng(4)
    params = rng.standard_normal((n_rows, objective.n_params))
    vectors = rng.standard_normal((n_rows, n_vectors, objective.n_params))
    return objective.as_params(params), objective.as_vectors(vectors)


@losses
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_row_has_the_same_bits_whatever_the_other_rows_and_columns_are(loss, dtype):
    objective = compiled(loss, dtype=dtype)
    params, vectors = rows_of(objective)
    together = (
        *objective.value_and_gradient(params, 21),
        objective.losses(params, 21),
        objective.hvp(params, vectors, 21),
    )
    for e in range(len(params)):
        for rows in ([e], [e, 0, 2], [e, e]):
            alone = (
                *objective.value_and_gradient(params[rows], 21),
                objective.losses(params[rows], 21),
                objective.hvp(params[rows], vectors[rows], 21),
            )
            for mine, theirs in zip(alone, together, strict=True):
                assert torch.equal(mine[0], theirs[e])
        product = objective.linearize(params[e], 21)
        for k in range(vectors.shape[1]):
            assert torch.equal(product(vectors[e, k]), together[-1][e, k])
    again = objective.gradient(params, [21] * len(params))
    assert torch.equal(again, together[1])


def test_columns_beyond_those_multiplied_together_have_the_same_bits_too():
    objective = compiled(LOSSES[1])
    params, vectors = rows_of(objective, n_rows=2, n_vectors=1000)
    n_pairs, n_samples = 6, 48
    assert AT_ONCE // (n_pairs * n_samples) < 950
    products = objective.linearize(params, 21)
    many = products(vectors)
    for k in (0, 909, 910, 911, 999):
        assert torch.equal(many[:, k], products(vectors[:, k]))


@losses
@pytest.mark.parametrize("name", ["hidden.weight", "hidden.bias", "output.weight", "output.bias"])
def test_nan_in_any_parameter_or_vector_shows_in_every_result_of_its_row_only(loss, name):
    objective = compiled(loss)
    params, vectors = rows_of(objective)
    clean = objective.gradient(params, 21), objective.hvp(params, vectors, 21)
    poisoned = params.clone()
    objective.layout.unflatten(poisoned[1])[name].view(-1)[-1] = torch.nan
    values, gradients = objective.value_and_gradient(poisoned, 21)
    products = objective.hvp(poisoned, vectors, 21)
    assert values.isnan().tolist() == [False, True, False, False, False]
    assert gradients[1].isnan().any()
    assert products[1].isnan().any(-1).all()
    assert torch.isnan(objective.outputs(poisoned[1], objective.batches[0][0])).any()
    others = [0, 2, 3, 4]
    assert torch.equal(gradients[others], clean[0][others])
    assert torch.equal(products[others], clean[1][others])

    poisoned = vectors.clone()
    objective.layout.unflatten(poisoned[1, 2])[name].view(-1)[-1] = torch.nan
    products = objective.hvp(params, poisoned, 21)
    assert products[1, 2].isnan().any()
    finite = torch.ones(products.shape[:2], dtype=bool)
    finite[1, 2] = False
    assert torch.equal(products[finite], clean[1][finite])


@losses
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, 1e200])
def test_infinite_and_huge_parameters_give_a_loss_that_is_finite_only_where_that_of_autograd_is(loss, value):
    objective, autograd = compiled(loss), compiled(loss, kernel="autograd")
    params, _ = rows_of(objective)
    for name in objective.layout.names:
        poisoned = params.clone()
        objective.layout.unflatten(poisoned[1])[name].view(-1)[0] = value
        found, expected = objective.losses(poisoned, 3), autograd.losses(poisoned, 3)
        assert found.isfinite().tolist() == expected.isfinite().tolist()
        assert not objective.gradient(poisoned, 3)[[0, 2, 3, 4]].isnan().any()


@losses
def test_a_unit_exactly_at_its_kink_is_off_as_in_torch(loss):
    objective, autograd = compiled(loss), compiled(loss, kernel="autograd")
    params, vectors = rows_of(objective)
    tensors = objective.layout.unflatten(params[0])
    tensors["hidden.weight"][3] = 0
    tensors["hidden.bias"][3] = 0
    found, expected = objective.gradient(params, 7), autograd.gradient(params, 7)
    assert not objective.layout.unflatten(found[0])["hidden.weight"][3].any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    found, expected = objective.hvp(params, vectors, 7), autograd.hvp(params, vectors, 7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_vectors_and_parameters_may_be_views_of_other_types_and_orders():
    objective = compiled(LOSSES[1])
    params, vectors = rows_of(objective)
    expected = objective.hvp(params, vectors, 5)
    spread = torch.stack([params, params], -1)[..., 0], torch.stack([vectors, vectors], -1)[..., 0]
    assert not spread[0].is_contiguous()
    assert torch.equal(objective.hvp(*spread, 5), expected)
    assert torch.equal(
        objective.linearize(params, 5)(vectors.float()), objective.hvp(params, vectors.float().double(), 5)
    )
    whole = torch.tensor([[1, 2], [-3, 0]])
    assert torch.equal(objective.outputs(params, whole), objective.outputs(params, whole.double()))
    leaf = params.clone().requires_grad_()
    assert torch.equal(objective.gradient(leaf, 5), objective.gradient(params, 5))


@pytest.mark.parametrize(
    ("loss", "inputs", "targets", "message"),
    [
        (dynloss.CrossEntropy(3), torch.zeros(2, 2), torch.tensor([0, 3]), "targets must be 2 classes 0 … 2"),
        (dynloss.CrossEntropy(3), torch.zeros(2, 2), torch.tensor([0, -1]), "targets must be 2 classes 0 … 2"),
        (dynloss.CrossEntropy(3), torch.zeros(2, 3), torch.tensor([0, 1]), r"inputs must have shape \(P, 2\)"),
        (dynloss.CrossEntropy(4), torch.zeros(2, 2), torch.tensor([0, 1]), "the loss is of 4 classes, the model of 3"),
    ],
)
def test_what_would_be_read_beyond_its_end_is_refused(loss, inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        fastest_objective(dynloss.mlp(2, 5, 3), loss, inputs.double(), targets, kernel="closed form, numba")
    objective = compiled(dynloss.CrossEntropy(3))
    if loss.n_classes == 3:
        with pytest.raises(ValueError, match=message):
            objective.on(inputs.double(), targets)


def test_inputs_parameters_and_weights_of_other_shapes_are_refused():
    objective = compiled(dynloss.CrossEntropy(3))
    params, _ = rows_of(objective)
    with pytest.raises(ValueError, match="inputs must have shape"):
        objective.outputs(params, torch.zeros(4, 3).double())
    with pytest.raises(ValueError, match="params must have shape"):
        objective.outputs(params[:, 1:], torch.zeros(4, 2).double())
    objective.loss_fn.class_weights = lambda step: torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"class weights of shape \(1, 2\) for 3 classes"):
        objective.losses(params[:1], 0)


def test_outputs_of_what_requires_gradients_have_them():
    objective, autograd = compiled(LOSSES[0]), compiled(LOSSES[0], kernel="autograd")
    params, _ = rows_of(objective)
    inputs = objective.batches[0][0]
    gradients = []
    for each in (objective, autograd):
        leaf = params.clone().requires_grad_()
        gradients.append(torch.autograd.grad((each.outputs(leaf, inputs) ** 2).sum(), leaf)[0])
    np.testing.assert_allclose(*gradients, rtol=1e-12)


TRIANGLE = dynloss.TriangleSchedule(3, 30, 50)
SCHEDULES = [
    None,
    TRIANGLE,
    dynloss.SineSchedule(3, 30, 50, order="random", seed=2),
    dynloss.StaticTail(TRIANGLE, start=70),
    dynloss.DecayingAmplitude(dynloss.SquareSchedule(3, 30, 50), time=30),
    dynloss.FunctionSchedule(lambda t: 2 + np.sin(t[..., None] + np.arange(3)), 3),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_class_weights_looked_up_are_those_of_the_loss(schedule):
    loss = dynloss.CrossEntropy(3) if schedule is None else dynloss.DynamicalCrossEntropy(3, schedule=schedule)
    weights = ClassWeights(loss, np.dtype(float))
    for step in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK + 7, 3):
        np.testing.assert_allclose(weights.at(step), loss.class_weights(step)[None], rtol=1e-14)


def test_a_schedule_of_ones_own_is_asked_only_at_the_step_that_is_needed():
    asked = []

    def function(step):
        asked.append(np.array(step).tolist())
        return np.ones((*step.shape, 3))

    objective = compiled(dynloss.DynamicalCrossEntropy(3, schedule=dynloss.FunctionSchedule(function, 3)))
    objective.gradient(rows_of(objective)[0], 5)
    assert asked == [5.0]


def test_a_loss_given_another_schedule_is_computed_with_it():
    loss = dynloss.DynamicalCrossEntropy(3, 30, 50)
    objective, autograd = (compiled(loss, kernel=kernel) for kernel in ("closed form, numba", "autograd"))
    params, _ = rows_of(objective)
    for schedule in (TRIANGLE, dynloss.SineSchedule(3, 7, 40)):
        loss.schedule = schedule
        np.testing.assert_allclose(objective.losses(params, 20), autograd.losses(params, 20), rtol=1e-12)
