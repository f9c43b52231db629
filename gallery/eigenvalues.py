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
print(f"{pairs} eigenpairs, {int(eigs.certified.sum())} of them certified")
print(f"largest relative residual: {float(eigs.residual.max()):.1e}")
print(f"Hessian-vector products a checkpoint: {float(eigs.n_hvp.mean()):.1f}")

# %%
# At the onsets
# -------------
# Once the state alternates, so does the curvature: one state sits higher on a wall than the other. The Hessian at the
# midpoint of the two stands for the orbit that lost its stability. Where a state was not saved, the run is replayed
# from the checkpoint before, bit for bit.
curved = landscape.onset_curvature(objective, run.checkpoints, onsets)

viz.plot_onset_curvature(curved)
plt.show()

in_units = curved / curved.threshold
for i in range(curved.sizes["onset"]):
    at = in_units.isel(onset=i)
    print(f"onset at step {int(curved.onset_step[i])}: λ_1 over the threshold")
    print(f"  midpoint {float(at.eigenvalue):.3f}, ", end="")
    print(f"flatter state {float(at.eigenvalue_flatter):.3f}, ", end="")
    print(f"sharper state {float(at.eigenvalue_sharper):.3f}")
    print(f"  overlap of the motion with v_1: {float(curved.overlap[i]):.3f}")

# %%
# At both onsets the midpoint lies a few per cent below the threshold, while the sharper of the two states has reached
# it or is beyond.

# %%
# The whole spectrum
# ------------------
# Stochastic Lanczos quadrature gives the density of all eigenvalues, with its standard error over the random vectors
# that it starts from, and XTrace their sum. A few eigenvalues stand apart from a bulk around zero; the cascade begins
# where the largest of them nears the threshold.
states = run.checkpoints.sel(step=[7500, 8500, 9250], method="nearest")
density = landscape.spectral_density(objective, states)
trace = landscape.hessian_trace(objective, states)

with viz.style():
    figure, ax = plt.subplots(figsize=(6.9, 2.8), layout="constrained")
    viz.plot_spectral_density(density, ax)
plt.show()

for i in range(trace.sizes["step"]):
    at = trace.isel(step=i)
    value, error = float(at.trace), float(at.standard_error)
    print(f"step {int(at.step)}: trace {value:.2f} ± {error:.2f}")
