r"""
A run with a dynamical loss
===========================

Gradient descent on the cross entropy of three spiral arms, with class weights :math:`\Gamma_i(t)` that rise and fall
in turn. Each step descends the landscape of that step; the landscape moves under it. In the second half of a period
the loss :math:`F` grows, the largest eigenvalue of the Hessian reaches the stability threshold :math:`2/\eta`, and the
loss begins to jump at every step.

The run is the one of all these pages: one hidden layer of 100 units, amplitude :math:`A = 70`, period
:math:`T = 5000`, learning rate :math:`\eta = 1`, two periods of full-batch gradient descent in float64, seed 0.
"""

# %%
# The run
# -------
# :func:`dynloss.example_run` trains it once and keeps the file. It holds the scalars of every step, the parameters of
# every 15th step and of every step in 8,500 … 9,499, and three Hessian eigenpairs at each of these.
import matplotlib.pyplot as plt

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
print(run)

# %%
# Class weights, loss, its change, accuracy, curvature
# ----------------------------------------------------
# The Hessian is that of the *weighted* loss of each step: the unweighted one does not predict the instability.
history = run.history.load()
onsets = landscape.find_onsets(history)
live = landscape.bifurcation_diagram(history.loss)

with viz.style():
    figure, axes = plt.subplots(
        5, 1, figsize=(6.9, 7.2), sharex=True, layout="constrained"
    )
    viz.plot_history(history, axes[0], variable="class_weight")
    viz.plot_history(history, axes[1], variable="loss", onsets=onsets)
    viz.plot_bifurcation_diagram(live, axes[2], scale="symlog", onsets=onsets)
    viz.plot_history(history, axes[3], variable="accuracy", linewidth=0.4)
    viz.plot_eigenvalues(run.eigenpairs, axes[4], onsets=onsets)
    for ax in axes[:-1]:
        ax.set_xlabel("")
    viz.panel_letters(axes)
plt.show()

# %%
# What is seen
# ------------
# In the first half of each period the loss and the eigenvalues fall while the accuracy hardly moves. In the second
# half the loss rises although every step descends, and oscillations set in:
for step, phase in zip(
    onsets.onset_step.values, onsets.onset_phase.values, strict=True
):
    print(
        f"oscillation from step {step} on: phase {phase:.3f} of period {step // 5000}"
    )

last = history.isel(step=-1)
print(f"training accuracy at the end:   {float(last.accuracy):.3f}")
print(f"validation accuracy at the end: {float(last.validation_accuracy):.3f}")
