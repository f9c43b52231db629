r"""
A network that others have trained
==================================

Silero VAD tells speech from other sounds, frame by frame; its weights come with its package from PyPI (MIT licence). Here
they are read as they lie there, and the landscape around them is looked at: how far can the parameters move before the
network answers otherwise?
"""

# %%
# The file, looked into first; nothing in it is run.
from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
import silero_vad
import torch
from safetensors.torch import load_file
from torch import nn

import landscape
import viz
from landscape.describe_state_dicts import describe_state_dicts
from viz.style import BLUE, MODE_COLORS

WEIGHTS = str(files(silero_vad) / "data" / "silero_vad_16k.safetensors")
print(
    describe_state_dicts([WEIGHTS]).replace(WEIGHTS, "silero_vad_16k.safetensors")
)

# %%
# The network in PyTorch
# ----------------------
# A spectrum, four convolutions, a recurrent layer. A file of weights does not say how they are used; the package's own
# program does, and is what the rebuilt network is compared with. The first layer is a Fourier transform, and stays fixed.
FRAME, CONTEXT, N_FRAMES, RATE = 512, 64, 12, 16_000


class Detector(nn.Module):
    """Answers with logits (sample, frame) for sounds (sample, frame, CONTEXT + FRAME)."""

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)
        self.stft_conv.requires_grad_(False)

    def forward(self, sound):
        frames = nn.functional.pad(sound.flatten(0, 1), (0, 64), mode="reflect")
        x = self.stft_conv(frames[:, None])
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        x = x.squeeze(-1).unflatten(0, sound.shape[:2])
        logits, state = [], None
        for i in range(x.shape[1]):
            state = self.lstm_cell(x[:, i], state)
            logits.append(self.final_conv(state[0].relu()[..., None])[:, 0, 0])
        return torch.stack(logits, dim=1)


model = Detector().eval()
checkpoint = landscape.read_state_dicts(
    {0: WEIGHTS}, landscape.ParamLayout.of(model)
).isel(step=0)
loaded = model.load_state_dict(load_file(WEIGHTS))

# %%
# The program that comes with the package holds the weights of another release. With those, the rebuilt network has to
# answer as the program does: here to noise, frame after frame.
PLACES = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    **{f"encoder.{i}.reparam_conv": f"conv{i + 1}" for i in range(4)},
    "decoder.rnn": "lstm_cell",
    "decoder.decoder.2": "final_conv",
}
program = silero_vad.load_silero_vad()
of_program = {
    name.replace(f"_model.{theirs}", ours): tensor
    for name, tensor in program.state_dict().items()
    for theirs, ours in PLACES.items()
    if name.startswith(f"_model.{theirs}")
}
other = Detector().eval()
other.load_state_dict(of_program)
torch.manual_seed(0)
stream = torch.cat([torch.zeros(CONTEXT), 0.1 * torch.randn(N_FRAMES * FRAME)])
with torch.no_grad():
    ours = other(stream.unfold(0, CONTEXT + FRAME, FRAME)[None]).sigmoid()[0]
    theirs = [program(x, RATE).item() for x in stream[CONTEXT:].split(FRAME)]
print(f"largest difference: {(ours - torch.tensor(theirs)).abs().max():.1e}")

# %%
# Sounds
# ------
# Synthetic ones, as no recording is at hand: voices, made by pulses through three resonances that glide from one vowel
# to another; pure tones; and noise. Each lasts 0.4 seconds.
VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
)
time = np.arange(CONTEXT + N_FRAMES * FRAME) / RATE


def voice(pitch, first, last):
    """A voice whose pitch falls while its resonances glide from one vowel to another."""
    share = time / time[-1]
    falling = pitch * (1.15 - 0.3 * share)
    phase = 2 * np.pi * np.cumsum(falling) / RATE
    harmonics = np.arange(1, 41)[:, None]
    frequencies = harmonics * falling
    strength = sum(
        1 / (1 + ((frequencies - f - share * (g - f)) / (50 + 0.04 * f)) ** 2)
        for f, g in zip(first, last, strict=True)
    )
    strength = strength * (frequencies < RATE / 2)
    loudness = 0.1 + np.sin(5 * np.pi * time) ** 2
    return loudness * (strength * np.sin(harmonics * phase)).sum(0)


pairs = [(a, b) for a in VOWELS for b in VOWELS if a != b]
sounds = {
    "voices": [voice(p, *pair) for p in (120, 210) for pair in pairs],
    "tones": [np.sin(2 * np.pi * f * time) for f in (200, 500, 1000, 3000)],
    "noise": list(np.random.default_rng(0).standard_normal((4, len(time)))),
}
waves = np.concatenate([np.stack(of) for of in sounds.values()])
waves = torch.tensor(0.1 * waves / waves.std(1, keepdims=True)).float()
inputs = waves.unfold(1, CONTEXT + FRAME, FRAME)
with torch.no_grad():
    own = model(inputs).sigmoid()
