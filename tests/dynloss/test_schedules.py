"""Class weights against a formula written another way, and where an error by one step would show."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloss.schedules import TriangleSchedule


def gamma(step, n_classes, amplitude, period):
    """Γ(step) by interpolation between the corners of the triangle, one class at a time."""
    p, position = divmod(step, period)
    raw = [1.0] * n_classes
    raw[p % n_classes] = np.interp(position, [0, period / 2, period], [1, amplitude, 1])
    return np.array(raw) / np.mean(raw)


@pytest.mark.parametrize("period", [2, 3, 7, 10, 5000])
@pytest.mark.parametrize("amplitude", [1, 1.5, 70])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_weights_are_those_of_the_interpolated_triangle(n_classes, amplitude, period):
    schedule = TriangleSchedule(n_classes, amplitude, period)
    cycle = n_classes * period
    steps = np.unique(np.r_[np.linspace(0, 2 * cycle + 3, 400).astype(int), period * np.arange(1, 5) - 1])
    expected = [gamma(int(step), n_classes, amplitude, period) for step in steps]
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-12)
    np.testing.assert_allclose(np.stack([schedule(int(step)) for step in steps]), expected, rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    n_classes=st.integers(2, 12),
    amplitude=st.floats(1, 1e4),
    period=st.integers(2, 10**6),
    step=st.integers(0, 10**9),
)
def test_at_any_step_weights_are_positive_sum_to_the_classes_and_favour_one(n_classes, amplitude, period, step):
    weights = TriangleSchedule(n_classes, amplitude, period)(step).numpy()
    np.testing.assert_allclose(weights, gamma(step, n_classes, amplitude, period), rtol=1e-9)
    np.testing.assert_allclose(weights.sum(), n_classes, rtol=1e-12)
    lowest, highest = n_classes / (amplitude + n_classes - 1), n_classes * amplitude / (amplitude + n_classes - 1)
    assert (weights >= lowest * (1 - 1e-12)).all()
    assert (weights <= highest * (1 + 1e-12)).all()
    assert len(np.unique(weights)) <= 2


def test_three_classes_and_amplitude_70_lie_between_1_24th_and_35_12ths_and_reach_both():
    weights = TriangleSchedule(3, 70, 5000)(np.arange(30_000)).numpy()
    np.testing.assert_allclose(weights.sum(1), 3, rtol=1e-12)
    np.testing.assert_allclose([weights.min(), weights.max()], [1 / 24, 35 / 12], rtol=1e-12)
    np.testing.assert_allclose(weights[2500], [35 / 12, 1 / 24, 1 / 24], rtol=1e-12)
    np.testing.assert_allclose(weights.mean(0), 1, rtol=1e-9)  # over two whole cycles classes are treated alike


@pytest.mark.parametrize("period", [2, 3, 9, 10, 4999, 5000])
def test_at_every_border_between_periods_all_weights_are_one_and_beside_it_they_are_not(period):
    schedule, borders = TriangleSchedule(3, 70, period), period * np.arange(8)
    np.testing.assert_array_equal(schedule(borders), np.ones((8, 3)))
    beside = np.stack([schedule(borders + 1), schedule(borders + period - 1)])
    assert (np.abs(beside - 1) > 1e-3).all()


@pytest.mark.parametrize("period", [10, 5000])
def test_the_peak_stands_exactly_at_half_an_even_period_with_equal_slopes(period):
    schedule, half = TriangleSchedule(3, 70, period), period // 2

    def raw(steps):  # raw weight of the emphasised class, from Γ_0 / Γ_1
        weights = schedule(steps).numpy()
        return weights[:, 0] / weights[:, 1]

    rise = 2 * 69 / period
    np.testing.assert_allclose(raw([half - 1, half, half + 1]), [70 - rise, 70, 70 - rise], rtol=1e-12)
    np.testing.assert_allclose(raw([0, 1, period - 1]), [1, 1 + rise, 1 + rise], rtol=1e-12)


def test_an_odd_period_has_two_equal_highest_steps_below_the_peak():
    weights = TriangleSchedule(3, 70, 7)(np.arange(7)).numpy()
    raw = weights[:, 0] / weights[:, 1]
    np.testing.assert_allclose(raw, 1 + 69 * np.array([0, 2, 4, 6, 6, 4, 2]) / 7, rtol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_classes_take_turns_from_class_zero(n_classes):
    period = 11
    emphasised = TriangleSchedule(n_classes, 4, period)(np.arange(3 * n_classes) * period + 5).argmax(1)
    np.testing.assert_array_equal(emphasised, np.arange(3 * n_classes) % n_classes)
    last, first = TriangleSchedule(n_classes, 4, period)([period - 1, period + 1])
    assert last.argmax() == 0
    assert first.argmax() == 1


def test_amplitude_one_is_constant():
    np.testing.assert_array_equal(TriangleSchedule(4, 1, 13)(np.arange(100)), np.ones((100, 4)))


@pytest.mark.parametrize("steps", [17, np.int64(17), [17, 3], range(4), np.arange(6).reshape(2, 3), torch.arange(5)])
def test_steps_of_any_shape_give_one_row_each(steps):
    schedule = TriangleSchedule(3, 70, 10)
    weights = schedule(steps)
    assert weights.dtype == torch.float64
    assert weights.shape == (*np.shape(steps), 3)
    for index in np.ndindex(np.shape(steps)):
        assert torch.equal(weights[index], schedule(int(np.asarray(steps)[index])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 70, 10), "n_classes must be at least 2, got 1"),
        ((3, 0.5, 10), "amplitude .* got 0.5"),
        ((3, np.nan, 10), "amplitude .* got nan"),
        ((3, np.inf, 10), "amplitude .* got inf"),
        ((3, 70, 1), "period must be at least 2 steps, got 1"),
        ((3, 70, 0), "period must be at least 2 steps, got 0"),
    ],
)
def test_settings_that_make_no_triangle_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TriangleSchedule(*arguments)
