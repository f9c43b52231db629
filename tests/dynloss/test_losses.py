"""Cross entropies and squared errors, static and dynamical, against numpy: values, class terms and gradients."""

import json

import numpy as np
import pytest
import torch

from dynloss import (
    CrossEntropy,
    DecayingAmplitude,
    DynamicalCrossEntropy,
    DynamicalSquaredError,
    FunctionSchedule,
    SineSchedule,
    SquaredError,
    SquareSchedule,
    StaticTail,
    TriangleSchedule,
)
from dynloss.losses import loss_from_config

WEIGHTINGS = pytest.mark.parametrize("weighting", ["sample", "component"])
DYNAMICAL = {
    "cross entropy": (CrossEntropy, DynamicalCrossEntropy, {}),
    "squared error by sample": (SquaredError, DynamicalSquaredError, {"weighting": "sample"}),
    "squared error by component": (SquaredError, DynamicalSquaredError, {"weighting": "component"}),
}
"""Static and dynamical loss, and their options."""


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def gamma(step, n_classes, amplitude=70, period=10):
    raw = np.ones(n_classes)
    raw[(step // period) % n_classes] = np.interp(step % period, [0, period / 2, period], [1, amplitude, 1])
    return n_classes * raw / raw.sum()


def samples(n_classes, n=23):
    rng = np.random.default_rng(n_classes)
    return 3 * rng.normal(size=(n, n_classes)), rng.integers(n_classes, size=n)


@pytest.fixture(params=[2, 3, 10], ids="{} classes".format)
def n_classes(request):
    return request.param


@pytest.mark.parametrize("step", [0, 3, 5, 14, 29, 107])
def test_dynamical_cross_entropy_and_its_gradient_are_those_of_the_formula(n_classes, step):
    z, y = samples(n_classes)
    outputs = torch.tensor(z, requires_grad=True)
    loss = DynamicalCrossEntropy(n_classes, 70, 10)(outputs, torch.tensor(y), step)
    loss.backward()
    weight, p, e = gamma(step, n_classes)[y], softmax(z), np.eye(n_classes)[y]
    np.testing.assert_allclose(loss.item(), -np.mean(weight * np.log(p[np.arange(23), y])), rtol=1e-12)
    np.testing.assert_allclose(outputs.grad, weight[:, None] * (p - e) / 23, rtol=0, atol=1e-14)


@pytest.mark.parametrize("step", [0, 7, 10**6])
def test_cross_entropy_and_its_gradient_are_those_of_the_formula_at_any_step(n_classes, step):
    z, y = samples(n_classes)
    outputs = torch.tensor(z, requires_grad=True)
    loss = CrossEntropy(n_classes)(outputs, torch.tensor(y), step)
    loss.backward()
    p = softmax(z)
    np.testing.assert_allclose(loss.item(), -np.mean(np.log(p[np.arange(23), y])), rtol=1e-12)
    np.testing.assert_allclose(outputs.grad, (p - np.eye(n_classes)[y]) / 23, rtol=0, atol=1e-14)


def squared_error(z, y, weight, weighting):
    """Σ_j w_j ‖z_j − e_j‖² / P or Σ_j Σ_i w_i (z_ji − e_ji)² / P, and its derivative by z, entry by entry."""
    value, slope = 0.0, np.zeros_like(z)
    for j, i in np.ndindex(z.shape):
        w = weight[y[j]] if weighting == "sample" else weight[i]
        difference = z[j, i] - (y[j] == i)
        value += w * difference**2 / len(z)
        slope[j, i] = 2 * w * difference / len(z)
    return value, slope


@WEIGHTINGS
@pytest.mark.parametrize("step", [0, 3, 5, 14, 29, 107])
def test_dynamical_squared_error_and_its_gradient_are_those_of_the_formula(n_classes, step, weighting):
    z, y = samples(n_classes)
    outputs = torch.tensor(z, requires_grad=True)
    loss = DynamicalSquaredError(n_classes, 70, 10, weighting=weighting)(outputs, torch.tensor(y), step)
    loss.backward()
    value, slope = squared_error(z, y, gamma(step, n_classes), weighting)
    np.testing.assert_allclose(loss.item(), value, rtol=1e-12)
    np.testing.assert_allclose(outputs.grad, slope, rtol=1e-12)


@WEIGHTINGS
@pytest.mark.parametrize("step", [0, 7, 10**6])
def test_squared_error_and_its_gradient_are_those_of_the_formula_at_any_step(n_classes, step, weighting):
    z, y = samples(n_classes)
    outputs = torch.tensor(z, requires_grad=True)
    loss = SquaredError(n_classes, weighting=weighting)(outputs, torch.tensor(y), step)
    loss.backward()
    difference = z - np.eye(n_classes)[y]
    np.testing.assert_allclose(loss.item(), np.mean(np.sum(difference**2, axis=1)), rtol=1e-12)
    np.testing.assert_allclose(outputs.grad, 2 * difference / 23, rtol=1e-12)


def test_weights_by_sample_and_by_component_differ_where_the_classes_are_not_alike():
    z, y = map(torch.tensor, samples(3))
    by_sample, by_component = (DynamicalSquaredError(3, 70, 10, weighting=w) for w in ("sample", "component"))
    assert by_sample(z, y, 10) == by_component(z, y, 10)  # at a border both are the static loss
    assert abs(by_sample(z, y, 5) - by_component(z, y, 5)) > 0.01


@WEIGHTINGS
def test_terms_of_a_squared_error_are_those_of_the_formula_and_their_weighted_sum_is_the_loss(n_classes, weighting):
    z, y = samples(n_classes)
    loss = DynamicalSquaredError(n_classes, 70, 10, weighting=weighting)
    terms = loss.terms(torch.tensor(z), torch.tensor(y))
    only = np.eye(n_classes)
    expected = [squared_error(z, y, only[i], weighting)[0] for i in range(n_classes)]
    np.testing.assert_allclose(terms, expected, rtol=1e-12)
    for step in range(0, 200, 9):
        weighted = sum(loss.class_weights(step)[i] * terms[i] for i in range(n_classes))
        np.testing.assert_allclose(loss(torch.tensor(z), torch.tensor(y), step), weighted, rtol=1e-12)
    static = SquaredError(n_classes, weighting=weighting)
    assert torch.equal(static.terms(torch.tensor(z), torch.tensor(y)), terms)
    np.testing.assert_allclose(static(torch.tensor(z), torch.tensor(y), 3), terms.sum(), rtol=1e-12)


def test_terms_are_the_class_losses_and_their_weighted_sum_is_the_loss(n_classes):
    z, y = samples(n_classes)
    loss = DynamicalCrossEntropy(n_classes, 70, 10)
    terms = loss.terms(torch.tensor(z), torch.tensor(y))
    log_p = np.log(softmax(z))
    expected = [-sum(log_p[j, i] for j in range(23) if y[j] == i) / 23 for i in range(n_classes)]
    np.testing.assert_allclose(terms, expected, rtol=1e-12)
    for step in range(0, 200, 9):
        weighted = sum(loss.class_weights(step)[i] * terms[i] for i in range(n_classes))
        np.testing.assert_allclose(loss(torch.tensor(z), torch.tensor(y), step), weighted, rtol=1e-12)


def value_and_gradient(loss, z, y, step):
    outputs = z.clone().requires_grad_()
    value = loss(outputs, y, step)
    return value.detach(), torch.autograd.grad(value, outputs)[0]


@pytest.mark.parametrize("name", DYNAMICAL)
def test_amplitude_one_is_the_static_loss_exactly(n_classes, name):
    z, y = map(torch.tensor, samples(n_classes))
    static_type, dynamical_type, options = DYNAMICAL[name]
    static, dynamical = static_type(n_classes, **options), dynamical_type(n_classes, 1, 10, **options)
    for step in range(25):
        assert torch.equal(dynamical.class_weights(step), static.class_weights(step))
        found, expected = value_and_gradient(dynamical, z, y, step), value_and_gradient(static, z, y, step)
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    assert torch.equal(dynamical.terms(z, y), static.terms(z, y))


def test_both_weightings_of_the_static_squared_error_are_one_loss(n_classes):
    z, y = map(torch.tensor, samples(n_classes))
    by_sample, by_component = (
        value_and_gradient(SquaredError(n_classes, weighting=weighting), z, y, 4)
        for weighting in ("sample", "component")
    )
    assert by_sample[0] == by_component[0]
    assert torch.equal(by_sample[1], by_component[1])


@pytest.mark.parametrize("name", DYNAMICAL)
def test_borders_between_periods_have_the_static_loss_and_the_middle_has_not(name):
    z, y = map(torch.tensor, samples(3))
    static_type, dynamical_type, options = DYNAMICAL[name]
    static, dynamical = static_type(3)(z, y, 0), dynamical_type(3, 70, 10, **options)
    for p in range(7):
        assert dynamical(z, y, 10 * p) == static
        assert abs(dynamical(z, y, 10 * p + 5) - static) > 0.01


def test_class_weights_come_for_many_steps_at_once():
    steps = np.arange(40).reshape(4, 10)
    for loss in (CrossEntropy(3), DynamicalCrossEntropy(3, 70, 10), SquaredError(3), DynamicalSquaredError(3, 70, 10)):
        weights = loss.class_weights(steps)
        assert weights.shape == (4, 10, 3)
        assert weights.dtype == torch.float64
        assert torch.equal(weights[2, 7], loss.class_weights(27))


@pytest.mark.parametrize("size", [1e3, 1e30, 1e300])
def test_large_outputs_neither_overflow_nor_lose_the_margin(size):
    outputs = torch.tensor([[size, 0.0], [size, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(CrossEntropy(2)(outputs, torch.tensor([0, 1]), 0), size / 2, rtol=1e-12)


@pytest.mark.parametrize("loss", [CrossEntropy(3), SquaredError(3)], ids=["cross entropy", "squared error"])
def test_a_class_without_samples_has_no_loss(loss):
    outputs = torch.randn(4, 3, dtype=torch.float64)
    terms = loss.terms(outputs, torch.tensor([0, 2, 2, 0]))
    assert terms[1] == 0
    assert (terms[[0, 2]] > 0).all()


@pytest.mark.parametrize("name", DYNAMICAL)
def test_float32_outputs_give_a_float32_loss_near_the_exact_one(name):
    z, y = samples(3)
    _, dynamical_type, options = DYNAMICAL[name]
    loss = dynamical_type(3, 70, 10, **options)
    single = loss(torch.tensor(z, dtype=torch.float32), torch.tensor(y), 5)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, loss(torch.tensor(z), torch.tensor(y), 5), rtol=1e-5)


@pytest.mark.parametrize("loss", [CrossEntropy(3), SquaredError(3), DynamicalSquaredError(3, 70, 10)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_any_integer_type_of_targets_is_good(loss, dtype):
    z, y = map(torch.tensor, samples(3))
    assert loss(z, y.to(dtype), 5) == loss(z, y, 5)


TRIANGLE = TriangleSchedule(3, 2.5, 7)
STORABLE = [
    TRIANGLE,
    SineSchedule(3, 2.5, 7),
    SquareSchedule(3, 2.5, 7, order="random", seed=4),
    StaticTail(TRIANGLE, start=12),
    DecayingAmplitude(TRIANGLE, time=20.5),
    StaticTail(DecayingAmplitude(SineSchedule(3, 2.5, 7, order="random"), time=9), start=30),
]


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(4),
        SquaredError(4),
        SquaredError(2, weighting="component"),
        DynamicalCrossEntropy(3, 2.5, 7),
        DynamicalSquaredError(3, 2.5, 7),
        *(DynamicalCrossEntropy(3, schedule=schedule) for schedule in STORABLE),
        *(DynamicalSquaredError(3, schedule=schedule) for schedule in STORABLE),
        *(DynamicalSquaredError(3, weighting="component", schedule=schedule) for schedule in STORABLE),
    ],
    ids=lambda loss: f"{loss.name} {loss.schedule and loss.schedule.name}",
)
def test_a_loss_is_built_again_from_its_config_through_json(loss):
    again = loss_from_config(json.loads(json.dumps(loss.config())))
    assert type(again) is type(loss)
    assert again.config() == loss.config()
    assert (again.n_classes, again.amplitude, again.period) == (loss.n_classes, loss.amplitude, loss.period)
    assert getattr(again, "weighting", None) == getattr(loss, "weighting", None)
    steps = np.arange(50)
    assert torch.equal(again.class_weights(steps), loss.class_weights(steps))
    z, y = map(torch.tensor, samples(loss.n_classes))
    assert again(z, y, 11) == loss(z, y, 11)


def test_a_config_may_give_amplitude_and_period_of_a_triangle():
    loss = loss_from_config({"name": "dynamical_squared_error", "n_classes": 3, "amplitude": 2.5, "period": 7})
    assert (loss.schedule, loss.weighting) == (TRIANGLE, "sample")


def test_a_loss_whose_schedule_is_a_function_is_not_built_again_but_says_what_to_do():
    def rising(step):
        return np.stack([1 + step, 1 + 0 * step], axis=-1)

    loss = DynamicalCrossEntropy(2, schedule=FunctionSchedule(rising, 2))
    z, y = samples(2)
    weights = np.array([8, 2]) / 5  # raw weights 4 and 1 at step 3
    expected = -np.mean(weights[y] * np.log(softmax(z)[np.arange(23), y]))
    np.testing.assert_allclose(loss(torch.tensor(z), torch.tensor(y), 3), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"schedule was a function, .*; give the loss again: loss=…"):
        loss_from_config(json.loads(json.dumps(loss.config())))


@pytest.mark.parametrize("config", [{"name": "hinge", "n_classes": 3}, {"n_classes": 3}, {}])
def test_unknown_losses_are_refused_with_those_known(config):
    with pytest.raises(ValueError, match=r"unknown loss .*cross_entropy, .*dynamical_squared_error"):
        loss_from_config(config)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=int), r"outputs must have shape \(n_samples, 3\), got \(4, 2\)"),
        (torch.zeros(3), torch.zeros(3, dtype=int), r"outputs must have shape \(n_samples, 3\), got \(3,\)"),
        (torch.zeros(4, 3), torch.zeros(3, dtype=int), r"targets must have shape \(4,\), got \(3,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=int), r"targets must have shape \(4,\), got \(4, 1\)"),
        (torch.zeros(4, 3), torch.zeros(4), "integer type, got torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=bool), "integer type, got torch.bool"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.complex64), "integer type, got torch.complex64"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_refused(outputs, targets, message):
    for static_type, dynamical_type, options in DYNAMICAL.values():
        for loss in (static_type(3, **options), dynamical_type(3, 70, 10, **options)):
            for call in (lambda loss=loss: loss(outputs, targets, 0), lambda loss=loss: loss.terms(outputs, targets)):
                with pytest.raises(ValueError, match=message) as caught:
                    call()
                assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DYNAMICAL)
@pytest.mark.parametrize("target", [3, -1, -3, 100])
def test_targets_beyond_the_classes_are_never_counted_in_silence(name, target):
    static_type, dynamical_type, options = DYNAMICAL[name]
    targets = torch.tensor([1, target])
    for loss in (static_type(3, **options), dynamical_type(3, 70, 10, **options)):
        for call in (
            lambda loss=loss: loss(torch.zeros(2, 3), targets, 0),
            lambda loss=loss: loss.terms(torch.zeros(2, 3), targets),
        ):
            with pytest.raises(ValueError, match=rf"targets must be classes 0 … 2, got {min(1, target)} to") as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(1), "n_classes must be at least 2, got 1"),
        (lambda: SquaredError(0), "n_classes must be at least 2, got 0"),
        (lambda: DynamicalCrossEntropy(3, amplitude=0.99, period=10), "amplitude must be .* at least 1 .*got 0.99"),
        (lambda: DynamicalSquaredError(3, amplitude=-70, period=10), "amplitude must be .* at least 1 .*got -70"),
        (lambda: DynamicalSquaredError(3, amplitude=np.nan, period=10), "amplitude must be a finite number"),
        (lambda: DynamicalCrossEntropy(3, amplitude=70, period=1), "period must be at least 2 steps, got 1"),
        (lambda: DynamicalSquaredError(3, amplitude=70, period=0), "period must be at least 2 steps, got 0"),
        (lambda: DynamicalCrossEntropy(3), "needs an amplitude and a period, or a schedule"),
        (lambda: DynamicalSquaredError(3), "needs an amplitude and a period, or a schedule"),
        (lambda: DynamicalCrossEntropy(3, amplitude=70), "needs an amplitude and a period, or a schedule"),
        (lambda: DynamicalSquaredError(3, period=70), "needs an amplitude and a period, or a schedule"),
        (lambda: DynamicalCrossEntropy(3, 70, 10, schedule=TRIANGLE), "either an amplitude and a period, or a sched"),
        (lambda: DynamicalSquaredError(3, period=10, schedule=TRIANGLE), "either an amplitude and a period, or a sch"),
        (lambda: DynamicalCrossEntropy(4, schedule=TRIANGLE), "schedule is of 3 classes, the loss of 4"),
        (lambda: DynamicalSquaredError(2, schedule=StaticTail(TRIANGLE, 9)), "schedule is of 3 classes, the loss of 2"),
        (lambda: SquaredError(3, weighting="pixel"), "weighting must be .sample. or .component., got 'pixel'"),
        (lambda: DynamicalSquaredError(3, 70, 10, weighting=None), "weighting must be .* got None"),
        (lambda: loss_from_config({"name": "cross_entropy"}), "loss cross_entropy: missing .*'n_classes'"),
        (
            lambda: loss_from_config({"name": "cross_entropy", "n_classes": 3, "amplitude": 70}),
            "loss cross_entropy: got an unexpected keyword argument 'amplitude'",
        ),
        (
            lambda: loss_from_config({"name": "squared_error", "n_classes": 3, "weighting": "pixel"}),
            "weighting must be",
        ),
        (
            lambda: loss_from_config({"name": "dynamical_cross_entropy", "n_classes": 3, "schedule": {"name": "saw"}}),
            "unknown schedule 'saw'; known schedules: triangle, sine, square, static_tail, decaying_amplitude",
        ),
        (
            lambda: loss_from_config(
                {"name": "dynamical_cross_entropy", "n_classes": 4, "schedule": TRIANGLE.config()}
            ),
            "schedule is of 3 classes, the loss of 4",
        ),
    ],
)
def test_settings_that_make_no_loss_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_function_given_as_a_schedule_is_told_what_makes_one_of_it():
    with pytest.raises(ValueError, match=r"FunctionSchedule\(function, n_classes\)"):
        DynamicalCrossEntropy(3, schedule=lambda step: np.ones(3))