answers = own.split([len(of) for of in sounds.values()])
for name, answer in zip(sounds, answers, strict=True):
    low, high = answer.mean(1).aminmax()
    print(f"{name}: speech with probability {low:.2f} to {high:.2f}")

# %%
# The landscape of its answers
# ----------------------------
# Data and loss of the training are unknown. What can be asked is how its answers change: the loss is the Kullback–Leibler
# divergence of the moved network's answers from its own, per frame. It is zero at the pretrained parameters, a minimum by
# construction, and its Hessian there is the Fisher information of the answers.


def loss_fn(outputs, targets, step):
    """KL divergence of the answers from those of the pretrained network; the step does not matter."""
    cross = nn.functional.binary_cross_entropy_with_logits(outputs, targets)
    return (
        cross
        + (
            torch.xlogy(targets, targets) + torch.xlogy(1 - targets, 1 - targets)
        ).mean()
    )


objective = landscape.Objective(model, loss_fn, inputs, own)
eigs = landscape.top_eigenpairs(objective, checkpoint, k=5, tol=1e-2)
gradient = objective.gradient(checkpoint.params.values, 0).norm()
print(f"{objective.n_params} parameters; norm of the gradient {gradient:.1e}")
print("largest eigenvalues:", eigs.eigenvalue.values.round(2))
print(f"certified: {bool(eigs.certified.all())}")

# %%
# Which layer
# -----------
# The sharpness of each layer alone, and the divergence along the sharpest direction of all, the fifth, and a random one
# in which every filter moves by its own share; distances are those in the space of parameters.
LAYERS = ("conv1", "conv2", "conv3", "conv4", "lstm_cell", "final_conv")
sharpness = [
    landscape.top_eigenpairs(
        objective, checkpoint, k=1, tol=1e-2, parameters=f"{layer}.*"
    )
    for layer in LAYERS
]
random = landscape.random_directions(checkpoint, layout=objective.layout, seed=0)
directions = {
    r"$v_1$": eigs.eigenvector.isel(mode=0),
    r"$v_5$": eigs.eigenvector.isel(mode=4),
    "random": random.direction[0] / random.length[0],
}
lines = {
    name: landscape.line_slice(
        objective, checkpoint, direction, half_width=1.0, n_points=61
    )
    for name, direction in directions.items()
}
with viz.style():
    figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.5), layout="constrained")
    axes[0].barh(LAYERS, [float(e.eigenvalue[0]) for e in sharpness], color=BLUE)
    axes[0].invert_yaxis()
    axes[0].set(xscale="log", xlabel=r"$\lambda_1$ of the layer")
    for (name, line), color in zip(lines.items(), MODE_COLORS, strict=False):
        viz.plot_line_slice(line, axes[1], color=color, label=name)
    axes[1].set(ylabel="Divergence of the answers", xlabel=r"Distance $\alpha$")
    axes[1].legend()
    viz.panel_letters(axes)
plt.show()

# %%
# A short step along the sharpest direction, and the answers are farther from the network's own than a constant 1/2 would
# be; along a random direction of the same length nothing is to be seen. The convolutions are what is sharp.

# %%
# The surface around it
# ---------------------
# Two random directions whose filters are as long as those of the network (Li et al. 2018, arXiv 1712.09913), so that 1
# on an axis is a change of every filter by its own size.
plane = landscape.plane_slice(
    objective,
    checkpoint,
    random,
    half_width=tuple(0.5 * random.length.values),
    n_points=30,  # even: zero at the centre has no logarithm
)
unit = plane.assign_coords(
    alpha=plane.alpha / float(random.length[0]),
    beta=plane.beta / float(random.length[1]),
)
unit.loss.attrs["long_name"] = "Divergence of the answers"
with viz.style():
    figure, ax = plt.subplots(figsize=(4.2, 3.3), layout="constrained")
    viz.plot_plane_slice(unit, ax, scale="log", title=False)
    ax.set(
        xlabel=r"Random direction 1, filter sizes",
        ylabel="Random direction 2, filter sizes",
    )
plt.show()
print(
    f"an answer that says nothing, 1/2, is {float(loss_fn(torch.zeros_like(own), own, 0)):.2f} away"
)
for share in (0.1, 0.3, 1.0):
    moved = checkpoint.params.values + share * random.direction.values[0]
    away = float(objective.loss(moved, 0))
    print(f"every filter changed by {share:.1f} of its size: {away:.4f}")
