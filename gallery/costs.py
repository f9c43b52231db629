r"""
What large networks cost
========================

Seconds and memory of each analysis, measured on networks of ten thousand to eleven million parameters on two cores, and
what the measured growth would mean for a billion.
"""

# %%
# What was measured
# -----------------
# ``make costs`` measured this and wrote the table that is read here: each call in a process of its own, in float32, on a
# checkpoint of a short training. ResNets see 32 images of 32 × 32 pixels, batch norm in evaluation mode; transformers
# like GPT-2 16 texts of 64 tokens. Seconds are those of the processor, of both threads together, as other work on the
# machine does not count there; by the clock it can be half. Memory is the most that the process
# had above Python and its packages: with the network, its data and the result.
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import viz
from viz.style import BLUE, GREEN, ORANGE, VERMILION

measured = json.loads(Path("data/costs.json").read_text())
rows = pd.DataFrame(measured["rows"])
rows = rows[rows.call != "train"].sort_values(["family", "parameters"])
machine, versions = measured["machine"], measured["versions"]
print(
    f"{measured['date']}: {machine['processor']}, {machine['threads']} threads; "
    + ", ".join(f"{name} {version}" for name, version in versions.items())
)
NAMES = {
    "row": "a checkpoint read",
    "product": "a Hessian product",
    "gradient decomposition": "gradient decomposition",
    "plane 11 x 11": "a plane of 11 × 11",
    "eigenpairs of a block 1e-2": "2 eigenpairs of a block, 1e-2",
    "eigenpairs 1e-2": "2 eigenpairs, residual 1e-2",
    "eigenpairs 1e-3": "2 eigenpairs, residual 1e-3",
}
FAMILIES = ("ResNet-18", "transformer")


def table(family):
    """Seconds, products and memory by call and number of parameters."""
    of = rows[(rows.family == family) & rows.call.isin(NAMES)]
    text = [
        row.absent
        if isinstance(getattr(row, "absent", None), str)
        else f"{row.processor_seconds:.3g} s, {row.bytes / 1e9:.2f} GB"
        + ("" if np.isnan(row.products) else f", {row.products:.0f} products")
        for row in of.itertuples()
    ]
    of = of.assign(text=text, call=of.call.map(NAMES))
    wide = of.pivot(index="call", columns="parameters", values="text")
    wide.columns = [f"{n:,}" for n in wide.columns]
    return wide.loc[[name for name in NAMES.values() if name in wide.index]]


table("ResNet-18")

# %%
table("transformer")

# %%
# How many products eigenpairs take is a matter of the spectrum, not of the size: the block of one layer alone can need more
# than the whole.

# %%
# Growth
# ------
# On logarithmic axes; dotted is what grows as the number of parameters does.
SHOWN = {
    "eigenpairs 1e-2": VERMILION,
    "plane 11 x 11": ORANGE,
    "product": BLUE,
    "row": GREEN,
}
LABELS = {
    "processor_seconds": "Seconds of the processor",
    "bytes": "Memory (bytes)",
}
with viz.style():
    figure, axes = plt.subplots(
        2, 2, figsize=(6.9, 5.0), sharex=True, sharey="row", layout="constrained"
    )
    for column, family in zip(axes.T, FAMILIES, strict=True):
        for ax, quantity in zip(column, LABELS, strict=True):
            for call, color in SHOWN.items():
                of = rows[(rows.family == family) & (rows.call == call)]
                ax.plot(
                    of.parameters,
                    of[quantity],
                    ".-",
                    color=color,
                    label=NAMES[call],
                )
            n = np.array([of.parameters.min(), of.parameters.max()])
            low = of[quantity].iloc[-1]
            ax.plot(n, low * n / n[-1], ":", color="0.5")
            ax.set(xscale="log", yscale="log")
        column[0].set_title(family)
        column[1].set_xlabel("Parameters")
    for ax, label in zip(axes[:, 0], LABELS.values(), strict=True):
        ax.set_ylabel(label)
    axes[0, 0].legend(fontsize=7)
    viz.panel_letters(axes.flat)
