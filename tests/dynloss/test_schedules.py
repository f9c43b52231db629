"""Class weights against a formula written another way, and where an error by one step would show."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloss import DecayingAmplitude, FunctionSchedule, SineSchedule, SquareSchedule, StaticTail, TriangleSchedule
from dynloss.schedules import Schedule, schedule_from_config


def swinging(step):
    """Raw weights of three classes, (…, 3)."""
    return 2 + np.stack([np.sin(step), np.cos(step), 0 * step], axis=-1)


SCHEDULES = {
    "triangle": TriangleSchedule(3, 70, 10),
    "sine": SineSchedule(3, 70, 10),
    "square": SquareSchedule(3, 70, 10),
    "triangle in random order": TriangleSchedule(3, 70, 10, order="random", seed=1),
    "sine in random order": SineSchedule(3, 70, 10, order="random", seed=2),
    "square in random order": SquareSchedule(3, 70, 10, order="random"),
    "static tail": StaticTail(TriangleSchedule(3, 70, 10), start=37),
    "decaying amplitude": DecayingAmplitude(SineSchedule(3, 70, 10), time=25),
    "decaying, then static": StaticTail(
        DecayingAmplitude(SquareSchedule(3, 70, 10, order="random"), time=50), start=95
    ),
    "function": FunctionSchedule(swinging, 3, period=7),
    "tail of a function": StaticTail(FunctionSchedule(swinging, 3), start=40),
}
EVERY = pytest.mark.parametrize("name", SCHEDULES)
WAVES = pytest.mark.parametrize("kind", [TriangleSchedule, SineSchedule, SquareSchedule])


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


@EVERY
@pytest.mark.parametrize("steps", [17, np.int64(17), [17, 3], range(4), np.arange(6).reshape(2, 3), torch.arange(55)])
def test_steps_of_any_shape_give_one_row_each(name, steps):
    schedule = SCHEDULES[name]
    weights = schedule(steps)
    assert weights.dtype == torch.float64
    assert weights.shape == (*np.shape(steps), 3)
    for index in np.ndindex(np.shape(steps)):
        assert torch.equal(weights[index], schedule(int(np.asarray(steps)[index])))


@EVERY
def test_every_schedule_is_positive_and_sums_to_the_number_of_classes(name):
    weights = SCHEDULES[name](np.arange(400)).numpy()
    np.testing.assert_allclose(weights.sum(1), 3, rtol=0, atol=1e-12)
    assert (weights > 0).all()
    assert (np.ptp(weights, axis=1) > 0.1).any()  # it does oscillate


@WAVES
@pytest.mark.parametrize("order", ["cyclic", "random"])
@pytest.mark.parametrize("period", [2, 3, 10, 5000])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_every_wave_is_exactly_one_at_the_borders_and_in_its_middle_reaches_the_amplitude(
    kind, order, period, n_classes
):
    schedule, periods = kind(n_classes, 70, period, order=order), period * np.arange(3 * n_classes)
    np.testing.assert_array_equal(schedule(periods), np.ones((3 * n_classes, n_classes)))
    middle = np.sort(schedule(periods + period // 2), axis=1)
    if period % 2 == 0:
        np.testing.assert_allclose(middle[:, -1] / middle[:, 0], 70, rtol=1e-12)
    assert (middle[:, -1] / middle[:, 0] > 46).all()
    np.testing.assert_array_equal(middle[:, :-1], middle[:, :1] * np.ones(n_classes - 1))  # one class only
    assert schedule.name == kind.name


def by_waves(step, n_classes, amplitude, period, wave):
    """Γ(step) of a class order 0, 1, …, from the height of its wave as a function of the fraction of the period."""
    p, position = divmod(step, period)
    raw = np.ones(n_classes)
    raw[p % n_classes] += (amplitude - 1) * wave(position / period)
    return raw / raw.mean()


@pytest.mark.parametrize("period", [2, 3, 7, 8, 100, 5000])
@pytest.mark.parametrize(("n_classes", "amplitude"), [(2, 1.5), (3, 70), (10, 1)])
@pytest.mark.parametrize(
    ("kind", "wave"),
    [
        (SineSchedule, lambda x: (1 - np.cos(2 * np.pi * x)) / 2),
        (SquareSchedule, lambda x: float(0.25 <= x < 0.75)),
        (TriangleSchedule, lambda x: 1 - abs(2 * x - 1)),
    ],
)
def test_weights_are_those_of_the_wave(kind, wave, n_classes, amplitude, period):
    steps = np.unique(np.linspace(0, 2 * n_classes * period + 1, 300).astype(int))
    expected = [by_waves(int(step), n_classes, amplitude, period, wave) for step in steps]
    np.testing.assert_allclose(kind(n_classes, amplitude, period)(steps), expected, rtol=0, atol=1e-12)


@WAVES
def test_amplitude_one_is_the_static_loss_for_every_wave(kind):
    np.testing.assert_array_equal(kind(4, 1, 13, order="random")(np.arange(100)), np.ones((100, 4)))


def emphasised(schedule, n_periods):
    """The class with the largest weight in the middle of each period."""
    return schedule(np.arange(n_periods) * schedule.period + schedule.period // 2).numpy().argmax(1)


@WAVES
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_in_random_order_every_class_has_exactly_one_period_in_each_cycle(kind, n_classes):
    schedule = kind(n_classes, 5, 8, order="random", seed=1)
    cycles = emphasised(schedule, 60 * n_classes).reshape(60, n_classes)
    np.testing.assert_array_equal(np.sort(cycles, axis=1), np.tile(np.arange(n_classes), (60, 1)))
    assert len(np.unique(cycles, axis=0)) > 1
    weights = schedule(np.arange(8 * n_classes)).numpy().reshape(n_classes, 8, n_classes)
    for period, favoured in zip(weights, cycles[0], strict=True):  # one class throughout its period
        assert (period.argmax(1)[period.max(1) > 1] == favoured).all()
        others = np.delete(period, favoured, axis=1)
        np.testing.assert_array_equal(others, np.tile(others[:, :1], n_classes - 1))


def test_random_orders_are_uniform():
    orders = emphasised(SineSchedule(3, 5, 4, order="random", seed=0), 3 * 1200).reshape(-1, 3) @ [9, 3, 1]
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # χ² of five degrees of freedom exceeds it once in 1000


def test_random_orders_are_repeated_by_the_same_seed_in_any_sequence_of_calls_and_changed_by_another():
    first, again, other = (TriangleSchedule(5, 9, 6, order="random", seed=seed) for seed in (3, 3, 4))
    steps = np.random.default_rng(0).permutation(600)
    expected = first(np.arange(600))[steps]
    assert torch.equal(again(steps), expected)
    assert torch.equal(torch.stack([again(int(step)) for step in steps]), expected)
    assert not torch.equal(other(steps), expected)


def test_a_random_order_has_the_waves_of_the_cyclic_one():
    cyclic, shuffled = (SineSchedule(4, 9, 10, order=order, seed=3)(np.arange(200)) for order in ("cyclic", "random"))
    np.testing.assert_allclose(np.sort(cyclic, axis=1), np.sort(shuffled, axis=1), rtol=1e-14)
    assert not torch.equal(cyclic, shuffled)


@pytest.mark.parametrize("start", [0, 1, 23, 30, 10**6])
def test_a_static_tail_leaves_what_was_before_and_is_exactly_one_from_its_start(start):
    for schedule in (TriangleSchedule(3, 70, 10), FunctionSchedule(swinging, 3)):
        steps = np.arange(60)
        weights, before = StaticTail(schedule, start)(steps), schedule(steps)
        assert torch.equal(weights[steps < start], before[steps < start])
        np.testing.assert_array_equal(weights[steps >= start], np.ones(((steps >= start).sum(), 3)))


@pytest.mark.parametrize("time", [0.5, 7, 1e6])
def test_a_decaying_amplitude_is_that_of_the_formula_and_exactly_one_at_borders(time):
    schedule = DecayingAmplitude(TriangleSchedule(3, 70, 10), time)
    for step in range(65):
        p, position = divmod(step, 10)
        raw = np.ones(3)
        raw[p % 3] += 69 * np.exp(-step / time) * (1 - abs(position - 5) / 5)
        np.testing.assert_allclose(schedule(step), 3 * raw / raw.sum(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(schedule(10 * np.arange(9)), np.ones((9, 3)))


def test_schedules_nest_and_keep_period_classes_and_amplitude():
    schedule = StaticTail(DecayingAmplitude(SineSchedule(4, 9, 10), time=15), start=33)
    assert (schedule.n_classes, schedule.period, schedule.amplitude) == (4, 10, 9)
    for step in range(50):
        raw = np.ones(4)
        if step < 33:
            raw[step // 10 % 4] += 8 * np.sin(np.pi * step / 10) ** 2 * np.exp(-step / 15)
        np.testing.assert_allclose(schedule(step), 4 * raw / raw.sum(), rtol=0, atol=1e-12)


def test_a_function_gives_the_weights_of_its_values():
    schedule = FunctionSchedule(swinging, 3, period=7)
    assert (schedule.n_classes, schedule.period, schedule.amplitude) == (3, 7, None)
    for step in (0, 5, 1000):
        raw = np.array([2 + np.sin(step), 2 + np.cos(step), 2])
        np.testing.assert_allclose(schedule(step), 3 * raw / raw.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda step: np.ones(3), r"must give weights \(2, 3\), got shape \(3,\)"),
        (lambda step: np.ones((*step.shape, 4)), r"must give weights \(2, 3\), got shape \(2, 4\)"),
        (lambda step: 1.0, r"must give weights \(2, 3\), got shape \(\)"),
        (lambda step: np.ones((*step.shape, 3)) * [1, 0, 1], "positive and finite"),
        (lambda step: -np.ones((*step.shape, 3)), "positive and finite"),
        (lambda step: np.full((*step.shape, 3), np.nan), "positive and finite"),
        (lambda step: np.full((*step.shape, 3), np.inf), "positive and finite"),
    ],
)
def test_functions_that_give_no_weights_are_refused(function, message):
    with pytest.raises(ValueError, match=message) as caught:
        FunctionSchedule(function, 3)([0, 4])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if "function" not in name])
def test_a_schedule_is_built_again_from_its_config_through_json(name):
    schedule = SCHEDULES[name]
    again = schedule_from_config(json.loads(json.dumps(schedule.config())))
    assert again == schedule
    assert again.config() == schedule.config()
    assert torch.equal(again(np.arange(200)), schedule(np.arange(200)))


@pytest.mark.parametrize("name", [name for name in SCHEDULES if "function" in name])
def test_a_schedule_with_a_function_cannot_be_built_again_and_says_so(name):
    config = json.loads(json.dumps(SCHEDULES[name].config()))
    with pytest.raises(ValueError, match="the schedule was a function, which a file cannot hold; give the loss again"):
        schedule_from_config(config)


TRIANGLE = {"name": "triangle", "n_classes": 3, "amplitude": 70, "period": 10}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "unknown schedule None; known schedules: triangle, sine, square, static_tail, decaying_amplitude"),
        ({"name": "saw"}, "unknown schedule 'saw'; known schedules: triangle"),
        ({"name": "triangle", "n_classes": 3}, "schedule triangle: missing a required argument: 'amplitude'"),
        (TRIANGLE | {"phase": 0}, "schedule triangle: got an unexpected keyword argument 'phase'"),
        (TRIANGLE | {"period": 1}, "period must be at least 2 steps, got 1"),
        (TRIANGLE | {"order": "sideways"}, "order must be .cyclic. or .random., got 'sideways'"),
        ({"name": "static_tail", "schedule": TRIANGLE}, "schedule static_tail: missing a required argument: 'start'"),
        ({"name": "static_tail", "start": -1, "schedule": TRIANGLE}, "start must be a step of at least 0, got -1"),
        ({"name": "static_tail", "start": 5, "schedule": {"name": "saw"}}, "unknown schedule 'saw'"),
        ({"name": "static_tail", "start": 5}, "schedule static_tail: missing a required argument: 'schedule'"),
        *(
            ({"name": "decaying_amplitude", "time": time, "schedule": TRIANGLE}, "time must be a positive number")
            for time in (0, -3, np.inf, np.nan)
        ),
    ],
)
def test_configs_that_make_no_schedule_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        schedule_from_config(config)
    assert "\n" not in str(caught.value)


def test_a_schedule_of_ones_own_needs_raw_weights_only():
    class Alternating(Schedule):
        n_classes = 2

        def raw(self, step):
            return np.stack([1 + step % 2, 2 - step % 2], axis=-1)

    weights = Alternating()([0, 1, 2])
    np.testing.assert_allclose(weights, [[2 / 3, 4 / 3], [4 / 3, 2 / 3], [2 / 3, 4 / 3]], rtol=1e-12)


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
@WAVES
def test_settings_that_make_no_wave_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


@WAVES
def test_amplitude_and_period_are_asked_for(kind):
    with pytest.raises(TypeError, match="missing 2 required positional arguments: 'amplitude' and 'period'"):
        kind(3)


@pytest.mark.parametrize("n_classes", [1, 0])
def test_a_function_of_fewer_than_two_classes_is_refused(n_classes):
    with pytest.raises(ValueError, match=f"n_classes must be at least 2, got {n_classes}"):
        FunctionSchedule(swinging, n_classes)


@pytest.mark.parametrize("options", [{"period": 10.5}, {"seed": -1, "order": "random"}])
def test_fractional_periods_and_negative_seeds_are_refused_at_once(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TriangleSchedule(**{"n_classes": 3, "amplitude": 5, "period": 10} | options)
