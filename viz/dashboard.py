"""One run on one page: move along its steps, and see weights, loss, curvature, section and gradient of each."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import xarray as xr

from viz.axes import sentence
from viz.dashboard_moment import gradient_bars, plain, rounded, sections, spectra, subscript
from viz.dataset import coordinate, label, read
from viz.history import LOGARITHMIC
from viz.style import BLACK, CLASS_COLORS, MODE_COLORS

HISTORY, EIGS, GRADS = "open_run(…).history", "landscape.top_eigenpairs", "landscape.gradient_decomposition"
MOST_POINTS = 2400
"""Points of a line on the page; of more, the smallest and the largest of each stretch of steps are kept."""


@dataclass(frozen=True)
class Dashboard:
    """A page that shows one run; a notebook shows it in a frame.

    Attributes
    ----------
    page : str
        The whole page: HTML that needs nothing else.
    """

    page: str

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page to `path`, for any browser, and return it."""
        path = Path(path)
        path.write_text(self.page, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        page = html.escape(self.page, quote=True)
        look = "width: 100%; height: 720px; border: 0"
        return f'<iframe class="dashboard" title="Dashboard of a run" style="{look}" srcdoc="{page}"></iframe>'

    def __repr__(self) -> str:
        return f"Dashboard({len(self.page.encode()) / 1000:.0f} kB)"


def dashboard(
    history: xr.Dataset,
    *,
    eigs: xr.Dataset | None = None,
    grads: xr.Dataset | None = None,
    planes: xr.Dataset | Sequence[xr.Dataset] = (),
    paths: xr.Dataset | Sequence[xr.Dataset] = (),
    spectrum: xr.Dataset | None = None,
    onsets: xr.Dataset | None = None,
    scale: str = "log",
    start: int | None = None,
    title: str = "",
) -> Dashboard:
    """A page with all that is known of a run, linked by the step: point at a panel, or move the slider.

    What is not given is not shown. Each panel shows its Dataset's step that is nearest to the one asked for, and says
    which it is. Select rows of the Datasets to show a part of a run.

    Parameters
    ----------
    history : xarray.Dataset
        `class_weight` (step, class), `loss`, `accuracy` (step), those that there are, as `open_run(…).history` holds
        them; attrs "period" gives the phase.
    eigs : xarray.Dataset, optional
        `eigenvalue` (step, mode), and `threshold` (step) where present, from `landscape.top_eigenpairs`.
    grads : xarray.Dataset, optional
        `component` (step, mode), `gradient_norm`, `bulk_norm` (step), from `landscape.gradient_decomposition`.
    planes : xarray.Dataset or sequence of xarray.Dataset
        `loss` (alpha, beta) with a scalar `step`, from `landscape.plane_slice`; all share their colours.
    paths : xarray.Dataset or sequence of xarray.Dataset
        For each plane `alpha`, `beta` (step), from `landscape.project`.
    spectrum : xarray.Dataset, optional
        `density` (step, eigenvalue), from `landscape.spectral_density`.
    onsets : xarray.Dataset, optional
        From `landscape.find_onsets`: drawn as vertical lines.
    scale : {"linear", "log"}
        Of the colours of sections.
    start : int, optional
        Step shown at first; the last one by default.
    title : str
        Stands above.

    Raises
    ------
    ValueError
        If a Dataset lacks what is needed, paths are not as many as planes, or the run has fewer than two steps.
    """
    panels = [_panel(history, name) for name in ("class_weight", "loss") if _held(history, name)]
    if eigs is not None:
        panels.append(_eigenvalues(eigs))
    if grads is not None:
        panels.append(_shares(grads))
    if not panels:
        raise ValueError(f"history holds neither class_weight nor loss: pass what {HISTORY} returns, or eigs, grads")
    steps = np.concatenate([series["x"] for panel in panels for series in panel["series"]])
    first, last = int(steps.min()), int(steps.max())
    if first == last:
        raise ValueError(f"a dashboard needs at least two steps, got step {first} only")
    words = [[i, j] for i, panel in enumerate(panels) for j, line in enumerate(panel["series"]) if line["word"]]
    if _held(history, "accuracy"):
        accuracy = read(history, "accuracy", ("step",), source=HISTORY)
        words.insert(0, {"word": "accuracy", **_thin(coordinate(accuracy, "step"), np.asarray(accuracy, dtype=float))})
    marks = [] if onsets is None else np.asarray(read(onsets, "onset_step", ("onset",), source="find_onsets"), float)
    data = {
        "title": title,
        "first": first,
        "last": last,
        "start": last if start is None else int(np.clip(start, first, last)),
        "period": history.attrs.get("period"),
        "onsets": [float(at) for at in marks if first <= at <= last],
        "panels": panels,
        "words": words,
        "sections": sections(planes, paths, scale),
        "spectrum": spectra(eigs, spectrum),
        "gradient": None if grads is None else gradient_bars(grads),
    }
    return Dashboard(_page(data))


def _page(data: dict) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain_number)
    parts = {
        "TITLE": html.escape(data["title"] or "Dashboard of a run"),
        "STYLE": _source("dashboard.css"),
        "CODE": _source("dashboard.js"),
        "DATA": text.replace("</", "<\\/"),
    }
    return re.sub("__(TITLE|STYLE|CODE|DATA)__", lambda found: parts[found[1]], _source("dashboard.html"))


