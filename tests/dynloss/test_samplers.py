"""Mini-batches: uniform ones take each sample once an epoch, oscillating ones follow the class weights."""

import json

import numpy as np
import pytest
import torch

import dynloss
from dynloss import (
    DynamicalCrossEntropy,
    DynamicalSquaredError,
    OscillatingSampler,
    SineSchedule,
    SquaredError,
    StaticTail,
    TriangleSchedule,
    UniformSampler,
)
from dynloss.samplers import sampler_from_config


def epoch(sampler, number, n_batches):
    return [sampler(step) for step in range(number * n_batches, (number + 1) * n_batches)]


@pytest.mark.parametrize(("n_samples", "batch_size"), [(12, 4), (10, 4), (10, 9), (7, 1), (7, 7), (300, 64), (1, 1)])
def test_an_epoch_takes_every_sample_once_and_only_its_last_batch_is_smaller(n_samples, batch_size):
    sampler, n_batches = UniformSampler(n_samples, batch_size, seed=3), int(np.ceil(n_samples / batch_size))
    for number in range(4):
        batches = epoch(sampler, number, n_batches)
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (n_batches - 1)
        assert len(batches[-1]) == n_samples - batch_size * (n_batches - 1)
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(n_samples))
        assert all(batch.dtype == torch.int64 for batch in batches)


def test_every_epoch_has_an_order_of_its_own():
    sampler = UniformSampler(50, 8, seed=3)
    orders = [torch.cat(epoch(sampler, number, 7)).tolist() for number in range(20)]
    assert len(set(map(tuple, orders))) == 20
    assert list(range(50)) not in orders


def test_orders_are_uniform():
    sampler = UniformSampler(3, 3, seed=0)
    orders = np.array([sampler(step).numpy() @ [9, 3, 1] for step in range(1200)])
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # χ² of five degrees of freedom exceeds it once in 1000


def samplers(seed):
    targets = torch.arange(3).repeat_interleave(7)
    return [UniformSampler(21, 5, seed=seed), OscillatingSampler(targets, 5, TriangleSchedule(3, 70, 10), seed=seed)]


@pytest.mark.parametrize("kind", [0, 1], ids=["uniform", "oscillating"])
def test_batches_depend_on_seed_and_step_alone(kind):
    first, again, other = (samplers(seed)[kind] for seed in (6, 6, 7))
    steps = list(range(60))
    expected = [first(step).tolist() for step in steps]
    np.random.default_rng(0).shuffle(steps)
    for step in steps:  # in any sequence, with whole epochs left out between
        assert again(step).tolist() == expected[step]
        assert again(np.int64(step)).tolist() == expected[step]
    assert sum(other(step).tolist() == expected[step] for step in steps) < 5
    assert len(set(map(tuple, expected))) > 50


