r"""
Speed beside other packages
===========================

What the two largest eigenpairs of a Hessian cost a checkpoint, here and with PyHessian, curvlinops, hessian-eigenthings
and Landscaper; what a point of a slice costs beside loss-landscapes, and a step of training beside JAX. One process, one
thread, one after the other in every round, and each result is checked: fast counts only where it is right.
"""

# %%
# What was measured
# -----------------
# ``make bench`` measured this, in half an hour, and wrote the table that is read here; the same command
# repeats it on your machine. Networks with one hidden layer of 100 and of 1000 units descend on the spiral; their
# checkpoints are those of every fifth step from 2000 to 3000. All solvers are asked for a residual of
# :math:`10^{-3}`, as far as they can be: what can be set is in the label, and beside it stand the defaults. Ours solve
# all checkpoints in one call; the peers go through some of them, evenly spread, one by one, as their users must.
import json
from pathlib import Path
from statistics import median

import pandas as pd

measured = json.loads(Path("data/benchmarks.json").read_text())
rows = pd.DataFrame(measured["eigenpairs"])

machine, versions = measured["machine"], measured["versions"]
print(f"{measured['date']}: {machine['processor']}, {machine['threads']} thread")
for package, version in versions.items():
    print(f"  {package} {version}")
for package, reason in measured["absent"].items():
    print(f"  ABSENT, so not compared with: {package} ({reason})")
for (name, dtype), of in rows.groupby(["workload", "dtype"], sort=False):
    pairs = of.groupby("ours").pairs.max()
    print(f"{name} {dtype}: pairs of ours {pairs[True]}", end="")
    print(f", of each peer {pairs[False]}" if False in pairs else "")


# %%
# Cost and residual
# -----------------
# Each round gives a ratio to our first row, the median of which is *times slower*, between its extremes. *Inaccurate* are
# pairs with a residual above :math:`10^{-3}`; *wrong* are those whose eigenvalue is off by more than one per cent, or
# whose vector has an overlap below 0.9 with the eigenvectors of eigenvalues that near. *Certified* counts the pairs for
# which no larger eigenvalue can have been missed, something that only ours say. *ms* and *products* are a checkpoint's,
# *residual* is the largest.
def beside_ours(of):
    """The rows of one workload, compared with the first."""
    first = of.milliseconds.iloc[0]
    ratios = [
        [a / b for a, b in zip(row, first, strict=False)]
        for row in of.milliseconds
    ]
    return pd.DataFrame(
        {
            "times slower": [f"{median(r):.1f}" for r in ratios],
            "extremes": [f"{min(r):.1f}–{max(r):.1f}" for r in ratios],
            "ms": [f"{median(row):.2f}" for row in of.milliseconds],
            "products": [f"{n:.1f}" for n in of["products"]],
            "residual": [f"{r:.0e}" for r in of.residual],
            "inaccurate": counted(of.inaccurate),
            "wrong": counted(of.wrong),
            "certified": counted(of.certified),
        },
        index=pd.Index(of.solver + ", " + of.settings, name=title(of)),
    )


def counted(pairs):
    """Numbers of pairs, where they are known."""
    return ["–" if pd.isna(n) else f"{n:.0f}" for n in pairs]


def title(of):
    """Size and type of one workload."""
    return f"{of.parameters.iloc[0]:,} parameters, {of['dtype'].iloc[0]}"


workloads = dict(list(rows.groupby(["workload", "dtype"], sort=False)))
beside_ours(workloads["W1", "float64"])

# %%
beside_ours(workloads["W2", "float64"])

# %%
# In a picture, on a logarithmic axis, with the largest residual at the end of each bar. Hollow bars missed the tolerance.
import matplotlib.pyplot as plt

import viz
from viz.style import BLUE, VERMILION

