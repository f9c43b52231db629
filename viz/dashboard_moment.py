"""What a dashboard shows of a single step: its section, its spectrum, the parts of its gradient."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

import numpy as np
import xarray as xr
from cmcrameri import cm

from viz.axes import sentence
from viz.dataset import coordinate, label, read
from viz.style import GREEN, MODE_COLORS
from viz.surface import height_range

PLANE, PATH = "landscape.plane_slice", "landscape.project"
EIGS, GRADS, DENSITY = "landscape.top_eigenpairs", "landscape.gradient_decomposition", "landscape.spectral_density"
LEVELS = 255
"""Shades in which a section is sent; the number after the last one marks losses that are not finite."""
DENSITY_POINTS = 320
DECADES = 4
"""By how many powers of ten densities may lie below the highest to be drawn."""


def sections(
    planes: xr.Dataset | Sequence[xr.Dataset], paths: xr.Dataset | Sequence[xr.Dataset], scale: str
) -> dict | None:
    """Sections in shades of one common scale, and the states on each."""
    if scale not in ("linear", "log"):
        raise ValueError(f'scale must be "linear" or "log", got {scale!r}')
    planes, paths = ([one] if isinstance(one, xr.Dataset) else list(one) for one in (planes, paths))
    if paths and len(paths) != len(planes):
        raise ValueError(f"paths must be as many as planes, {len(planes)}, got {len(paths)}")
    if not planes:
        return None
    losses = [read(plane, "loss", ("alpha", "beta"), source=PLANE) for plane in planes]
    for plane in planes:
        if "step" not in plane.coords or plane["step"].ndim:
            raise ValueError("each plane needs a scalar coordinate step, as landscape.plane_slice gives it")
    finite = np.concatenate([values[np.isfinite(values)] for values in map(np.asarray, losses)])
    if not finite.size or (scale == "log" and finite.min() <= 0):
        raise ValueError(f'sections need finite losses, with scale="log" positive ones; got scale={scale!r}')
    low, high = height_range(finite)
    form = np.log10 if scale == "log" else np.asarray
    drawn = []
    order = np.argsort([int(plane["step"]) for plane in planes], kind="stable")
    for i in order:
        values = np.asarray(losses[i], dtype=float)
        part = (form(np.where(np.isfinite(values), values, low)) - form(low)) / (form(high) - form(low))
        shade = np.where(np.isfinite(values), np.rint(part * (LEVELS - 1)), LEVELS).astype(np.uint8)
        one = {
            "step": int(planes[i]["step"]),
            "shape": list(shade.shape),
            "values": base64.b64encode(shade.tobytes()).decode(),
            "names": [sentence(plain(label(losses[i][dim], dim))) for dim in ("alpha", "beta")],
            **{dim: _ends(coordinate(losses[i], dim), dim) for dim in ("alpha", "beta")},
        }
        if paths:
            one["path"] = {name: rounded(read(paths[i], name, ("step",), source=PATH)) for name in ("alpha", "beta")}
        drawn.append(one)
    colors = (np.asarray(cm.lapaz(np.linspace(0, 1, LEVELS)))[:, :3] * 255).round().astype(int).tolist()
    return {"range": [low, high], "log": scale == "log", "colors": colors, "planes": drawn}


def _ends(values: np.ndarray, dim: str) -> list[float]:
    spacing = np.diff(values)
    if len(values) < 2 or not np.allclose(spacing, spacing[0], rtol=1e-3) or spacing[0] <= 0:
        raise ValueError(f"{dim} must rise evenly for a dashboard, as in what landscape.plane_slice returns")
    return [float(values[0]), float(values[-1])]


def spectra(eigs: xr.Dataset | None, spectrum: xr.Dataset | None) -> dict | None:
    """The largest eigenvalues of each step, and the density of all where it is known."""
    found, ends = {}, []
    if eigs is not None:
        values = read(eigs, "eigenvalue", ("step", "mode"), source=EIGS)
        limit = read(eigs, "threshold", ("step",), source=EIGS) if "threshold" in eigs else None
        found["eigenvalues"] = {
            "step": coordinate(values, "step").astype(int).tolist(),
            "values": [rounded(row) for row in np.asarray(values, dtype=float)],
            "colors": [MODE_COLORS[i % len(MODE_COLORS)] for i in range(values.sizes["mode"])],
            "threshold": None if limit is None else rounded(limit),
        }
        ends += [float(values.min()), float(values.max()), *([] if limit is None else [float(limit.max())])]
    if spectrum is not None:
        density = read(spectrum, "density", ("step", "eigenvalue"), source=DENSITY)
        thinner = slice(None, None, -(-density.sizes["eigenvalue"] // DENSITY_POINTS))
        density = density.isel(eigenvalue=thinner)
        highest = float(density.max())
        found["density"] = {
            "step": coordinate(density, "step").astype(int).tolist(),
            "at": rounded(coordinate(density, "eigenvalue")),
            "values": [rounded(row, 3) for row in np.asarray(density.where(density > highest / 10**DECADES), float)],
            "range": [highest / 10**DECADES, 2 * highest],
        }
        ends += [float(density["eigenvalue"].min()), float(density["eigenvalue"].max())]
    ends = np.array(ends)[np.isfinite(ends)] if ends else np.array([])
    if not len(ends):
        return None
    low, high = min(0.0, ends.min()), ends.max()
    return found | {"range": [float(low - 0.03 * (high - low)), float(high + 0.03 * (high - low))]}


def gradient_bars(grads: xr.Dataset) -> dict:
    """Shares |cᵢ|/‖g‖ along each mode and outside of them, at each step."""
    vector = next((v for v in ("update", "displacement") if f"{v}_norm" in grads), "gradient")
    component = np.asarray(read(grads, "component", ("step", "mode"), source=GRADS), dtype=float)
    norm = np.asarray(read(grads, f"{vector}_norm", ("step",), source=GRADS), dtype=float)
    outside = np.asarray(read(grads, "bulk_norm", ("step",), source=GRADS), dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):  # a vector that is zero has no shares
        shares = np.column_stack([np.abs(component), outside]) / norm[:, None]
    return {
        "vector": vector,
        "step": coordinate(grads, "step").astype(int).tolist(),
        "names": [*(plain(f"$v_{m + 1}$") for m in coordinate(grads["component"], "mode")), "outside"],
        "colors": [*(MODE_COLORS[i % len(MODE_COLORS)] for i in range(component.shape[1])), GREEN],
        "values": [rounded(row) for row in shares],
    }


def rounded(values, digits: int = 4) -> list[float | None]:
    """Numbers of a few digits, and None where there is none: JSON knows no NaN."""
    return [float(f"{x:.{digits}g}") if np.isfinite(x) else None for x in np.asarray(values, dtype=float).tolist()]


def plain(text: str) -> str:
    """Symbols such as $v_1$ in letters that any font has."""
    text = re.sub(r"\$v_\{?(\d+)\}?\$", lambda found: f"v{subscript(found[1])}", text)
    return text.replace(r"\alpha", "α").replace(r"\beta", "β").replace("$", "")


def subscript(number) -> str:
    """A whole number in small low digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
