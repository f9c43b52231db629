r"""
The gradient inside and outside the sharpest directions
=======================================================

While the descent is smooth, the gradient is nearly perpendicular to the sharpest directions. Once the states bounce
between the walls of the valley it points along :math:`v_1`, and later along :math:`v_2` too. Its part *outside* their
span grows as well, far beyond that of the smooth descent: bouncing is not just wasted motion.
"""

# %%
# With :math:`c_i = \langle \nabla F, v_i \rangle`, the inside part has the norm
# :math:`(c_1^2 + c_2^2)^{1/2}`, the outside part is what is left, and the dominant fraction is the inside part's share
# of the whole.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
onsets = landscape.find_onsets(run.history)
grads = landscape.gradient_decomposition(
    objective, run.checkpoints, run.eigenpairs.isel(mode=[0, 1])
)

with viz.style():
    figure, axes = plt.subplots(
        2, 1, figsize=(6.9, 4.2), sharex=True, layout="constrained"
    )
    viz.plot_gradient_decomposition(
        grads, axes[0], kind="fraction", onsets=onsets
    )
    viz.plot_gradient_decomposition(grads, axes[1], kind="norm", onsets=onsets)
    axes[0].set_xlabel("")
    viz.panel_letters(axes, start="f")
plt.show()

# %%
# Before and during the cascade
# -----------------------------
# Medians over two windows of the second period, over steps of both parities: in a two-cycle, every second step alone
# would show one of its two states.
phase = grads.step % 5000 / 5000
medians = {}
for first, last in ((0.55, 0.65), (0.85, 0.90)):
    inside = (grads.step >= 5000) & (phase >= first) & (phase < last)
    window = grads.isel(step=np.flatnonzero(inside))
    medians[first] = window.median("step")
    print(
        f"phase {first:.2f} … {last:.2f}: {window.sizes['step']:3d} steps, "
        f"dominant fraction {float(medians[first].dominant_fraction):.3f}, "
        f"norm outside {float(medians[first].bulk_norm):.5f}"
    )
growth = float(medians[0.85].bulk_norm / medians[0.55].bulk_norm)
print(f"the outside part grows by a factor of {growth:.1f}")