def test_drawing_leaves_the_global_random_states_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for sampler in samplers(0):
        sampler(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def share(step, amplitude, period, order=(0, 1, 2)):
    """Γ(step)/3 of three classes by the formula of the triangle."""
    raw = np.ones(3)
    raw[order[step // period % 3]] = np.interp(step % period, [0, period / 2, period], [1, amplitude, 1])
    return raw / raw.sum()


def deviations(amplitude, seed):
    """Of the class counts over each of three periods, one for each class, in standard errors (period, class)."""
    targets, period, size = torch.arange(3).repeat(20), 120, 200
    sampler, found = OscillatingSampler(targets, size, TriangleSchedule(3, amplitude, period), seed=seed), []
    for first in range(0, 3 * period, period):
        steps = range(first, first + period)
        counts = np.array([np.bincount(targets[sampler(step)], minlength=3) for step in steps])
        p = np.array([share(step, amplitude, period) for step in steps])
        assert counts.sum(1).tolist() == [size] * period
        # Not in the sum alone: step by step, they are those of independent draws, χ² of two degrees of freedom a step.
        squares = ((counts - size * p) ** 2 / (size * p)).sum()
        assert abs(squares - 2 * period) < 4 * np.sqrt(4 * period)
        found.append((counts - size * p).sum(0) / np.sqrt(size * (p * (1 - p)).sum(0)))
    return np.array(found)


@pytest.mark.parametrize("seed", [0, 1])
def test_class_frequencies_over_a_period_follow_the_class_weights_within_three_standard_errors(seed):
    assert (np.abs(deviations(70, seed)) < 3).all()


def test_over_many_periods_amplitudes_and_seeds_the_frequencies_scatter_as_independent_draws_do():
    found = np.stack([deviations(amplitude, seed) for amplitude in (1, 4, 70) for seed in range(4)])
    assert np.abs(found).max() < 4.5
    assert (np.abs(found) > 3).sum() <= 3  # of 108; 0.3 are expected
    assert 0.8 < found.std() < 1.2


def test_where_a_class_is_emphasised_it_fills_the_batch_and_under_a_static_tail_no_more():
    targets = torch.arange(3).repeat_interleave(40)
    sampler = OscillatingSampler(targets, 1000, StaticTail(SineSchedule(3, 1e6, 100), start=300))
    for step, label in [(50, 0), (150, 1), (250, 2)]:
        assert (targets[sampler(step)] == label).all()
    for step in (100, 350):
        assert np.bincount(targets[sampler(step)], minlength=3).min() > 333 - 5 * np.sqrt(1000 * 2 / 9)


def gradient(loss, theta, inputs, targets, step, weights=None):
    """∇ of the loss, or of its average over the single samples with `weights`, at a small network's flat θ."""
    theta = theta.clone().requires_grad_()
    w, u = theta.split([14, 21])
    outputs = torch.tanh(inputs @ w.reshape(7, 2).T) @ u.reshape(3, 7).T
    if weights is None:
        value = loss(outputs, targets, step)
    else:
        one_by_one = [loss(outputs[j : j + 1], targets[j : j + 1], step) for j in range(len(targets))]
        value = weights @ torch.stack(one_by_one)
    return torch.autograd.grad(value, theta)[0].numpy()


LOSSES = {
    "cross entropy": (dynloss.CrossEntropy(3), DynamicalCrossEntropy(3, 70, 10)),
    "squared error": (SquaredError(3), DynamicalSquaredError(3, 70, 10, weighting="sample")),
}


@pytest.mark.parametrize("step", [0, 3, 5, 16, 29])
@pytest.mark.parametrize("name", LOSSES)
def test_the_expected_gradient_of_the_static_loss_is_that_of_the_dynamical_loss(name, step):
    static, dynamical = LOSSES[name]
    inputs, targets = dynloss.spiral(9, 3, seed=0)
    sampler = OscillatingSampler(targets, 200_000, TriangleSchedule(3, 70, 10), seed=2)
    p = share(step, 70, 10)[targets.numpy()] / 9  # the probability of each sample in a draw
    counts = np.bincount(sampler(step), minlength=27)
    assert (np.abs(counts - 200_000 * p) < 5 * np.sqrt(200_000 * p * (1 - p))).all()
    theta = torch.from_numpy(np.random.default_rng(1).standard_normal(35))
    expected = gradient(dynamical, theta, inputs, targets, step)
    over_draws = gradient(static, theta, inputs, targets, step, weights=torch.from_numpy(p))
    np.testing.assert_allclose(over_draws, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_with_classes_of_unequal_size_the_expected_gradient_has_the_same_direction():
    static, dynamical = LOSSES["cross entropy"]
    keep = [0, 1, 2, 3, 9, 10, 18]  # four, two and one of the classes
    inputs, targets = (part[keep] for part in dynloss.spiral(9, 3, seed=0))
    weights = share(5, 70, 10)[targets.numpy()]
    p = weights / weights.sum()
    counts = np.bincount(OscillatingSampler(targets, 200_000, TriangleSchedule(3, 70, 10))(5), minlength=7)
    assert (np.abs(counts - 200_000 * p) < 5 * np.sqrt(200_000 * p * (1 - p))).all()
    theta = torch.from_numpy(np.random.default_rng(1).standard_normal(35))
    over_draws = gradient(static, theta, inputs, targets, 5, weights=torch.from_numpy(p))
    expected = gradient(dynamical, theta, inputs, targets, 5) * 7 / (3 * weights.sum())
    np.testing.assert_allclose(over_draws, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [0, 1], ids=["uniform", "oscillating"])
def test_a_sampler_is_built_again_from_its_config_through_json(kind):
    sampler = samplers(8)[kind]
    again = sampler_from_config(json.loads(json.dumps(sampler.config())), torch.arange(3).repeat_interleave(7))
    assert type(again) is type(sampler)
    assert again.config() == sampler.config()
    assert again.n_samples == sampler.n_samples == 21
    for step in range(30):
        assert torch.equal(again(step), sampler(step))


TARGETS, SCHEDULE = torch.tensor([0, 1, 2, 1]), TriangleSchedule(3, 70, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformSampler(10, 0), "batch_size must be between 1 and 10, the number of samples, got 0"),
        (lambda: UniformSampler(10, 11), "batch_size must be between 1 and 10, the number of samples, got 11"),
        (lambda: UniformSampler(10, -1), "batch_size must be between 1 and 10"),
        (lambda: UniformSampler(0, 1), "batch_size must be between 1 and 0"),
        (lambda: OscillatingSampler(TARGETS, 0, SCHEDULE), "batch_size must be at least 1, got 0"),
        (lambda: OscillatingSampler(TARGETS + 1, 5, SCHEDULE), r"targets must be classes 0 … 2 of the schedule"),
        (lambda: OscillatingSampler(TARGETS - 1, 5, SCHEDULE), r"targets must be classes 0 … 2 of the schedule"),
        (lambda: OscillatingSampler(TARGETS[:0], 5, SCHEDULE), "at least one"),
        (lambda: sampler_from_config({"name": "stratified"}, TARGETS), "unknown sampler 'stratified'; known samplers"),
        (lambda: sampler_from_config({}, TARGETS), "unknown sampler None; known samplers: uniform, oscillating"),
    ],
)
def test_settings_that_make_no_sampler_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_batch_that_oscillates_may_be_larger_than_the_data():
    assert OscillatingSampler(TARGETS, 50, SCHEDULE)(5).shape == (50,)
