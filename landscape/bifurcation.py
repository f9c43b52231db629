"""Bifurcations that a recorded signal shows: the period of its orbit, and the onsets of oscillation."""

from __future__ import annotations

import numpy as np
import xarray as xr

LONGEST_PERIOD = 16
ROWS_PER_BATCH = 2048

ARMING_COSINE, FIRING_COSINE = -0.5, -0.98
CONSECUTIVE = 20
"""Updates in a row that arm, and that fire, the detector of onsets."""


def bifurcation_diagram(signal: xr.DataArray, window: int = 64, *, rtol: float = 0.2) -> xr.Dataset:
    """Change of a signal from step to step, and the period of its orbit in a sliding window that ends at each step.

    The orbit period is the smallest p in 1 … 16 for which x_t − x_{t−p} varies over the window by no more than
    rtol · std, with std that of the signal after its linear trend is removed. What stays below the trend's change per
    step does not count either: such a signal still moves one way, however it ripples. So 1 is smooth motion, or rest.

    Parameters
    ----------
    signal : xarray.DataArray
        Recorded at every step, dim step: the loss, or the projection of the states on an eigenvector (for the squared
        error, whose two-cycles are nearly symmetric, the projection).
    window : int
        Steps in the window, at least 2 · 16 + 2.
    rtol : float
        Relative tolerance, 0 < rtol < 1.

    Returns
    -------
    xarray.Dataset
        ``change`` (step): x_t − x_{t−1}, NaN in the first row and after a gap in the steps; ``orbit_period`` (step):
        inf where only a period longer than 16 (up to half a window) fits, 0 where none does, NaN where the window is
        not full, has a gap, or is not finite.

    Raises
    ------
    ValueError
        If the signal is not one-dimensional along step, its steps do not increase, or window or rtol is out of range.

    Examples
    --------
    >>> signal = xr.DataArray([0.0, 1.0] * 50, {"step": np.arange(100)}, "step")
    >>> bifurcation_diagram(signal, window=64).orbit_period.values[[10, 99]]
    array([nan,  2.])
    """
    if signal.dims != ("step",) or "step" not in signal.coords:
        raise ValueError(f"signal must be a DataArray along step, with its coordinate; got dims {signal.dims}")
    if window < 2 * LONGEST_PERIOD + 2:
        raise ValueError(f"window must be at least {2 * LONGEST_PERIOD + 2} steps, got {window}")
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie between 0 and 1, got {rtol}")
    steps, values = signal.step.values, signal.values.astype(float)
    if (np.diff(steps) <= 0).any():
        raise ValueError('the steps of signal must increase; use signal.drop_duplicates("step").sortby("step")')
    change = np.full(len(values), np.nan)
    consecutive = np.diff(steps) == 1
    with np.errstate(invalid="ignore"):  # inf − inf, where a diverged run is drawn
        change[1:] = np.where(consecutive, np.diff(values), np.nan)
    period = np.full(len(values), np.nan)
    if len(values) >= window:
        windows = np.lib.stride_tricks.sliding_window_view(values, window)
        whole = steps[window - 1 :] - steps[: 1 - window] == window - 1
        for start in range(0, len(windows), ROWS_PER_BATCH):
            part = slice(start, start + ROWS_PER_BATCH)
            found = orbit_periods(windows[part], rtol)
            period[window - 1 :][part] = np.where(whole[part], found, np.nan)
    name = signal.attrs.get("long_name", signal.name or "signal")
    return xr.Dataset(
        {
            "change": ("step", change, {"long_name": f"Change of {name}"}),
            "orbit_period": ("step", period, {"long_name": "Period of the orbit", "units": "steps"}),
        },
        {"step": signal.step},
        {**signal.attrs, "window": window, "rtol": rtol},
    )


def orbit_periods(windows: np.ndarray, rtol: float, rounding: np.ndarray | float = 0.0) -> np.ndarray:
    """Orbit period of each row of `windows` (row, window); variation up to `rounding`, (row,), counts as rest."""
    n_rows, length = windows.shape
    time = np.linspace(-1, 1, length)
    finite = np.isfinite(windows).all(axis=1)
    windows = np.where(finite[:, None], windows, 0.0)
    # A rise that rounding alone explains is none.
    rounding = rounding + 8 * np.finfo(float).eps * np.abs(windows).max(axis=1)
    centred = windows - windows.mean(axis=1, keepdims=True)
    slope = centred @ time / (time @ time)
    detrended = centred - np.outer(slope, time)
    limit = np.maximum(rtol * detrended.std(axis=1), np.abs(slope) * (time[1] - time[0])) + rounding
    period = np.zeros(n_rows)
    for p in range(length // 2, 0, -1):
        # About its mean, the trend over p steps: one fitted to a window that p does not divide would be off.
        variation = (windows[:, p:] - windows[:, :-p]).std(axis=1)
        period = np.where(variation <= limit, p if p <= LONGEST_PERIOD else np.inf, period)
    return np.where(finite, period, np.nan)


def find_onsets(history: xr.Dataset) -> xr.Dataset:
    """Steps at which the motion begins to reverse at every step: period-2 onsets.

    With Δ_t = θ_{t+1} − θ_t and c_t = cos(Δ_t, Δ_{t−1}): armed after 20 consecutive steps with c > −0.5, the detector
    fires at t when c < −0.98 for 20 consecutive steps and ‖Δ_t‖ ≥ ‖Δ_{t−19}‖. The onset is the first of these 20 steps,
    t − 19; then the detector is disarmed. It looks at no loss, class weight or phase, so it holds for every loss.

    Parameters
    ----------
    history : xarray.Dataset
        ``update_norm`` and ``update_cosine`` (step), recorded at every step: ``run.history``, or `landscape.motion` of
        any trajectory. Row t of it belongs to θ_t − θ_{t−1} = Δ_{t−1}. A gap in the steps, or NaN, ends a count.

    Returns
    -------
    xarray.Dataset
        ``onset_step`` (onset); ``onset_phase`` (onset), the fraction of the period, NaN where the attrs name no period.

    Raises
    ------
    ValueError
        If the history lacks update_norm or update_cosine.
    """
    missing = {"update_norm", "update_cosine"} - set(history.data_vars)
    if missing:
        raise ValueError(f"history lacks {', '.join(sorted(missing))}; landscape.motion(checkpoints) computes them")
    steps, norm, cosine = (history[name].values for name in ("step", "update_norm", "update_cosine"))
    onsets, armed, forward, reversing = [], False, 0, 0
    for row in range(len(steps)):
        if row and steps[row] != steps[row - 1] + 1:
            forward = reversing = 0
        forward = forward + 1 if cosine[row] > ARMING_COSINE else 0
        reversing = reversing + 1 if cosine[row] < FIRING_COSINE else 0
        armed = armed or forward >= CONSECUTIVE
        first = row - CONSECUTIVE + 1
        if armed and reversing >= CONSECUTIVE and norm[row] >= norm[first]:
            onsets.append(int(steps[first]) - 1)  # row t belongs to Δ_{t−1}
            armed, forward = False, 0
    onset = np.array(onsets, dtype=np.int64)
    period = history.attrs.get("period")
    phase = np.full(len(onset), np.nan) if period is None else onset % period / period
    return xr.Dataset(
        {
            "onset_step": ("onset", onset, {"long_name": "Step of the onset", "units": "steps"}),
            "onset_phase": ("onset", phase, {"long_name": "Phase of the onset"}),
        },
        attrs=dict(history.attrs),
    )