with viz.style():
    figure, axes = plt.subplots(2, 1, figsize=(6.9, 5.6), layout="constrained")
    for ax, name in zip(axes, ("W1", "W2"), strict=True):
        of = workloads[name, "float64"]
        cost = of.milliseconds.map(median)
        color = [VERMILION if ours else BLUE for ours in of.ours]
        face = [
            c if good else "white"
            for c, good in zip(color, of.inaccurate == 0, strict=True)
        ]
        bars = ax.barh(
            of.solver + ", " + of.settings, cost, color=face, edgecolor=color
        )
        ax.bar_label(
            bars, [f"{r:.0e}" for r in of.residual], padding=3, fontsize=7
        )
        ax.set(xscale="log", title=title(of), xlabel="ms a checkpoint")
        ax.margins(x=0.12)
        ax.invert_yaxis()
plt.show()

# %%
# In single precision
# -------------------
beside_ours(workloads["W1", "float32"])

# %%
beside_ours(workloads["W2", "float32"])

# %%
# A network with convolutions
# ---------------------------
# A ResNet-20 on images, in float32: here the products are everything, and this is what one costs in gradients.
products = pd.DataFrame(measured["products"])
gradient = products.milliseconds.iloc[0]
pd.DataFrame(
    {
        "gradients": [
            f"{median(a / b for a, b in zip(row, gradient, strict=True)):.2f}"
            for row in products.milliseconds
        ],
        "seconds": [f"{median(row) / 1e3:.2f}" for row in products.milliseconds],
    },
    index=pd.Index(products.solver + " " + products.settings, name="one product"),
)

# %%
# Its two largest eigenpairs, certified:
beside_ours(workloads["W3", "float32"])

# %%
# Slices
# ------
# Points of a plane through the last checkpoint a second, along filter-normalised random directions, as they are asked of
# the objective. Beside each stand the ratio to the peer named first, and the largest relative difference to the network
# evaluated in float64 at 36 of the points.
slices = pd.DataFrame(measured["slices"])


def rates(of, column, unit):
    """Ratios to the first row, round by round."""
    first = of[column].iloc[0]
    return pd.DataFrame(
        {
            unit: [f"{1 / median(row):,.0f}" for row in of[column]],
            "times as quick": [
                f"{median(a / b for a, b in zip(first, row, strict=False)):.2f}"
                for row in of[column]
            ],
        },
        index=pd.Index(of.solver, name=of.name),
    )


for (name, dtype, n), of in slices.groupby(
    ["workload", "dtype", "points"], sort=False
):
    if len(of) > 2 or name == "W3":
        of = of.assign(
            seconds=of.milliseconds.map(lambda row: [ms / 1e3 for ms in row])
        )
        of.name = f"{name} {dtype}, {n} × {n} points"
        table = rates(of, "seconds", "points/s")
        table["difference"] = [f"{d:.0e}" for d in of.difference]
        print(table.to_string(), end="\n\n")
print(
    "the same plane at another phase of the oscillation, from its class terms: "
    f"{measured['reweighting']:.0f} times quicker"
)

# %%
# Training
# --------
# Steps of networks a second, by process time: a network with 100 hidden units on 300 points by gradient descent.
training = pd.DataFrame(measured["training"])
for dtype, of in training.groupby("dtype", sort=False):
    of = of.assign(
        seconds=of.microseconds.map(lambda row: [us / 1e6 for us in row])
    )
    of.name = dtype
    print(rates(of, "seconds", "steps/s").to_string(), end="\n\n")
print(
    f"the ensemble on two cores, by wall time: {measured['two_cores']:.2f} times as quick as on one"
)

# %%
# Recording
# ---------
# What it costs to record each step of a run of 603 parameters, all of them, beside ``torch.save``.
recording = measured["recording"]
print(
    f"{recording['microseconds']['process']:.1f} µs a step; torch.save "
    f"{recording['torch_save_microseconds']['process']:.0f} µs, "
    f"{recording['ratio']['process']:.0f} times as long"
)

# %%
# Memory
# ------
# A run larger than memory is read row by row, and the eigenpairs are written row by row.
print(
    "{gigabytes:.1f} GB of checkpoints, {parameters:,} parameters each: "
    "{peak_gigabytes:.2f} GB of memory above that of the imports".format(
        **measured["memory"]
    )
)
