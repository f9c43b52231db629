"""Orbits of known period, and trajectories whose motion begins to reverse at a known step."""

import itertools

import numpy as np
import pytest
import xarray as xr

from landscape import bifurcation_diagram, find_onsets, motion


def signal_of(values, steps=None, **attrs):
    values = np.asarray(values, float)
    return xr.DataArray(values, {"step": np.arange(len(values)) if steps is None else steps}, "step", attrs=attrs)


def logistic(r, n, x=0.3, transient=5000):
    orbit = np.empty(n)
    for i in range(-transient, n):
        x = r * x * (1 - x)
        if i >= 0:
            orbit[i] = x
    return orbit


def periods(values, window=64, **options):
    found = bifurcation_diagram(signal_of(values), window, **options).orbit_period.values
    assert np.isnan(found[: window - 1]).all()
    return set(found[window - 1 :].tolist())


# At r = 3.55 the third doubling moves the orbit by less than a tenth, at the default tolerance none.
@pytest.mark.parametrize(("r", "period"), [(2.8, 1), (3.2, 2), (3.5, 4), (3.55, 8), (3.83, 3), (3.7389, 5)])
@pytest.mark.parametrize("window", [64, 150])
def test_windows_of_the_logistic_map_have_their_known_periods(r, period, window):
    assert periods(logistic(r, 400), window, rtol=0.03) == {period}


@pytest.mark.parametrize(("r", "period"), [(2.8, 1), (3.2, 2), (3.5, 4), (3.83, 3), (3.9, 0), (4.0, 0)])
def test_strong_doublings_and_chaos_are_told_apart_at_the_default_tolerance(r, period):
    assert periods(logistic(r, 400)) == {period}


time = np.arange(400)


