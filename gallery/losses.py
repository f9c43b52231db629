r"""
Five losses and six schedules
=============================

A dynamical loss is a static one whose class terms are weighted:
:math:`F(\theta, t) = \sum_i \Gamma_i(t) F_i(\theta)`. Here are the cross entropy and the squared error, static and
dynamical, on the same data and from the same initial parameters; then the dynamical cross entropy under other schedules
of :math:`\Gamma`.
"""

# %%
# Five losses
# -----------
# For the squared error :math:`\Gamma` can weigh each sample by its class, or each component of the output. Two periods
# of 1,500 steps, 50 hidden units; the learning rate is 1 for cross entropies and 0.3 for squared errors, so that their
# stability thresholds differ.
import matplotlib.pyplot as plt

import dynloss
import landscape
import viz


def columns(names):
    """What is drawn of each example run, by its title."""
    runs = {}
    for name, title in names.items():
        with landscape.open_run(dynloss.example_run(name)) as run:
            history = run.history.load()
            eigenvalues = run.eigenpairs.drop_vars("eigenvector").load()
        onsets = landscape.find_onsets(history)
        live = landscape.bifurcation_diagram(history.loss)
        runs[title] = {
            "history": history,
            "live": live,
            "eigenvalues": eigenvalues,
            "onsets": onsets,
        }
        print(f"{name:<34} onsets at steps {onsets.onset_step.values}")
    return runs


losses = {
    "cross_entropy": "cross entropy",
    "dynamical_cross_entropy": "dynamical\ncross entropy",
    "squared_error": "squared error",
    "dynamical_squared_error_sample": "dynamical\nsquared error,\nby sample",
    "dynamical_squared_error_component": "dynamical\nsquared error,\nby component",
}
viz.plot_runs(columns(losses))
plt.show()

# %%
# The static losses reach the threshold and stay there, at the edge of stability; a dynamical one leaves it again when its
# landscape widens. The two-cycles of squared errors are nearly symmetric about the floor of the valley, so that the loss
# itself shows them badly: look at the onsets (dash-dotted), which are found in the motion.

# %%
# Six schedules
# -------------
# The paper's triangle, a sine, a square wave that jumps, the triangle with the classes in random order, with a static
# tail after step 1,000, and with a decaying amplitude. Four periods of 500 steps.
schedules = {
    "triangle": "triangle",
    "sine": "sine",
    "square": "square",
    "random_order": "random order",
    "static_tail": "static tail",
    "decaying_amplitude": "decaying\namplitude",
}
viz.plot_runs(columns(schedules))
plt.show()

# %%
# Oscillating mini-batches
# ------------------------
# An outlook of the paper: mini-batches whose class probabilities oscillate like :math:`\Gamma` have, on average, the
# gradient of the dynamical loss, while the loss stays static. Beside the dynamical cross entropy on all samples: the
# static one on batches of 50 samples drawn that way, and on uniform ones, at the same learning rate. The loss drawn is
# the one that each run descends, over all samples: weighted in (a), static in (b) and (c).
runs = {
    "triangle": "dynamical loss,\nall samples",
    "oscillating_batches": "static loss,\noscillating batches",
    "uniform_batches": "static loss,\nuniform batches",
}
with viz.style():
    _, axes = plt.subplots(
        3, 3, figsize=(7.2, 4.2), sharex="col", sharey="row", layout="constrained"
    )
    for column, (name, text) in zip(axes.T, runs.items(), strict=True):
        with landscape.open_run(dynloss.example_run(name)) as run:
            history = run.history.load()
        viz.plot_history(history, column[0], variable="loss", legend=False)
        viz.plot_history(
            history, column[1], variable="accuracy", linewidth=0.4, legend=False
        )
        viz.plot_history(
            history,
            column[2],
            variable="gradient_norm",
            linewidth=0.4,
            legend=False,
        )
        column[0].set_title(text, fontsize=7)
        end = history.isel(step=slice(-500, None))
        print(f"{name:<20} training accuracy over the last period: ", end="")
        print(
            f"mean {float(end.accuracy.mean()):.3f}, best {float(end.accuracy.max()):.3f}"
        )
    viz.panel_letters(axes[0])
plt.show()
