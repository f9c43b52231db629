"""Cross entropies, static and dynamical, against numpy: values, class terms and gradients."""

import json

import numpy as np
import pytest
import torch

from dynloss import CrossEntropy, DynamicalCrossEntropy
from dynloss.losses import loss_from_config


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


def test_amplitude_one_is_the_static_loss_exactly(n_classes):
    z, y = map(torch.tensor, samples(n_classes))
    static, dynamical = CrossEntropy(n_classes), DynamicalCrossEntropy(n_classes, 1, 10)
    for step in range(25):
        assert torch.equal(dynamical.class_weights(step), static.class_weights(step))
        assert dynamical(z, y, step) == static(z, y, step)


def test_borders_between_periods_have_the_static_loss_and_the_middle_has_not():
    z, y = map(torch.tensor, samples(3))
    static, dynamical = CrossEntropy(3)(z, y, 0), DynamicalCrossEntropy(3, 70, 10)
    for p in range(7):
        assert dynamical(z, y, 10 * p) == static
        assert abs(dynamical(z, y, 10 * p + 5) - static) > 0.01


def test_class_weights_come_for_many_steps_at_once():
    steps = np.arange(40).reshape(4, 10)
    for loss in (CrossEntropy(3), DynamicalCrossEntropy(3, 70, 10)):
        weights = loss.class_weights(steps)
        assert weights.shape == (4, 10, 3)
        assert weights.dtype == torch.float64
        assert torch.equal(weights[2, 7], loss.class_weights(27))


@pytest.mark.parametrize("size", [1e3, 1e30, 1e300])
def test_large_outputs_neither_overflow_nor_lose_the_margin(size):
    outputs = torch.tensor([[size, 0.0], [size, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(CrossEntropy(2)(outputs, torch.tensor([0, 1]), 0), size / 2, rtol=1e-12)


def test_a_class_without_samples_has_no_loss():
    outputs = torch.randn(4, 3, dtype=torch.float64)
    terms = CrossEntropy(3).terms(outputs, torch.tensor([0, 2, 2, 0]))
    assert terms[1] == 0
    assert (terms[[0, 2]] > 0).all()


def test_float32_outputs_give_a_float32_loss_near_the_exact_one():
    z, y = samples(3)
    loss = DynamicalCrossEntropy(3, 70, 10)
    single = loss(torch.tensor(z, dtype=torch.float32), torch.tensor(y), 5)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, loss(torch.tensor(z), torch.tensor(y), 5), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_any_integer_type_of_targets_is_good(dtype):
    z, y = map(torch.tensor, samples(3))
    assert CrossEntropy(3)(z, y.to(dtype), 0) == CrossEntropy(3)(z, y, 0)


@pytest.mark.parametrize("loss", [CrossEntropy(4), DynamicalCrossEntropy(3, 2.5, 7)], ids=["static", "dynamical"])
def test_a_loss_is_built_again_from_its_config_through_json(loss):
    again = loss_from_config(json.loads(json.dumps(loss.config())))
    assert type(again) is type(loss)
    assert again.config() == loss.config()
    assert (again.n_classes, again.amplitude, again.period) == (loss.n_classes, loss.amplitude, loss.period)
    steps = np.arange(50)
    assert torch.equal(again.class_weights(steps), loss.class_weights(steps))


@pytest.mark.parametrize("config", [{"name": "hinge", "n_classes": 3}, {"n_classes": 3}, {}])
def test_unknown_losses_are_refused_with_those_known(config):
    with pytest.raises(ValueError, match=r"unknown loss .*cross_entropy, dynamical_cross_entropy"):
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
    for loss in (CrossEntropy(3), DynamicalCrossEntropy(3, 70, 10)):
        with pytest.raises(ValueError, match=message):
            loss(outputs, targets, 0)


@pytest.mark.parametrize("target", [3, -1])
def test_targets_beyond_the_classes_are_never_counted_in_silence(target):
    with pytest.raises(RuntimeError, match="Class values must be"):
        CrossEntropy(3)(torch.zeros(2, 3), torch.tensor([0, target]), 0)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="n_classes must be at least 2, got 1"):
        CrossEntropy(1)
    with pytest.raises(ValueError, match="amplitude"):
        DynamicalCrossEntropy(3, amplitude=0, period=10)
    with pytest.raises(ValueError, match="period"):
        DynamicalCrossEntropy(3, amplitude=70, period=1)
