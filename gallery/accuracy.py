r"""
Accuracy against width
======================

Do oscillating losses make small networks generalise better? The baseline decides the verdict: each static loss is given
the best of nine learning rates, each dynamical one the best of nine settings, chosen on five seeds; then all are trained
anew on twenty other seeds.
"""

# %%
# A seed is that of the initial parameters and of the data: three spiral arms of 100 points, and as many for
# validation. Cross entropies are trained for 70,000 steps, squared errors for 40,000; in the last 1,000 of them the
# dynamical losses are static. What is compared is the validation accuracy after the last step.
#
# :func:`dynloss.sweep` trains all of it, on as many cores as there are, and goes on where it was interrupted. Its results
# are kept in ``data``; where they are those of the very settings below, they are read, and nothing is trained.
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import dynloss
import viz

TUNING, FRESH = range(100, 105), range(20)
families = {
    "entropy": {"n_steps": 70_000, "widths": [5, 10, 20, 50, 100]},
    "error": {"n_steps": 40_000, "widths": [10, 20, 50]},
}
settings = {
    "entropy": {
        "CE": {
            "loss": "cross_entropy",
            "learning_rate": [0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
        },
        "DCE": {
            "loss": "dynamical_cross_entropy",
            "learning_rate": 1.0,
            "amplitude": [10, 30, 70],
            "period": [1000, 2000, 5000],
        },
    },
    "error": {
        "MSE": {
            "loss": "squared_error",
            "learning_rate": [0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7],
        },
        "DMSE1": {
            "loss": "dynamical_squared_error",
            "weighting": "sample",
            "learning_rate": [0.1, 0.3, 0.5],
            "amplitude": 10,
            "period": [300, 1000, 3000],
        },
        "DMSE2": {
            "loss": "dynamical_squared_error",
            "weighting": "component",
            "learning_rate": [0.1, 0.2, 0.33],
            "amplitude": [10, 30, 70],
            "period": 200,
        },
    },
}
OF_A_LOSS = ["loss_name", "weighting"]
VARIED = ["learning_rate", "amplitude", "period"]


def swept(name, family, grids):
    """The accuracies of a sweep, by the settings of its runs."""
    n_steps = families[family]["n_steps"]
    found = dynloss.sweep(
        f"data/{name}_{family}.h5",
        grids,
        n_steps=n_steps,
        static_steps=1000,
        history_every=n_steps // 10,
    )
    return found.final_validation_accuracy.to_dataframe().reset_index()


# %%
# Choosing
# --------
# Nine settings of each loss at each width, five seeds.
chosen = {}
for family, of_loss in settings.items():
    widths = families[family]["widths"]
    grids = [one | {"width": widths, "seed": TUNING} for one in of_loss.values()]
    table = swept("tuning", family, grids)
    means = table.groupby(
        [*OF_A_LOSS, "width", *VARIED], dropna=False
    ).final_validation_accuracy.mean()
    for name, one in of_loss.items():
        for width in widths:
            key = (one["loss"], one.get("weighting", ""), width)
            best = means.loc[key].idxmax()
            chosen[name, width] = dict(zip(VARIED, best, strict=True))
            rate, amplitude, period = best
            oscillation = (
                f", A = {amplitude:g}, T = {period:g}" if amplitude > 0 else ""
            )
            print(
                f"{name:5} width {width:3}: η = {rate:g}{oscillation} "
                f"({means.loc[key].max():.3f}; the others down to {means.loc[key].min():.3f})"
            )


def averaged(table):
    """Mean over the seeds and its standard error, by width."""
    n_seeds = table.shape[1]
    mean = ("width", table.mean(axis=1), {"long_name": "validation accuracy"})
    error = ("width", table.std(axis=1, ddof=1) / n_seeds**0.5)
    return xr.Dataset(
        {"accuracy": mean, "standard_error": error}, {"width": table.index}
    )


# %%
# Twenty other seeds
# ------------------
accuracy = {}
for family, of_loss in settings.items():
    grids = []
    for name, one in of_loss.items():
        for width in families[family]["widths"]:
            best = {k: v for k, v in chosen[name, width].items() if v == v}
            grids.append(one | best | {"width": width, "seed": FRESH})
    table = swept("accuracy", family, grids)
    for name, one in of_loss.items():
        of_it = table[
            (table.loss_name == one["loss"])
            & (table.weighting == one.get("weighting", ""))
        ]
        accuracy[name] = of_it.pivot(
            index="width", columns="seed", values="final_validation_accuracy"
        )

with viz.style():
    figure, axes = plt.subplots(
        1, 2, figsize=(6.9, 2.6), sharey=True, layout="constrained"
    )
    for ax, (family, of_loss) in zip(axes, settings.items(), strict=True):
        for name, marker in zip(of_loss, "osD", strict=False):
            viz.plot_accuracy(
                averaged(accuracy[name]),
                ax,
                text=name,
                marker=marker,
            )
        ax.set_title(f"{families[family]['n_steps']:,} steps", loc="left")
    axes[1].set_ylabel("")
    viz.panel_letters(axes)
plt.show()

# %%
# The difference to the static loss, seed by seed: its mean, the standard error of the mean, and on how many of the
# twenty seeds it is positive.
for name, static in (("DCE", "CE"), ("DMSE1", "MSE"), ("DMSE2", "MSE")):
    for width in accuracy[name].index:
        difference = accuracy[name].loc[width] - accuracy[static].loc[width]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        print(
            f"{name:5} − {static:3} width {width:3}: {accuracy[static].loc[width].mean():.3f} → "
            f"{accuracy[name].loc[width].mean():.3f}, {difference.mean():+.3f} ± {error:.3f}, "
            f"positive for {(difference > 0).sum()} of {len(difference)}"
        )

# %%
# The smallest networks gain nothing clear from oscillating cross entropy, nor from squared errors weighted by sample; the
# gains are largest where the static loss neither fails nor succeeds.