def _source(name: str) -> str:
    return files("viz").joinpath(name).read_text(encoding="utf-8")


def _plain_number(value):
    return value.item() if isinstance(value, np.generic) else list(value)


def _held(history: xr.Dataset, name: str) -> bool:
    if not isinstance(history, xr.Dataset):
        raise TypeError(f"a dashboard draws an xarray.Dataset as {HISTORY} returns it, got {type(history).__name__}")
    return name in history


def _panel(history: xr.Dataset, name: str) -> dict:
    """A panel of one quantity of the history."""
    if name == "class_weight":
        values = read(history, name, ("step", "class"), source=HISTORY)
        colors = [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(values.sizes["class"])]
        names = [f"Γ{subscript(c)}" for c in coordinate(values, "class")]
        rows = values.transpose("class", "step")
        lines = [_series(row, name, color, "line", name) for row, name, color in zip(rows, names, colors, strict=True)]
        return _with_range("Class weights", lines, log=False)
    values = read(history, name, ("step",), source=HISTORY)
    return _with_range(
        sentence(plain(label(values, name))), [_series(values, "", BLACK, word=name)], log=name in LOGARITHMIC
    )


def _eigenvalues(eigs: xr.Dataset) -> dict:
    values = read(eigs, "eigenvalue", ("step", "mode"), source=EIGS)
    lines = [
        _series(
            values.isel(mode=i),
            f"λ{subscript(mode + 1)}",
            MODE_COLORS[i % len(MODE_COLORS)],
            "dots",
            f"λ{subscript(mode + 1)}",
        )
        for i, mode in enumerate(coordinate(values, "mode"))
    ]
    if "threshold" in eigs:
        threshold = read(eigs, "threshold", ("step",), source=EIGS)
        if np.isfinite(threshold).any():
            lines.append(_series(threshold, "", BLACK, "limit"))
    return _with_range("Eigenvalues of the Hessian", lines, log=False)


def _shares(grads: xr.Dataset) -> dict:
    bars = gradient_bars(grads)
    values = xr.DataArray(
        np.array(bars["values"], dtype=float), dims=("step", "part"), coords={"step": np.array(bars["step"])}
    )
    lines = [
        _series(values.isel(part=k), name, color, "dots")
        for k, (name, color) in enumerate(zip(bars["names"], bars["colors"], strict=True))
    ]
    return {"name": f"Shares of the {bars['vector']} norm", "log": False, "range": [0, 1.03], "series": lines}


def _series(values: xr.DataArray, text: str, color: str, kind: str = "line", word: str = "") -> dict:
    """One line of a panel; `word` names it among the numbers above the panels."""
    color = "var(--ink)" if color == BLACK else color
    line = _thin(coordinate(values, "step"), np.asarray(values, dtype=float))
    return {"label": text, "color": color, "kind": kind, "word": word, **line}


def _thin(step: np.ndarray, values: np.ndarray) -> dict:
    """The points as plain numbers; of many, the first smallest and the first largest of each stretch."""
    if len(step) > MOST_POINTS:
        kept = []
        for part in np.array_split(np.arange(len(step)), MOST_POINTS // 2):
            known = part[np.isfinite(values[part])]
            kept += (
                sorted({known[np.argmin(values[known])], known[np.argmax(values[known])]}) if len(known) else [part[0]]
            )
        step, values = step[kept], values[kept]
    return {"x": step.astype(int).tolist(), "y": rounded(values)}


def _with_range(name: str, lines: list[dict], *, log: bool) -> dict:
    values = np.array([y for line in lines for y in line["y"] if y is not None and (y > 0 or not log)], dtype=float)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.5, 1.0)
    if log:
        low, high = low / 1.1, high * 1.1
    else:
        room = 0.04 * ((high - low) or abs(high) or 1)
        low, high = low - room, high + room
    return {"name": name, "log": log, "range": [low, high], "series": lines}
