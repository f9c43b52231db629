"""Surfaces to turn by hand in a web page, with a slider over the phases of an oscillating landscape."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr
from cmcrameri import cm
from matplotlib.colors import to_hex

from viz.axes import sentence
from viz.dataset import coordinate, label, read
from viz.surface import LIFT, PATH, PLANE, height_range, height_ticks, heights, on_surface

TEXT, GRID, CLEAR = "#808080", "#a0a0a0", "rgba(0, 0, 0, 0)"  # read on white and on black; the paper is transparent


def interactive_surface(
    planes: xr.Dataset,
    path: xr.Dataset | None = None,
    *,
    scale: str = "linear",
    cap: float | None = None,
    tail: int | None = None,
    height: int = 520,
):
    """The loss over a plane as a surface to turn by mouse, with a slider over its frames and the states on it.

    All frames share the vertical axis and the colours.

    Parameters
    ----------
    planes : xarray.Dataset
        `loss` (alpha, beta) and one more dim, over which the slider goes: the same plane at several phases, as
        ``landscape.reweight(plane, weights)`` returns it for ``weights`` (phase, class), or planes of several steps
        joined by `xarray.concat`. Without that dim there is no slider.
    path : xarray.Dataset, optional
        `alpha`, `beta` (step), as `landscape.project` returns them. A state stands where the surface of the frame is
        below it, interpolated linearly; those outside the plane are left out.
    scale : {"linear", "log"}
        Of heights and colours.
    cap : float, optional
        Higher losses are drawn at this height, so that a valley between steep walls is seen.
    tail : int, optional
        Where the slider goes over `step`: show only the last so many states up to the frame's step.
    height : int
        Of the figure, in pixels; it is as wide as the page.

    Returns
    -------
    plotly.graph_objects.Figure
        It shows itself in a notebook; ``figure.write_html(path, auto_play=False)`` makes one file of it.

    Raises
    ------
    ModuleNotFoundError
        If plotly is not installed.
    ValueError
        If `loss` has other dims, or a tail is asked for without steps.
    """
    go = _plotly()
    loss, frame_dim = _frames(planes)
    alpha, beta = coordinate(loss, "alpha"), coordinate(loss, "beta")
    shown = heights(np.asarray(loss, dtype=float), scale, cap)
    low, high = height_range(shown)
    ticks, texts = height_ticks(low, high, scale, cap)
    at = coordinate(loss, frame_dim) if frame_dim in loss.coords else np.arange(len(loss))
    if tail is not None and (frame_dim != "step" or path is None or tail < 1):
        raise ValueError(f"tail shows the last states up to a frame's step: it needs a path and a dim step, got {tail}")

    def surface(i: int):
        # plotly has beta in rows
        return go.Surface(z=shown[i].T.astype(np.float32), **(look if i == 0 else {}))

    def states(i: int):
        x, y = (np.asarray(read(path, name, ("step",), source=PATH), dtype=float) for name in ("alpha", "beta"))
        step = coordinate(path["alpha"], "step")
        if tail is not None:
            upto = np.flatnonzero(step <= at[i])[-tail:]
            x, y, step = x[upto], y[upto], step[upto]
        z = on_surface(x, y, alpha, beta, shown[i]) + LIFT * (high - low)
        x, y, z = (values.astype(np.float32) for values in (x, y, z))
        own = dots | {"marker": dots["marker"] | {"color": step}} if i == 0 or tail is not None else {}
        where = {"x": x, "y": y, "text": [f"step {s:,}" for s in step]} if own else {}
        return go.Scatter3d(z=z, **where, **own)

    name = sentence(_html(label(loss, "loss F")))
    value = "log₁₀ loss" if scale == "log" else "loss"
    look = {
        "x": alpha.astype(np.float32),
        "y": beta.astype(np.float32),
        "colorscale": _colorscale(cm.lapaz),
        "cmin": low,
        "cmax": high,
        "colorbar": {"title": {"text": name, "side": "top"}, "tickvals": ticks, "ticktext": texts, "thickness": 12,
                     "len": 0.7, "outlinewidth": 0},
        "contours": {"z": {"show": True, "color": "rgba(255, 255, 255, 0.35)", "width": 1, "start": low, "end": high,
                           "size": (high - low) / 14}},
        "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9},
        "hovertemplate": f"α %{{x:.3f}}<br>β %{{y:.3f}}<br>{value} %{{z:.3g}}<extra></extra>",
    }  # fmt: skip
    dots = {
        "mode": "lines+markers",
        "line": {"color": "#e8e8e8", "width": 2},
        "marker": {"size": 4.5, "colorscale": _colorscale(cm.lajolla), "line": {"color": "black", "width": 1}},
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
    }
    drawn = [[surface(i), *([states(i)] if path is not None else [])] for i in range(len(shown))]
    figure = go.Figure(drawn[0], layout=_layout(loss, name, low, high, ticks, texts, height))
    if frame_dim is not None:
        figure.frames = [go.Frame(data=data, name=str(i)) for i, data in enumerate(drawn)]
        figure.update_layout(**_slider(loss, frame_dim, at))
    return figure


def _plotly():
    try:
        import plotly.graph_objects as go
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "interactive_surface needs plotly: install it by pip install -e '.[gallery]', or pip install plotly",
            name="plotly",
        ) from None
    return go


def _frames(planes: xr.Dataset) -> tuple[xr.DataArray, str | None]:
    """The loss (frame, alpha, beta), and the name of its first dim; None where it has two dims only."""
    found = planes["loss"].dims if isinstance(planes, xr.Dataset) and "loss" in planes else ()
    others = tuple(dim for dim in found if dim not in ("alpha", "beta"))
    if len(others) > 1:
        raise ValueError(f"loss must have dims alpha, beta and one for the slider, got {found}: select one item")
    loss = read(planes, "loss", (*others, "alpha", "beta"), source=PLANE)
    return (loss, str(others[0])) if others else (loss.expand_dims("frame"), None)


def _layout(loss: xr.DataArray, name: str, low: float, high: float, ticks, texts, height: int) -> dict:
    alpha, beta = coordinate(loss, "alpha"), coordinate(loss, "beta")
    axis = {
        "showbackground": False,
        "showgrid": True,
        "gridcolor": GRID,
        "zeroline": False,
        "showspikes": False,
        "nticks": 5,
    }
    span = np.ptp(alpha), np.ptp(beta)
    titles = [
        sentence(_html(label(loss[dim], f"{letter} along v{i}"))) + " (in θ)" * (not loss[dim].attrs.get("units"))
        for i, (dim, letter) in enumerate((("alpha", "α"), ("beta", "β")), 1)
    ]  # fmt: skip
    scene = {
        "xaxis": axis | {"title": {"text": titles[0]}},
        "yaxis": axis | {"title": {"text": titles[1]}},
        "zaxis": axis | {"title": {"text": name}, "range": [low, high], "tickvals": ticks, "ticktext": texts},
        "aspectmode": "manual",
        "aspectratio": {"x": 1.0, "y": float(span[1] / span[0]), "z": 0.65},
        "camera": {"eye": {"x": 1.15, "y": -1.45, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.15}},
    }
    return {
        "template": "none",
        "scene": scene,
        "height": height,
        "margin": {"l": 0, "r": 0, "t": 10, "b": 95},
        "paper_bgcolor": CLEAR,
        "modebar": {"bgcolor": CLEAR, "color": TEXT, "remove": ["orbitRotation", "resetCameraLastSave3d"]},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": TEXT},
    }


def _slider(loss: xr.DataArray, dim: str, at: np.ndarray) -> dict:
    """A slider over the frames, and buttons that run through them and stop."""
    text = sentence(_html(label(loss[dim], dim) if dim in loss.coords else dim))
    now = {"mode": "immediate", "transition": {"duration": 0}}
    steps = [
        {"method": "animate", "label": _number(value),
         "args": [[str(i)], now | {"frame": {"duration": 0, "redraw": True}}]}
        for i, value in enumerate(at)
    ]  # fmt: skip
    run = {"frame": {"duration": 120, "redraw": True}, "fromcurrent": True, "transition": {"duration": 0}}
    buttons = [
        {"label": "▶", "method": "animate", "args": [None, run]},
        {"label": "❚❚", "method": "animate", "args": [[None], now | {"frame": {"duration": 0, "redraw": True}}]},
    ]
    look = {"bordercolor": GRID, "bgcolor": "rgba(128, 128, 128, 0.15)", "yanchor": "top"}
    value = {"prefix": f"{text} ", "xanchor": "left"}
    slider = {
        "steps": steps,
        "y": 0,
        "x": 0.02,
        "len": 0.96,
        "pad": {"t": 18},
        "tickcolor": GRID,
        "currentvalue": value,
    }
    menu = {
        "type": "buttons",
        "direction": "left",
        "buttons": buttons,
        "showactive": False,
        "y": 1,
        "x": 0,
        "xanchor": "left",
    }
    return {"sliders": [look | slider], "updatemenus": [look | menu]}


def _number(value) -> str:
    kind = np.asarray(value).dtype.kind
    return f"{value:,}" if kind in "iu" else f"{value:.3g}" if kind == "f" else str(value)


def _colorscale(colors, n: int = 33) -> list[list]:
    """A map of matplotlib's as plotly wants it."""
    return [[i / (n - 1), to_hex(colors(i / (n - 1)))] for i in range(n)]


def _html(text: str) -> str:
    """Symbols such as $v_1$ as HTML: there is no TeX in these figures."""
    text = re.sub(r"\$v_\{?(\w)\}?\$", r"v<sub>\1</sub>", text)
    return text.replace(r"\alpha", "α").replace(r"\beta", "β").replace("$", "")