@pytest.mark.parametrize(
    ("values", "period"),
    [
        (np.zeros(400), 1),
        (np.full(400, 0.1), 1),
        (np.full(400, 1e8 / 3), 1),
        (0.3 * time - 2, 1),
        (time**2, 1),
        (np.exp(-time / 40), 1),
        (np.exp(time / 40), 1),
        (np.sin(2 * np.pi * time / 400), 1),
        (0.5 * time + (-1.0) ** time, 2),
        (5 * time + (-1.0) ** time, 1),  # still moves one way
        (1e-9 * (-1.0) ** time, 2),
        (0.01 * time + np.array([0, 1, 0.2])[time % 3], 3),
        (np.random.default_rng(0).standard_normal(16)[time % 16], 16),
        (np.random.default_rng(0).standard_normal(17)[time % 17], np.inf),
        (np.random.default_rng(0).standard_normal(20)[time % 20], np.inf),
        (np.random.default_rng(0).standard_normal(400), 0),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else f"period {value}",
)
def test_rest_drift_and_cycles_of_other_signals(values, period):
    assert periods(values) == {period}


def smallest_period_by_definition(window, rtol):
    time = np.arange(len(window))
    slope, start = np.polyfit(time, window, 1)
    detrended = window - slope * time - start
    limit = max(rtol * np.std(detrended), abs(slope))
    for p in range(1, len(window) // 2 + 1):
        if np.std(window[p:] - window[:-p]) <= limit:
            return p if p <= 16 else np.inf
    return 0


@pytest.mark.parametrize("seed", range(6))
def test_the_period_is_the_smallest_shift_within_the_tolerance(seed):
    rng = np.random.default_rng(seed)
    cycle = rng.standard_normal(rng.integers(2, 25))
    values = np.resize(cycle, 300) + np.linspace(0, 5, 300) + np.linspace(0, 1, 300) * rng.standard_normal(300)
    found = bifurcation_diagram(signal_of(values), 70, rtol=0.35).orbit_period.values[69:]
    expected = [smallest_period_by_definition(values[i : i + 70], 0.35) for i in range(231)]
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_infinite_losses_of_a_diverged_run_change_by_what_they_do():
    found = bifurcation_diagram(signal_of([*range(60), np.inf, np.inf, np.nan]), 40)
    np.testing.assert_array_equal(found.change[-4:], [1, np.inf, np.nan, np.nan])
    assert np.isnan(found.orbit_period[-3:]).all()
    assert found.orbit_period[-4] == 1


def test_many_rows_are_the_same_as_few():
    values = np.concatenate([logistic(r, 900) for r in (2.8, 3.2, 3.5, 3.9, 3.83)])
    whole = bifurcation_diagram(signal_of(values), 64).orbit_period.values
    for start in (0, 1990, 2040, 4000):  # rows are worked through 2048 at a time
        part = bifurcation_diagram(signal_of(values[start : start + 200]), 64).orbit_period.values[63:]
        np.testing.assert_array_equal(part, whole[start + 63 : start + 200])


def test_a_window_belongs_to_the_step_at_its_end():
    found = bifurcation_diagram(signal_of((-1.0) ** time[:100], np.arange(500, 600)), 40).orbit_period
    assert np.isnan(found.sel(step=slice(500, 538))).all()
    assert (found.sel(step=slice(539, None)) == 2).all()
    assert found.sizes["step"] == 100


def test_nan_and_gaps_leave_every_window_that_holds_them_unknown():
    values = (-1.0) ** np.arange(200)
    values[60], values[120] = np.nan, np.inf
    found = bifurcation_diagram(signal_of(values), 40).orbit_period
    known = np.r_[39:60, 100:120, 160:200]
    assert np.flatnonzero(np.isfinite(found)).tolist() == known.tolist()
    steps = np.r_[0:60, 61:121]  # step 60 was not recorded
    found = bifurcation_diagram(signal_of((-1.0) ** steps, steps), 40)
    assert found.step.values[np.isfinite(found.orbit_period)].tolist() == [*range(39, 60), *range(100, 121)]
    assert (found.orbit_period.dropna("step") == 2).all()
    assert found.step.values[np.isnan(found.change)].tolist() == [0, 61]


def test_change_is_the_difference_to_the_step_before():
    values = np.random.default_rng(1).standard_normal(50)
    found = bifurcation_diagram(signal_of(values, long_name="Loss", units="nats"), 40)
    expected = [np.nan, *(b - a for a, b in itertools.pairwise(values))]
    np.testing.assert_array_equal(found.change, expected)
    assert found.change.attrs["long_name"] == "Change of Loss"
    assert found.attrs["window"] == 40


@pytest.mark.parametrize("n", [0, 1, 10, 63])
def test_a_signal_shorter_than_the_window_has_no_period(n):
    found = bifurcation_diagram(signal_of(np.arange(n)), 64)
    assert found.change.sizes["step"] == found.orbit_period.sizes["step"] == n
    assert np.isnan(found.orbit_period).all()


@pytest.mark.parametrize(
    ("signal", "options", "message"),
    [
        (xr.DataArray(np.zeros((3, 2)), dims=("step", "mode"), coords={"step": range(3)}), {}, "dims .*'mode'"),
        (xr.DataArray(np.zeros(3), dims="time"), {}, r"dims \('time',\)"),
        (xr.DataArray(np.zeros(3), dims="step"), {}, "with its coordinate"),
        (signal_of(np.zeros(99)), {"window": 33}, "window must be at least 34 steps, got 33"),
        (signal_of(np.zeros(99)), {"rtol": 0}, "rtol must lie between 0 and 1, got 0"),
        (signal_of(np.zeros(99)), {"rtol": 1.0}, "rtol must lie between 0 and 1, got 1.0"),
        (signal_of(np.zeros(99)), {"rtol": np.nan}, "rtol must lie between 0 and 1, got nan"),
    ],
)
def test_signals_windows_and_tolerances_that_do_not_fit_are_refused(signal, options, message):
    with pytest.raises(ValueError, match=message):
        bifurcation_diagram(signal, **options)


FORWARD, NEITHER, REVERSING = 0.9, -0.7, -0.99


def turning(*parts, norm=1.0, first_step=0, **attrs):
    """A history whose row t, of Δ_{t−1}, has the cosine of its part; parts are (cosine, number of rows)."""
    cosine = np.concatenate([np.full(n, value) for value, n in parts])
    rows = {
        "update_norm": ("step", np.broadcast_to(norm, len(cosine)).astype(float)),
        "update_cosine": ("step", cosine),
    }
    return xr.Dataset(rows, {"step": first_step + np.arange(len(cosine))}, attrs)


def onsets(history):
    return find_onsets(history).onset_step.values.tolist()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(FORWARD, 20), (REVERSING, 20)], [19]),  # row 20 is the first to reverse, and belongs to Δ_19
        ([(FORWARD, 19), (REVERSING, 40)], []),  # not armed
        ([(FORWARD, 30), (REVERSING, 19)], []),
        ([(FORWARD, 30), (REVERSING, 19), (FORWARD, 1), (REVERSING, 20)], [49]),
        ([(FORWARD, 30), (REVERSING, 200)], [29]),  # once only
        ([(FORWARD, 30), (NEITHER, 500), (REVERSING, 30)], [529]),  # armed for as long as it takes
        ([(FORWARD, 19), (NEITHER, 1), (FORWARD, 19), (REVERSING, 30)], []),
        ([(FORWARD, 30), (REVERSING, 30), (FORWARD, 20), (REVERSING, 20)], [29, 79]),
        ([(FORWARD, 30), (REVERSING, 30), (FORWARD, 19), (REVERSING, 20)], [29]),  # not armed again
        ([(FORWARD, 10), (REVERSING, 1)] * 9, []),
        ([(-0.5, 30), (REVERSING, 30)], []),
        ([(-0.4999, 30), (REVERSING, 30)], [29]),
        ([(FORWARD, 30), (-0.98, 30)], []),
        ([(FORWARD, 30), (-0.9801, 30)], [29]),
        ([(FORWARD, 15), (np.nan, 1), (FORWARD, 15), (REVERSING, 30)], []),
        ([(FORWARD, 30), (REVERSING, 15), (np.nan, 1), (REVERSING, 15)], []),
        ([(FORWARD, 30), (REVERSING, 15), (np.nan, 1), (REVERSING, 20)], [45]),
        ([(np.nan, 60)], []),
    ],
)
def test_onset_is_the_first_of_twenty_reversals_after_twenty_forward_steps(parts, expected):
    assert onsets(turning(*parts)) == expected
    assert onsets(turning(*parts, first_step=1000)) == [step + 1000 for step in expected]


