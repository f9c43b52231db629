r"""
The paper's claims, one by one
==============================

Nineteen claims of Lavin Pallero and Ruiz-Garcia (`arXiv 2410.10690 <https://arxiv.org/abs/2410.10690>`_), in our words; for
each the quantity that tests it, what we measure, and what follows from it by a rule. Nothing in the table is typed.
"""

# %%
# Each test gives a value, its uncertainty where there are several seeds, and two conditions: the claim is *confirmed* where
# the first holds, *partly* confirmed where only the second does, else *not seen*. Most look at the run of the other pages
# (cross entropy, :math:`A = 70`, :math:`T = 5000`, width 100, seed 0, two periods; "phase" is the fraction of the second
# period), some at the sweeps behind the pages on accuracy.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dynloss
import landscape
import viz
from viz.style import BLUE, ORANGE, VERMILION

PERIOD = 5000
run = landscape.open_run(dynloss.example_run("cascade"))
objective, history = dynloss.objective(run), run.history.load()
pairs, checkpoints = run.eigenpairs, run.checkpoints
onset = landscape.find_onsets(history).onset_step.values[-1]
orbit = landscape.bifurcation_diagram(history.loss).orbit_period
rows = []


def claim(number, text, quantity, value, holds, partly=False):
    """Add a row; `holds` and `partly` are the conditions."""
    verdict = "confirmed" if holds else "partly" if partly else "not seen"
    rows.append((number, text, quantity, value, verdict))


def between(variable, first, last):
    """Rows of phases `first` to `last` of the second period."""
    return variable.sel(step=slice(PERIOD * (1 + first), PERIOD * (1 + last) - 1))


