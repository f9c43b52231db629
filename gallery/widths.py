r"""
Width, learning rate and the edge of stability
==============================================

The static cross entropy, three widths and two learning rates, twenty seeds each. The sharpness soon rises to the stability
threshold :math:`2/\eta` and stays about there; the widest network leaves it.
"""

# %%
# Each ensemble of twenty is trained at once, for 20,000 steps. The largest eigenvalue is computed every 499 steps: an odd
# number, as in a two-cycle it alternates between two values. Lines are medians over the seeds, bands reach from the lower
# to the upper quartile.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import landscape
import viz
from viz.style import BLUE, GREEN, ORANGE, THRESHOLD

SEEDS, WIDTHS, RATES = range(20), (10, 50, 200), (0.5, 2.0)
loss = dynloss.CrossEntropy(n_classes=3)
data = [dynloss.spiral(n_per_class=100, n_classes=3, seed=seed) for seed in SEEDS]


def trained(width, rate):
    """The histories of twenty networks, and the sharpness along each."""
    models = [
        dynloss.mlp(n_inputs=2, width=width, n_classes=3, seed=seed)
        for seed in SEEDS
    ]
    ensemble = dynloss.train_ensemble(
        models,
        loss,
        data,
        n_steps=20_000,
        learning_rate=rate,
        history_every=499,
        checkpoint_every=499,
        scalars=["loss"],
    )
    sharpness = []
    for i, model in enumerate(models):
        objective = dynloss.fastest_objective(model, loss, *data[i])
        checkpoints = dynloss.member(ensemble, i)[1].sel(step=ensemble.step)
        eigs = landscape.top_eigenpairs(objective, checkpoints, k=1, tol=1e-3)
        sharpness.append(eigs.eigenvalue.isel(mode=0).values)
    return ensemble.step.values, ensemble.loss.values, np.array(sharpness)


results = {
    (width, rate): trained(width, rate) for width in WIDTHS for rate in RATES
}

with viz.style():
    figure, axes = plt.subplots(
        2, 2, figsize=(6.9, 4.2), sharex=True, sharey="row", layout="constrained"
    )
    for (width, rate), (step, losses, sharpness) in results.items():
        color = dict(zip(WIDTHS, (BLUE, ORANGE, GREEN), strict=True))[width]
        column = axes[:, RATES.index(rate)]
        for ax, values in zip(
            column, (losses, sharpness * rate / 2), strict=True
        ):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            ax.plot(step, middle, color=color, label=f"width {width}")
            ax.fill_between(step, low, high, color=color, alpha=0.2, linewidth=0)
        column[0].set_title(rf"$\eta$ = {rate:g}", loc="left")
    for ax in axes[0]:
        ax.set_yscale("log")
        ax.set_yticks((0.2, 0.5, 1), ("0.2", "0.5", "1"))
        ax.minorticks_off()
    for ax in axes[1]:
        ax.axhline(1, label="stability threshold", **THRESHOLD)
        ax.set_xlabel("Step (updates)")
    axes[0, 0].set_ylabel("Loss")
    axes[1, 0].set_ylabel(r"$\lambda_1$ / stability threshold")
    axes[1, 1].legend()
    viz.panel_letters(axes.flat)
plt.show()

# %%
# In numbers
# ----------
# The last loss, and the sharpness over the threshold in the first and in the last half of the run: medians over seeds and
# steps.
for (width, rate), (step, losses, sharpness) in results.items():
    ratio, half = sharpness * rate / 2, len(step) // 2
    print(
        f"width {width:3}, η = {rate:g}: loss {np.median(losses[:, -1]):.3f}, λ_1 over the threshold "
        f"{np.median(ratio[:, :half]):.2f}, then {np.median(ratio[:, half:]):.2f}; at the end "
        f"{np.median(ratio[:, -1]):.2f}"
    )
