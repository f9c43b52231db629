"""What the commands of analyses say of their results, in a line."""

from __future__ import annotations


def span(values, digits: int = 4) -> str:
    """Smallest and largest finite value, and how many are none."""
    import numpy as np

    values = np.ravel(values)
    finite = values[np.isfinite(values)]
    missing = f", {len(values) - len(finite)} of {len(values)} missing" if len(finite) < len(values) else ""
    if not len(finite):
        return f"none of {len(values)} found"
    low, high = (f"{value:.{digits}g}" for value in (finite.min(), finite.max()))
    return (low if low == high else f"{low} … {high}") + missing


def say_eigenpairs(eigs) -> str:
    """Of `top_eigenpairs`."""
    certified = int(eigs.certified.all("mode").sum())
    return (
        f"λ1 {span(eigs.eigenvalue[:, 0])}; {certified} of {eigs.sizes['step']} steps certified, "
        f"{int(eigs.n_hvp.sum())} Hessian-vector products"
    )


def say_gradient(grads) -> str:
    """Of `gradient_decomposition`."""
    name = next(name for name in grads if str(name).startswith(("gradient", "update", "displacement")))
    return f"{str(name).replace('_', ' ')} {span(grads[name])}; dominant fraction {span(grads.dominant_fraction)}"


def say_valley(widths) -> str:
    """Of `valley_width`."""
    parts = [
        f"v{mode + 1} at a rise of {rise:g}: {span(widths.width.sel(mode=mode, rise=rise))}"
        for mode in widths.mode.values
        for rise in widths.rise.values
    ]
    return "width along " + "; ".join(parts)


def say_periods(periods) -> str:
    """Orbit periods, each with how often it was found."""
    import numpy as np

    names = {0.0: "aperiodic", np.inf: "longer than 16"}
    found, counts = np.unique(periods[np.isfinite(periods) | np.isinf(periods)], return_counts=True)
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return ", ".join(f"{names.get(value, f'{value:g}')} ({n})" for value, n in pairs) or "none"


def say_bifurcation(live) -> str:
    """Of `bifurcation_diagram`."""
    text = f"orbit periods, and how often: {say_periods(live.orbit_period.values)}"
    if "onset_step" not in live:
        return f"{text}; no onsets looked for without update_norm and update_cosine"
    return f"{text}; onsets at steps: {', '.join(map(str, live.onset_step.values)) or 'none'}"


def say_slice(found) -> str:
    """Of `line_slice` and `plane_slice`."""
    loss = found.loss.where(abs(found.loss) < float("inf")).load()
    if not loss.notnull().any():
        return "no loss is finite"
    lowest = loss.isel(loss.argmin(...))
    place = ", ".join(f"{axis} {float(lowest[axis]):.3g}" for axis in ("alpha", "beta") if axis in lowest.coords)
    return f"loss {span(found.loss.values)}, lowest at {place}"


def say_lyapunov(found) -> str:
    """Of `lyapunov_exponents` along a replay."""
    exponents = ", ".join(f"{value:.4g}" for value in found.finite_time_exponent.values)
    steps = found.step.values
    text = f"finite-time exponents {exponents} a step, from step {steps[0]} to {steps[-1]}"
    if not found.attrs.get("n_compared"):
        return f"{text}; the replay met no saved state"
    return f"{text}; saved states that the replay met differ by up to {found.attrs['largest_deviation']:.2g}"