def test_oscillations_that_shrink_are_no_onset_until_they_grow():
    rows = np.arange(100)
    parts = (FORWARD, 30), (REVERSING, 70)
    assert onsets(turning(*parts, norm=0.99**rows)) == []
    assert onsets(turning(*parts, norm=1.01**rows)) == [29]
    # ‖Δ‖ = 1 + |row − 60|: row r is at least as long as row r − 19 from r = 70 on (10 ≥ 9; at 69 it is 9 < 10).
    assert onsets(turning(*parts, norm=1 + np.abs(rows - 60.0))) == [70 - 19 - 1]


def test_a_step_that_was_not_recorded_ends_a_count():
    history = turning((FORWARD, 30), (REVERSING, 30))
    assert onsets(history.drop_isel(step=[15])) == []
    assert onsets(history.drop_isel(step=[39])) == [39]  # rows 40 … 59 reverse: the first belongs to Δ_39
    assert onsets(history.drop_isel(step=[41])) == []
    assert onsets(history.isel(step=slice(0, None, 2))) == []


@pytest.mark.parametrize("onset", [21, 50])
@pytest.mark.parametrize("first_step", [0, 730])
def test_a_path_that_doubles_its_period_at_a_known_step(onset, first_step):
    # Δ_t = e_x before; from t = onset on it alternates along e_x with growing length, beside a slow drift along e_y.
    t = np.arange(onset + 25)
    along_x = np.where(t < onset, 1.0, (-1.0) ** (t - onset + 1) * 1.01 ** (t - onset))
    updates = np.stack([along_x, np.full(len(t), 0.05)], axis=1)
    params = np.cumsum([[3.0, -1.0], *updates], axis=0)
    path = xr.Dataset({"params": (("step", "param"), params)}, {"step": first_step + np.arange(len(params))})
    assert onsets(motion(path)) == [first_step + onset]
    # c_1 is the first cosine that is defined, so 20 of them need onset ≥ 21.
    assert onsets(motion(path.isel(step=slice(onset - 20, None)))) == []
    assert onsets(motion(path.isel(step=slice(onset - 21, None)))) == [first_step + onset]
    assert onsets(motion(path.drop_sel(step=first_step + onset + 10))) == []


def onsets_by_definition(updates):
    """As in science.md, word by word; updates (t, param) are Δ_t."""
    norm = np.linalg.norm(updates, axis=1)
    c = [np.nan, *(a @ b / (m * n) for a, b, m, n in zip(updates, updates[1:], norm, norm[1:], strict=False))]
    found, armed, disarmed_at = [], False, 0
    for t in range(len(updates)):
        armed = armed or (t - 19 > disarmed_at and all(c[s] > -0.5 for s in range(t - 19, t + 1)))
        fires = t >= 19 and all(c[s] < -0.98 for s in range(t - 19, t + 1)) and norm[t] >= norm[t - 19]
        if armed and fires:
            found.append(t - 19)
            armed, disarmed_at = False, t
    return found


@pytest.mark.parametrize("seed", range(5))
def test_onsets_of_random_walks_with_spells_of_reversal_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    updates = [np.array([1.0, 0.0])]
    for reverses in [False, True] * 12:
        for _ in range(rng.integers(15, 40)):
            jitter = 1 + 0.02 * rng.standard_normal()
            updates.append((-jitter if reverses else jitter) * updates[-1] + 0.03 * rng.standard_normal(2))
    params = np.cumsum([[0.0, 0.0], *updates], axis=0)
    path = xr.Dataset({"params": (("step", "param"), params)}, {"step": np.arange(len(params))})
    expected = onsets_by_definition(np.diff(params, axis=0))
    assert onsets(motion(path)) == expected
    assert expected


def test_phase_is_the_fraction_of_the_period_and_nan_where_there_is_none():
    parts = (FORWARD, 30), (REVERSING, 30), (FORWARD, 30), (REVERSING, 30)
    found = find_onsets(turning(*parts, first_step=970, period=400))
    assert found.onset_step.values.tolist() == [999, 1059]
    np.testing.assert_allclose(found.onset_phase, [199 / 400, 259 / 400], rtol=1e-12)
    assert found.attrs["period"] == 400
    found = find_onsets(turning(*parts))
    assert np.isnan(found.onset_phase).all()
    assert found.onset_phase.dims == found.onset_step.dims == ("onset",)


@pytest.mark.parametrize("n", [0, 1, 25])
def test_a_history_without_onsets_gives_none(n):
    found = find_onsets(turning((FORWARD, n), period=100))
    assert found.sizes["onset"] == 0
    assert {"onset_step", "onset_phase"} <= set(found.data_vars)


def test_a_history_without_motion_is_refused_and_the_remedy_named():
    history = turning((FORWARD, 30)).drop_vars("update_cosine")
    with pytest.raises(ValueError, match=r"lacks update_cosine; landscape\.motion\(checkpoints\)"):
        find_onsets(history)
