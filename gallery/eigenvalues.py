r"""
Sharpness at the onset of oscillation
=====================================

On a quadratic valley gradient descent is stable while the sharpness :math:`\lambda_1` is below :math:`2/\eta`. Here is
where the oscillations of a nonlinear network begin, beside that line. Every eigenpair carries its residual, and a
certificate that no larger eigenvalue was missed.
"""

# %%
import matplotlib.pyplot as plt

import dynloss
import landscape
import viz

run = landscape.open_run(dynloss.example_run("cascade"))
objective = dynloss.objective(run)
eigs = run.eigenpairs
onsets = landscape.find_onsets(run.history)

with viz.style():
    figure, ax = plt.subplots(figsize=(6.9, 2.8), layout="constrained")
    viz.plot_eigenvalues(eigs, ax, onsets=onsets)
plt.show()

pairs = eigs.sizes["step"] * eigs.sizes["mode"]
print(f"{pairs} eigenpairs: largest relative residual {float(eigs.residual.max()):.1e}, ", end="")
print(f"{int(eigs.certified.sum())} certified, {float(eigs.n_hvp.mean()):.1f} Hessian-vector products a checkpoint")

# %%
# At the onsets
# -------------
# Once the state alternates, so does the curvature: one state sits higher on a wall than the other. The Hessian at the
# midpoint of the two stands for the orbit that lost its stability. Where a state was not saved, the run is replayed
# from the checkpoint before, bit for bit.
curved = landscape.onset_curvature(objective, run.checkpoints, onsets)

viz.plot_onset_curvature(curved)
plt.show()

for i in range(curved.sizes["onset"]):
    at = curved.isel(onset=i)
    print(
        f"step {int(at.onset_step)}: λ_1 η/2 = {float(at.eigenvalue / at.threshold):.3f} at the midpoint, "
        f"{float(at.eigenvalue_flatter / at.threshold):.3f} and {float(at.eigenvalue_sharper / at.threshold):.3f} at "
        f"the two states; overlap of the motion with v_1 {float(at.overlap):.3f}"
    )

# %%
# The midpoint lies a few per cent *below* the threshold: the detector sees the growing oscillation a little before
# the frozen landscape would lose its stability, and the walls are not quadratic.
