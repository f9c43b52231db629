"""The analyses on the command line: ``python -m landscape eigenpairs FILE`` and the like, one table of them."""

from __future__ import annotations

from pathlib import Path

import landscape
from landscape import analysis_words as words
from landscape.analysis import Analysis
from landscape.analysis_inputs import Inputs, Steps


def _eigenpairs(inputs: Inputs, options, out: Path):
    return landscape.top_eigenpairs(
        inputs.objective, inputs.at(options.steps), k=options.k, tol=options.tol, seed=options.seed, out=out
    )


def _gradient(inputs: Inputs, options, out: Path):
    eigs, source = inputs.eigenpairs(options.steps, options.k, options.tol, options.eigs)
    grads = landscape.gradient_decomposition(inputs.objective, inputs.checkpoints, eigs, vector=options.vector)
    return grads.assign_attrs(eigenpairs=source)


def _valley(inputs: Inputs, options, out: Path):
    k = max(options.modes) + 1
    eigs, source = inputs.eigenpairs(options.steps, k, options.tol, options.eigs)
    chosen = eigs.sel(mode=options.modes)
    widths = landscape.valley_width(
        inputs.objective, inputs.checkpoints, chosen, options.rise, half_width=options.half_width
    )
    return widths.assign_attrs(eigenpairs=source)


def _bifurcation(inputs: Inputs, options, out: Path):
    history = inputs.history
    if options.signal not in history or history[options.signal].dims != ("step",):
        found = ", ".join(name for name in history.data_vars if history[name].dims == ("step",))
        raise ValueError(f"{inputs.path} recorded no {options.signal!r} at each step; choose --signal among {found}")
    if options.steps is not None:
        history = history.sel(step=options.steps.among(history.step.values))
    signal = history[options.signal].load().assign_attrs(history.attrs | history[options.signal].attrs)
    live = landscape.bifurcation_diagram(signal, options.window, rtol=options.rtol)
    if {"update_norm", "update_cosine"} <= set(history):
        onsets = landscape.find_onsets(history)
        live = live.assign(onset_step=onsets.onset_step, onset_phase=onsets.onset_phase)
    return live


def _density(inputs: Inputs, options, out: Path):
    checkpoints = inputs.at(options.steps)
    return landscape.spectral_density(
        inputs.objective, checkpoints, n_vectors=options.n_vectors, n_lanczos=options.n_lanczos, seed=options.seed
    )


def _slice(inputs: Inputs, options, out: Path):
    checkpoint = inputs.one(options.step)
    n_axes, source = 1 if options.line else 2, None
    steps = None if options.at is None else options.at.named()
    if options.directions == "random":
        directions = landscape.random_directions(
            checkpoint, n_axes, normalisation=options.normalisation, seed=options.seed, layout=inputs.objective.layout
        )
    elif options.directions == "pca":
        directions = landscape.pca_directions(inputs.checkpoints, n_axes)
    else:
        modes = options.modes[:n_axes]
        if len(modes) < n_axes:
            raise ValueError("--modes must name two modes for a plane; --line takes one")
        at = Steps(str(int(checkpoint.step)))
        eigs, source = inputs.eigenpairs(at, max(modes) + 1, options.tol, options.eigs)
        directions = landscape.eigenvector_directions(eigs.isel(step=0), modes)
    function = landscape.line_slice if options.line else landscape.plane_slice
    found = function(
        inputs.objective,
        checkpoint,
        directions.isel(axis=0) if options.line else directions,
        half_width=options.half_width,
        n_points=options.points,
        steps=steps,
        terms=options.terms,
        quantities=options.quantities,
        out=out,
    )
    return found if source is None else found.assign_attrs(eigenpairs=source)


