r"""
A transformer learns to copy
============================

Two blocks of causal attention read six letters and a sign, and have to repeat the letters. While the network learns
this, its curvature rises to the stability threshold :math:`2/\eta` of gradient descent, and each of its parts shows when
it was at work. Plain PyTorch; nothing here knows :mod:`dynloss`.
"""

# %%
# The network
# -----------
# As small as can be: 16 numbers a token, one head of attention. The loss is the mean cross entropy of the tokens to be
# repeated, so that one text has six of them.
import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import landscape
import viz
from viz.style import MODE_COLORS

N_LETTERS, LENGTH, WIDTH = 8, 6, 16


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        query, key, value = self.mix(self.norm_1(x)).chunk(3, -1)
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        x = x + self.out(weights @ value)
        return x + self.perceptron(self.norm_2(x))


class Copier(nn.Module):
    """Answers with logits (sample, position, letter) at the positions to be repeated."""

    def __init__(self):
        super().__init__()
        self.letter = nn.Embedding(N_LETTERS + 1, WIDTH)
        self.position = nn.Embedding(2 * LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, N_LETTERS)

    def forward(self, tokens):
        x = self.letter(tokens) + self.position(torch.arange(tokens.shape[-1]))
        return self.head(self.norm(self.blocks(x)))[..., LENGTH:, :]


def texts(n, seed):
    """Texts of random letters: what is read, and what is to be repeated."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(N_LETTERS, (n, LENGTH), generator=generator)
    sign = torch.full((n, 1), N_LETTERS)
    return torch.cat([letters, sign, letters[:, :-1]], dim=1), letters


def loss_fn(outputs, targets, step):
    """Mean cross entropy of the tokens; the step does not matter."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


# %%
# Gradient descent on all of 64 texts
# -----------------------------------
RATE, N_STEPS, EVERY = 0.3, 240, 4
inputs, targets = texts(64, seed=0)
others = texts(500, seed=1)
torch.manual_seed(0)
model = Copier()
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
layout = landscape.ParamLayout.of(model)
temporary = tempfile.TemporaryDirectory()
path = Path(temporary.name) / "copier.h5"


def share(texts):
    """Share of the tokens that are repeated rightly."""
    with torch.no_grad():
        return (model(texts[0]).argmax(-1) == texts[1]).float().mean().item()


with landscape.RunWriter(
    path,
    layout,
    history=["loss", "accuracy", "validation_accuracy"],
    attrs={"optimizer": "gd", "learning_rate": RATE},
    dtype="float32",
) as writer:
    for step in range(N_STEPS + 1):
        loss = loss_fn(model(inputs), targets, step)
        writer.append(
            step,
            layout.flatten_model(model) if step % EVERY == 0 else None,
            loss=loss.item(),
            accuracy=share((inputs, targets)),
            validation_accuracy=share(others),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# Curvature, of the whole and of its parts
# ----------------------------------------
# The Hessian of a part is the block of its parameters alone; ``parameters=`` takes patterns of their names.
PARTS = {
    "embeddings": ("letter.*", "position.*"),
    "first block": "blocks.0.*",
    "second block": "blocks.1.*",
    "head": ("norm.*", "head.*"),
}
run = landscape.open_run(path)
objective = landscape.Objective(model, loss_fn, inputs, targets)
eigs = landscape.top_eigenpairs(objective, run.checkpoints, k=1, tol=1e-2)
parts = {
    name: landscape.top_eigenpairs(
        objective,
        run.checkpoints.isel(step=slice(None, None, 3)),
        k=1,
        tol=1e-2,
        parameters=patterns,
    )
    for name, patterns in PARTS.items()
}

with viz.style():
    figure, axes = plt.subplots(
        3, 1, figsize=(6.9, 5.2), sharex=True, layout="constrained"
    )
    axes[0].plot(run.history.step, run.history.loss, "k", label="loss")
    axes[0].set(yscale="log", ylabel="Loss")
    right = axes[0].twinx()
    for name, style in (("accuracy", "-"), ("validation_accuracy", ":")):
        text = {"accuracy": "64 texts", "validation_accuracy": "500 others"}
        right.plot(
            run.history.step,
            run.history[name],
            style,
            color=MODE_COLORS[1],
            label=f"rightly repeated, {text[name]}",
        )
    right.set(ylabel="Share of tokens", ylim=(0, 1.05))
    right.spines.right.set_visible(True)
    right.legend(loc="center right")
    viz.plot_eigenvalues(eigs, axes[1])
    for (name, of), color in zip(parts.items(), MODE_COLORS, strict=False):
        axes[2].plot(of.step, of.eigenvalue[:, 0], ".-", color=color, label=name)
    axes[2].set(
        yscale="log", xlabel="Step (updates)", ylabel=r"$\lambda_1$ of a part"
    )
    axes[2].legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for ax in axes[:2]:
        ax.set_xlabel("")
    viz.panel_letters(axes)
plt.show()

# %%
# The sharpness passes the threshold while the first texts are repeated. Descent is no longer stable there: the loss jumps
# up, some of what was learnt is lost, and within a few steps the sharpness is below the threshold again. Most of it is
# in the blocks; that of the head is highest later, when the answers become certain.

# %%
# In numbers
# ----------
highest = eigs.isel(step=int(np.argmax(eigs.eigenvalue.values[:, 0])))
print(
    f"{objective.n_params} parameters; share of tokens repeated rightly at the end:"
)
print(
    f"  {float(run.history.accuracy[-1]):.3f} of the 64 texts, "
    f"{float(run.history.validation_accuracy[-1]):.3f} of 500 others"
)
print(
    f"sharpness at first {float(eigs.eigenvalue[0, 0]):.2f}, at its highest "
    f"{float(highest.eigenvalue[0]):.2f} (step {int(highest.step)}), at the end "
    f"{float(eigs.eigenvalue[-1, 0]):.2f}; threshold {float(highest.threshold):.2f}"
)
for name, of in parts.items():
    peak = of.isel(step=int(np.argmax(of.eigenvalue.values[:, 0])))
    print(
        f"  {name}: highest {float(peak.eigenvalue[0]):.2f} at step {int(peak.step)}"
    )
certified = [bool(e.certified.all()) for e in (eigs, *parts.values())]
print(f"certified: {all(certified)}")
run.close()
temporary.cleanup()