plt.show()

# %%
# A product beside a gradient, and beside GPT-2 as transformers defines it
# ------------------------------------------------------------------------
# The transformer here is written by hand; that of the package transformers, of the same sizes and with random weights, is
# wrapped so that it answers with its logits.
products = rows[rows.call == "product"]
for row in products.itertuples():
    ratio = row.processor_seconds / row.gradient_processor_seconds
    print(
        f"{row.family:17} {row.parameters:12,}: a product is {row.processor_seconds:7.3f} s, "
        f"{ratio:4.1f} gradients, and takes {row.bytes / 1e9:5.2f} GB"
    )
first = rows[rows.call == "first product"].set_index(["family", "parameters"])
print("the first product, with the check of its model and the choice of its way:")
for (family, n), row in first.iterrows():
    print(
        f"  {family:17} {n:12,}: {row.processor_seconds:7.2f} s, {row.bytes / 1e9:5.2f} GB"
    )

# %%
# A folder of checkpoints
# -----------------------
# Files of ``torch.save`` are mapped, and of large networks one is read at a time. The projection is on a plane, whose centre
# and directions it holds in double precision; the losses are those of 8 images.
folder = measured["folder"]
print(
    f"{folder['files']} files of {folder['bytes_of_one'] / 1e6:.0f} MB, {folder['bytes'] / 1e9:.1f} GB"
)
for call, cost in folder["calls"].items():
    print(
        f"  {call:12}{cost['seconds']:7.2f} s by the clock, {cost['bytes'] / 1e6:6.0f} MB: "
        f"{cost['bytes'] / folder['bytes_of_one']:.1f} checkpoints"
    )

# %%
# A billion parameters: an extrapolation
# --------------------------------------
# Nobody measured this. With the data kept as they are, what a parameter costs is the slope between the two largest sizes
# of a family; the straight line through them is followed to a billion parameters. Eigenpairs need as many products as
# the spectrum asks for, and keep two vectors in float32 for each: 20 products are assumed.
BILLION, N_PRODUCTS, KEPT = 1e9, 20, 8


def at_a_billion(of, quantity):
    """The line through the last two sizes, at a billion parameters."""
    n, cost = of.parameters.values[-2:], of[quantity].values[-2:]
    return cost[1] + (cost[1] - cost[0]) / (n[1] - n[0]) * (BILLION - n[1])


print(f"{'':32}{'hours':>8}{'memory':>11}")
for family in FAMILIES:
    print(family)
    costs = {
        call: [
            at_a_billion(rows[(rows.family == family) & (rows.call == call)], of)
            for of in LABELS
        ]
        for call in ("row", "plane 11 x 11", "product")
    }
    seconds, memory = costs["product"]
    costs["eigenpairs 1e-2"] = (
        N_PRODUCTS * seconds,
        memory + N_PRODUCTS * KEPT * BILLION,
    )
    for call, (seconds, memory) in costs.items():
        name = NAMES[call].replace("residual 1e-2", f"{N_PRODUCTS} products")
        print(f"  {name:30}{seconds / 3600:8.2g}{memory / 1e9:8,.0f} GB")

# %%
# The same memory measured where it was: a product's, and 8 bytes for each parameter and product.
for family in FAMILIES:
    largest = rows[(rows.family == family) & (rows["size"] == "11M")]
    largest = largest.set_index("call")
    for call in ("eigenpairs 1e-2", "eigenpairs 1e-3"):
        pairs = largest.loc[call]
        expected = (
            largest.bytes["product"] + KEPT * pairs.products * pairs.parameters
        )
        print(
            f"{family:12} {NAMES[call]}, {pairs.products:.0f} products: "
            f"{pairs.bytes / 1e9:.2f} GB, expected {expected / 1e9:.2f} GB"
        )
