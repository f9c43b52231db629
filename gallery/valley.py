r"""
The valley widens, then narrows
===============================

Along the sharpest direction :math:`v_1` the loss has two walls. Their distance at a height :math:`\Delta F` above the
floor is the width of the valley. A step of size :math:`\eta` fits while the valley is wider than that of the curvature
:math:`2/\eta`, :math:`2\sqrt{\eta \Delta F}`: the *stable width*, dashed.
"""

# %%
# :func:`landscape.valley_width` brackets both walls on the true loss and finds them as roots. Beside the result stands
# the width :math:`2\sqrt{2\Delta F/\lambda_1}` of a valley with the same curvature that is harmonic.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
onsets = landscape.find_onsets(run.history)

recorded = run.eigenpairs.step.values
period = recorded[(recorded >= 5000) & (recorded % 45 == 0)]
eigs = run.eigenpairs.sel(step=period).isel(mode=[0])
widths = landscape.valley_width(
    objective, run.checkpoints, eigs, rise=[0.05, 0.1]
)

with viz.style():
    figure, ax = plt.subplots(figsize=(6.9, 3.0), layout="constrained")
    viz.plot_valley_width(widths, ax, onsets=onsets)
plt.show()

# %%
# In numbers
# ----------
# The class of period 1 is emphasised most at phase 0.5.
at = widths.isel(mode=0).sel(rise=0.1)
for phase in (0.02, 0.5, 0.94):
    row = at.sel(step=5000 + 5000 * phase, method="nearest")
    print(
        f"phase {phase:.2f} (step {int(row.step)}): width {float(row.width):.3f}, harmonic "
        f"{float(row.harmonic_width):.3f}, stable {float(row.stable_width):.3f}"
    )
before = at.isel(step=np.flatnonzero((at.step - 5000) / 5000 <= 0.74))
ratio = (before.width / before.harmonic_width).values
print(
    f"measured / harmonic width before the onset: {ratio.min():.2f} … {ratio.max():.2f}"
)

# %%
# The two walls
# -------------
# The valley is not symmetric: the distances from its floor to either wall differ.
share = (at.left / at.width).values
print(
    f"share of the left wall in the width: {np.nanmin(share):.2f} … {np.nanmax(share):.2f}"
)