def text_of(values, form=".2f"):
    """Mean and standard error over seeds."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):{form}} ± {error:{form}}"


# %%
# Static losses
# -------------
# Claims 1 to 4: the final losses of the sweep, five seeds each, and the sharpness of three fresh seeds a width.
swept = landscape.load_dataset("data/tuning_entropy.h5")
static = swept.isel(run=swept.loss_name.values == "cross_entropy")
table = static.final_loss.to_dataframe().reset_index()
by_width = table[table.learning_rate == 1].pivot(
    index="seed", columns="width", values="final_loss"
)
fall = (by_width[5] - by_width[100]).values
claim(
    1,
    "wider networks reach lower loss",
    "loss at width 5 − at width 100, η = 1",
    text_of(fall),
    fall.min() > 0 and by_width.mean().is_monotonic_decreasing,
    fall.mean() > 0,
)
by_rate = table[table.width == 50].pivot(
    index="seed", columns="learning_rate", values="final_loss"
)
fall = (by_rate[0.5] - by_rate[2.0]).values
claim(
    2,
    "a larger η reaches lower loss",
    "loss at η = 0.5 − at η = 2, width 50",
    text_of(fall),
    fall.min() > 0,
    fall.mean() > 0,
)

loss, ratios = dynloss.CrossEntropy(3), {}
for width in (50, 200):
    models = [dynloss.mlp(2, width, 3, seed=seed) for seed in range(50, 53)]
    data = [dynloss.spiral(100, 3, seed=seed) for seed in range(50, 53)]
    trained = dynloss.train_ensemble(
        models,
        loss,
        data,
        n_steps=20_000,
        learning_rate=2.0,
        history_every=499,
        checkpoint_every=499,
        scalars=["loss"],
    )
    ratios[width] = []
    for i, model in enumerate(models):
        states = dynloss.member(trained, i)[1]
        eigs = landscape.top_eigenpairs(
            dynloss.fastest_objective(model, loss, *data[i]),
            states,
            k=1,
            tol=1e-3,
        )
        ratios[width].append(eigs.eigenvalue.values[:, 0] / eigs.threshold.values)
edge = np.median(np.array(ratios[50])[:, 20:], axis=1)
claim(
    3,
    "λ₁ rises to slightly above 2/η and stays",
    "λ₁ / (2/η), median of the second half, width 50, η = 2",
    text_of(edge),
    (edge > 0.95).all() and (edge < 1.5).all(),
    (edge > 0.8).all(),
)
end = np.median(np.array(ratios[200])[:, -10:], axis=1)
claim(
    4,
    "the widest network leaves the edge of stability",
    "the same at the end, width 200",
    text_of(end),
    (end < 0.8).all() or (end > 1.5).all(),
    (end < 0.8).any() or (end > 1.5).any(),
)

# %%
# One period
# ----------
# Claims 5 to 13, in the second period of the run.
top = pairs.eigenvalue.isel(mode=0)
falls = [
    float(between(v, 0.48, 0.5).mean() / between(v, 0.02, 0.04).mean())
    for v in (history.loss, top)
]
flat = float(
    abs(
        between(history.accuracy, 0.4, 0.5).mean()
        - between(history.accuracy, 0.1, 0.2).mean()
    )
)
steps = pairs.step.values
near = [
    int(steps[np.abs(steps - PERIOD * (1 + p)).argmin()])
    for p in (0.02, 0.5, 0.94)
]
widths = landscape.valley_width(
    objective,
    checkpoints.sel(step=near),
    pairs.sel(step=near).isel(mode=[0]),
    rise=0.1,
).width.values.ravel()
claim(
    5,
    "first half: F and λ₁ fall, accuracy is flat, the valley widens",
    "ratio of F, of λ₁, change of accuracy, ratio of widths",
    f"{falls[0]:.2f}, {falls[1]:.2f}, {flat:.2f}, {widths[1] / widths[0]:.2f}",
    max(falls) < 1 and flat < 0.05 and widths[1] > widths[0],
    max(falls) < 1,
)
smooth = landscape.replay(
    objective, checkpoints.sel(step=8010), n_steps=200
)  # phase 0.60 … 0.64
parts = landscape.loss_change(objective, smooth)
descends = float((parts.motion_part[1:] < 0).mean())
rises = float((parts.change[1:] > 0).mean())
claim(
    6,
    "second half: the valley narrows, F grows although every step descends",
    "share of steps on which F grows, and whose motion part is negative; ratio of widths",
    f"{rises:.2f}, {descends:.2f}; {widths[2] / widths[1]:.2f}",
    rises > 0.9 and descends > 0.99 and widths[2] < widths[1],
    rises > 0.5 and descends > 0.9,
)
first = landscape.find_onsets(history).isel(onset=[-1])
curved = landscape.onset_curvature(objective, checkpoints, first)
ratio = float(curved.eigenvalue[0] / curved.threshold[0])
claim(
    7,
    "a bifurcation appears where λ₁ crosses 2/η",
    "λ₁ / (2/η) at the onset, at the midpoint",
    f"{ratio:.3f}",
    0.9 < ratio < 1.05,
    0.8 < ratio < 1.2,
)
doubles = (orbit.values == 4) & (orbit.step.values > onset)
doubled = int(orbit.step.values[np.argmax(doubles)])
two = pairs.sel(step=[doubled, doubled + 1])
second = (two.eigenvalue.isel(mode=1) / two.threshold).values
claim(
    8,
    "further bifurcations appear as further eigenvalues reach 2/η",
    "λ₂ / (2/η) where period 4 begins, at two successive steps",
    f"{second.min():.2f} … {second.max():.2f}",
    second.min() > 0.9,
    second.max() > 0.9,
)


def parts_of(first, last):
    """Medians of the parts of the gradient, over states of both parities."""
    states = between(checkpoints, first, last)
    return landscape.gradient_decomposition(
        objective, states, pairs.isel(mode=[0, 1])
    ).median("step")


calm, wild = parts_of(0.55, 0.65), parts_of(0.85, 0.90)
claim(
    9,
    "in smooth descent the gradient is perpendicular to v₁, v₂",
    "share of the gradient along them, phase 0.55–0.65",
    f"{float(calm.dominant_fraction):.2f}",
    calm.dominant_fraction < 0.2,
    calm.dominant_fraction < 0.4,
)
claim(
    10,
    "with oscillations it aligns with v₁, later with v₂",
    "share of the gradient along them, phase 0.85–0.90",
    f"{float(wild.dominant_fraction):.2f}",
    wild.dominant_fraction > 0.9,
    wild.dominant_fraction > 0.6,
)
growth = [float(wild[n] / calm[n]) for n in ("gradient_norm", "bulk_norm")]
claim(
    11,
    "its magnitude grows, and its part perpendicular to both too",
    "growth from the first of these windows to the second",
    f"× {growth[0]:.0f}, × {growth[1]:.0f}",
    min(growth) > 3,
    min(growth) > 1.5,
)
rise = [
    float(
        history.accuracy.sel(step=slice(*after)).mean()
        - history.accuracy.sel(step=slice(*before)).mean()
    )
    for before, after in (
        ((4000, 4099), (4900, 4999)),
        ((8500, 8599), (9900, 9999)),
    )
]
claim(
    12,
    "accuracy rises during the first cascades",
    "rise of the training accuracy through the first and the second cascade",
    f"{rise[0]:+.2f}, {rise[1]:+.2f}",
    min(rise) > 0.05,
    max(rise) > 0.05,
)


def extent(step):
    """Extent along v₁ of twenty states, over that of the stable valley."""
    around = checkpoints.params.sel(step=slice(step - 10, step + 9)).values
    return float(np.ptp(around @ pairs.eigenvector.sel(step=step).values[0]))


late = orbit.step.values > 8600
moments = [
    int(orbit.step.values[(orbit.values == p) & late][10]) for p in (1, 2, 4)
]
extents = [extent(step) for step in moments]
claim(
    13,
    "the state stays put, then bounces between two walls, then four",
    "extent along v₁ of 20 states in periods 1, 2, 4",
    ", ".join(f"{e:.3f}" for e in extents),
    3 * extents[0] < extents[1] < extents[2],
    extents[0] < extents[1],
)

# %%
# Other losses, other settings
# ----------------------------
# Claims 14 to 17: the squared errors, the sweeps, and the sharpness at the first onset for short runs of all three losses at
# four learning rates each.
kinds = {
    "DCE": (
        {0.5: 10_000, 1.0: 5000, 2.0: 2500, 4.0: 1250},
        dynloss.DynamicalCrossEntropy,
        {"amplitude": 70},
    ),
    "DMSE1": (
        dict.fromkeys((0.1, 0.2, 0.3, 0.5), 5000),
        dynloss.DynamicalSquaredError,
        {"amplitude": 20, "weighting": "sample"},
    ),
    "DMSE2": (
        dict.fromkeys((0.05, 0.1, 0.2, 0.3), 5000),
        dynloss.DynamicalSquaredError,
        {"amplitude": 20, "weighting": "component"},
    ),
}
slopes, counts = {}, {}
model, data = dynloss.mlp(2, 50, 3, seed=60), dynloss.spiral(100, 3, seed=60)
for name, (periods, kind, options) in kinds.items():
    rates = list(periods)
    losses = [kind(3, period=period, **options) for period in periods.values()]
    trained = dynloss.train_ensemble(
        model,
        losses,
        data,
        n_steps=20_000,
        learning_rate=rates,
        checkpoint_every=499,
        scalars=["update_norm", "update_cosine"],
    )
    x, y = [], []
    for i, rate in enumerate(rates):
        history_of, states = dynloss.member(trained, i)
        found = landscape.find_onsets(history_of).isel(onset=slice(1))
        if found.sizes["onset"]:
            at = landscape.onset_curvature(
                dynloss.fastest_objective(model, losses[i], *data), states, found
            )
            x.append(np.log(rate))
            y.append(np.log(float(at.eigenvalue[0])))
    counts[name] = len(x)
    slopes[name] = np.polyfit(x, y, 1)[0] if len(x) > 1 else np.nan
claim(
    14,
    "DMSE1 and DMSE2 bifurcate too",
    "learning rates with an onset, of four each",
    f"{counts['DMSE1']}, {counts['DMSE2']}",
    counts["DMSE1"] == counts["DMSE2"] == 4,
    counts["DMSE1"] + counts["DMSE2"] > 0,
)

gains = {}
for family, pairs_of in (
    ("entropy", [("DCE", "CE")]),
    ("error", [("DMSE1", "MSE"), ("DMSE2", "MSE")]),
):
    fresh = landscape.load_dataset(f"data/accuracy_{family}.h5")
    table = fresh.final_validation_accuracy.to_dataframe().reset_index()
    static_part = table[~table.loss_name.str.startswith("dynamical")]
    for name, _ in pairs_of:
        weighting = {"DCE": "", "DMSE1": "sample", "DMSE2": "component"}[name]
        dynamical = table[
            table.loss_name.str.startswith("dynamical")
            & (table.weighting == weighting)
        ]
        both = dynamical.merge(static_part, on=["width", "seed"])
        both["gain"] = (
            both.final_validation_accuracy_x - both.final_validation_accuracy_y
        )
        for width, of in both.groupby("width"):
            gains[name, width] = of.gain.values
clear = {
    key: g.mean() > 2 * g.std(ddof=1) / np.sqrt(len(g))
    for key, g in gains.items()
}
best = max(gains, key=lambda key: gains[key].mean())
claim(
    15,
    "dynamical losses raise validation accuracy, most at small widths",
    f"clear gains (two standard errors) of {len(gains)} losses and widths; the largest",
    f"{sum(clear.values())}; {best[0]} at width {best[1]}: {text_of(gains[best])}",
    all(clear.values()) and best[1] == min(width for _, width in gains),
    sum(clear.values()) > len(gains) / 2,
)

phase = landscape.load_dataset("data/phase_diagram.h5")
table = phase.final_validation_accuracy.to_dataframe().reset_index()
worse = {}
for name, one in (
    ("DCE", ("dynamical_cross_entropy", "", "cross_entropy")),
    ("DMSE1", ("dynamical_squared_error", "sample", "squared_error")),
    ("DMSE2", ("dynamical_squared_error", "component", "squared_error")),
):
    of = table[(table.loss_name == one[0]) & (table.weighting == one[1])]
    middle = of[of.amplitude.isin([20, 30]) & of.period.isin([300, 600, 1000])]
    extreme = of[of.amplitude.isin([50, 70]) & of.period.isin([3000, 5000])]
    worse[name] = (
        middle.groupby("seed").final_validation_accuracy.mean()
        - extreme.groupby("seed").final_validation_accuracy.mean()
    ).values
share = {
    step: float(
        (
            landscape.decision_regions(
                objective, checkpoints.sel(step=step)
            ).predicted
            == int(history.class_weight.sel(step=step).argmax("class"))
        ).mean()
    )
    for step in (2490, 4995, 7500, 9990)
}
forgotten = float(
    history.accuracy.sel(step=4999) - between(history.accuracy, 0.4, 0.6).mean()
)
claim(
    16,
    "too large A and T make it worse; forgetting can be catastrophic",
    "accuracy at A = 20, 30 and T = 300–1000 less that at A = 50, 70 and T = 3000, 5000, for DCE, DMSE1, DMSE2; "
    "accuracy lost from the border to the middle of a period",
    ", ".join(map(text_of, worse.values())) + f"; {forgotten:.2f}",
    all(w.min() > 0 for w in worse.values()) and forgotten > 0.1,
    any(w.min() > 0 for w in worse.values()) or forgotten > 0.1,
)
claim(
    17,
    "λ₁ at the first instability scales as 1/η, for all three losses",
    "slope of log λ₁ against log η",
    ", ".join(f"{name} {slope:.3f}" for name, slope in slopes.items()),
    all(-1.04 <= slope <= -0.96 for slope in slopes.values()),
    all(-1.2 <= slope <= -0.8 for slope in slopes.values()),
)
claim(
    18,
    "where Γᵢ dominates the network answers class i; at the borders the static loss returns",
    "share of the plane given to the emphasised class, in the middle of a period and at its end",
    f"{share[2490]:.2f} and {share[7500]:.2f}, {share[4995]:.2f} and {share[9990]:.2f}",
    min(share[2490], share[7500]) > 0.8 and max(share[4995], share[9990]) < 0.6,
    min(share[2490], share[7500]) > 0.6,
)

# %%
# Mini-batches
# ------------
# The outlook: under the static loss, batches whose class probabilities oscillate as the weights do. What oscillates then, is
# the answer: the loss of the whole data set swings with the period far more than with uniform batches.
swing = {}
for name in ("oscillating_batches", "uniform_batches"):
    with landscape.open_run(dynloss.example_run(name)) as other:
        values = other.history.loss.values[500:2000].reshape(3, 500)
        swing[name] = float(np.ptp(values.mean(0).reshape(10, 50).mean(1)))
ratio = swing["oscillating_batches"] / swing["uniform_batches"]
claim(
    19,
    "mini-batches with oscillating class probabilities mimic some of it",
    "swing of the loss within a period of 500 steps, over that with uniform batches",
    f"{ratio:.1f}",
    ratio > 3,
    ratio > 1.5,
)

# %%
# At a glance
# -----------
colors = {"confirmed": BLUE, "partly": ORANGE, "not seen": VERMILION}
with viz.style():
    figure, ax = plt.subplots(figsize=(6.9, 3.9))
    for number, text, _, _, verdict in rows:
        ax.plot(0, -number, "o", color=colors[verdict], markersize=6)
        ax.text(0.03, -number, f"{number}  {text}", va="center", fontsize=8)
    for i, (verdict, color) in enumerate(colors.items()):
        n = sum(row[-1] == verdict for row in rows)
        ax.plot(i * 0.3, 0.4, "o", color=color, markersize=6)
        ax.text(i * 0.3 + 0.03, 0.4, f"{verdict}: {n}", va="center", fontsize=8)
    ax.set(xlim=(-0.03, 1.15), ylim=(-19.7, 1.2))
    ax.axis("off")
plt.show()

# %%
# The table
# ---------
pd.set_option("display.max_colwidth", None)
columns = ["", "claim", "what is measured", "value", "verdict"]
pd.DataFrame(rows, columns=columns).set_index("")
