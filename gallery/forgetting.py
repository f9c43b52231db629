r"""
Forgetting
==========

While one class dominates the loss, a network forgets the others. How much is lost, and for how long, depends on the
amplitude and the period of the weights.
"""

# %%
# Four networks of 100 hidden units with the same initial parameters learn the spiral by gradient descent
# (:math:`\eta = 1`, 10,000 steps) under dynamical cross entropy with different amplitudes :math:`A` and periods
# :math:`T`. They are trained at once, and their accuracy on fresh samples is taken class by class, every 20 steps.
import matplotlib.pyplot as plt
import numpy as np

import dynloss
import viz

data = dynloss.spiral(100, 3, seed=0)
fresh = dynloss.spiral(100, 3, seed=1)
settings = [(10, 250), (70, 250), (10, 5000), (70, 5000)]
losses = [
    dynloss.DynamicalCrossEntropy(3, amplitude=A, period=T) for A, T in settings
]
model = dynloss.mlp(2, width=100, n_classes=3, seed=0)
trained = dynloss.train_ensemble(
    model,
    losses,
    data,
    learning_rate=1.0,
    n_steps=10_000,
    history_every=10,
    scalars=["loss"],
    checkpoint_every=20,
)

# %%
# The accuracy of one class is that of an objective over the samples of this class.
objective = dynloss.fastest_objective(model, losses[0], *fresh)
of_class = [
    objective.on(
        fresh.inputs[fresh.targets == c], fresh.targets[fresh.targets == c]
    )
    for c in range(3)
]
accuracy = np.array(
    [
        [one.accuracy(states).numpy() for one in of_class]
        for states in trained.params.values
    ]
)  # (member, class, checkpoint)

with viz.style():
    figure, axes = plt.subplots(
        2, 2, figsize=(7.0, 4.2), sharex=True, sharey=True, layout="constrained"
    )
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for ax, (A, T), each in zip(axes.flat, settings, accuracy, strict=True):
        for c in range(3):
            ax.plot(
                trained.checkpoint,
                each[c],
                color=colours[c],
                lw=0.8,
                label=f"class {c}",
            )
        ax.plot(
            trained.checkpoint, each.mean(0), color="black", lw=1.2, label="all"
        )
        ax.set_title(f"A = {A}, T = {T:,}")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        ncols=4,
        loc="outside upper center",
    )
    figure.supxlabel("Step")
    figure.supylabel("Accuracy on fresh samples")
    viz.panel_letters(axes.flat)
plt.show()

# %%
# Over the last 5,000 steps: the mean accuracy, the highest and the lowest, and the lowest of any single class.
late = trained.checkpoint.values >= 5000
print("   A      T   mean  highest  lowest  lowest of a class")
for (A, T), each in zip(settings, accuracy, strict=True):
    whole = each.mean(0)[late]
    print(
        f"{A:4d} {T:6,d}  {whole.mean():5.2f}  {whole.max():7.2f}  {whole.min():6.2f}"
        f"  {each[:, late].min():17.2f}"
    )

# %%
# Seed 0 of network and samples, seed 1 of the fresh ones. In each period the weights emphasise one class, and the next
# in the period after it; at the borders the loss is the static one. While a class is emphasised the network answers it
# almost everywhere, and the two others are given up. With short periods each class is emphasised again after
# :math:`3T = 750` steps, and the mean rises; with long ones and a large amplitude two classes are lost for thousands of
# steps, and learnt anew near the border. How the accuracy at the end of training depends on :math:`A` and :math:`T` is on
# the page of phase diagrams.