def _attractor(inputs: Inputs, options, out: Path):
    checkpoint = inputs.one(options.step)
    steps = options.at and options.at.named()
    if steps is None:
        period = checkpoint.attrs.get("period")
        if not period:
            raise ValueError("the run names no period of its loss; say at which steps to freeze it, --at 7500:10000:25")
        start = int(checkpoint.step) // int(period) * int(period)
        steps = list(range(start, start + int(period) + 1, max(1, int(period) // 100)))
    eigs, source = inputs.eigenpairs(Steps(str(int(checkpoint.step))), 1, options.tol, options.eigs)
    frozen = landscape.attractor_diagram(
        inputs.objective,
        checkpoint,
        steps=steps,
        eigs=eigs,
        n_transient=options.n_transient,
        n_keep=options.n_keep,
        learning_rate=options.learning_rate,
    )
    return frozen.assign_attrs(eigenpairs=source)


def _lyapunov(inputs: Inputs, options, out: Path):
    if options.step is None:  # so that the replay ends about where the run does
        saved = inputs.checkpoints.step.values
        options.step = int(saved[max(0, (saved <= saved[-1] - options.n_steps).sum() - 1)])
    dense = landscape.replay(
        inputs.objective,
        inputs.one(options.step),
        options.n_steps,
        learning_rate=options.learning_rate,
        checkpoints=inputs.checkpoints,
    )
    return landscape.lyapunov_exponents(inputs.objective, dense, options.k)


ANALYSES = {
    analysis.name: analysis
    for analysis in (
        Analysis(
            "eigenpairs",
            "largest eigenvalues and eigenvectors of the Hessian, with residuals and a certificate",
            {"steps": None, "k": 2, "tol": 1e-4, "seed": 0},
            _eigenpairs,
            words.say_eigenpairs,
            streams=True,
        ),
        Analysis(
            "gradient",
            "components of the gradient, or of the motion, on the top eigenvectors, and what lies outside of them",
            {"steps": None, "vector": "gradient", "k": None, "tol": 1e-4, "eigs": None},
            _gradient,
            words.say_gradient,
        ),
        Analysis(
            "valley",
            "width of the valley along eigenvectors: how far apart its walls are at a rise of the loss",
            {"steps": None, "rise": [0.05, 0.1], "modes": [0], "half_width": 10.0, "tol": 1e-4, "eigs": None},
            _valley,
            words.say_valley,
        ),
        Analysis(
            "bifurcation",
            "period of the orbit in a sliding window of what a run recorded, and onsets of oscillation",
            {"steps": None, "signal": "loss", "window": 64, "rtol": 0.2},
            _bifurcation,
            words.say_bifurcation,
        ),
        Analysis(
            "density",
            "density of all eigenvalues of the Hessian",
            {"steps": None, "n_vectors": 10, "n_lanczos": 80, "seed": 0},
            _density,
            lambda spectrum: f"Ritz values {float(spectrum.node.min()):.4g} … {float(spectrum.node.max()):.4g}",
        ),
        Analysis(
            "slice",
            "the loss on a plane, or a line, through a checkpoint",
            {
                "step": None,
                "at": None,
                "directions": "eigenvectors",
                "modes": [0, 1],
                "line": False,
                "half_width": 1.0,
                "points": 51,
                "terms": False,
                "quantities": (),
                "normalisation": "filter",
                "seed": 0,
                "tol": 1e-4,
                "eigs": None,
            },
            _slice,
            words.say_slice,
            streams=True,
        ),
        Analysis(
            "attractor",
            "attractors of the descent map with the loss frozen at each of many steps: the frozen bifurcation diagram",
            {
                "step": None,
                "at": None,
                "n_transient": 200,
                "n_keep": 64,
                "tol": 1e-4,
                "eigs": None,
                "learning_rate": None,
            },
            _attractor,
            lambda frozen: f"orbit periods, and how often: {words.say_periods(frozen.orbit_period.values)}",
        ),
        Analysis(
            "lyapunov",
            "Lyapunov exponents of the descent map along a run replayed from a checkpoint",
            {"step": None, "n_steps": 1000, "k": 2, "learning_rate": None},
            _lyapunov,
            words.say_lyapunov,
        ),
    )
}
