"""Networks of four sizes in two families, their data and losses: what the costs of analyses are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

WIDTHS = {"0.01M": 2, "0.1M": 6, "1M": 19, "11M": 64}
"""Channels of the first stage of a ResNet-18; 64 is the network of He et al. (2015, arXiv 1512.03385)."""

SHAPES = {"0.01M": (16, 2), "0.1M": (48, 3), "1M": (128, 5), "11M": (384, 6)}
"""Width and number of blocks of a transformer like GPT-2."""

N_IMAGES, N_SEQUENCES, N_TOKENS, VOCABULARY = 32, 16, 64, 64


@dataclass(frozen=True)
class Case:
    """A model, its loss and its data."""

    model: nn.Module
    loss_fn: Callable
    inputs: torch.Tensor
    targets: torch.Tensor
    block: str
    """Pattern of the parameters of its last block."""


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norm beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        changes = (n_in, stride) != (n_out, 1)
        projection = [nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)]
        self.shortcut = nn.Sequential(*projection) if changes else nn.Identity()

    def forward(self, images):
        return torch.relu(self.residual(images) + self.shortcut(images))


def resnet18(width: int = 64) -> nn.Sequential:
    """A ResNet-18 as it is used for images of 32×32 pixels: no pooling at the entrance."""
    stages, n_in = [], width
    for stage in range(4):
        n_out = width * 2**stage
        stages.append(nn.Sequential(Residual(n_in, n_out, 1 if stage == 0 else 2), Residual(n_out, n_out, 1)))
        n_in = n_out
    stem = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 10))


class Attention(nn.Module):
    """A block of GPT-2: causal attention and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.n_heads = max(1, width // 32)
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        parts = self.mix(self.norm_attention(x)).unflatten(-1, (3, self.n_heads, -1)).movedim(-3, 0)
        query, key, value = parts.transpose(-2, -3)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(-2, -3).flatten(-2))
        return x + self.perceptron(self.norm_perceptron(x))


class Transformer(nn.Module):
    """A language model like GPT-2 (Radford et al. 2019), with the embedding tied to the output."""

    def __init__(self, width: int, n_blocks: int):
        super().__init__()
        self.embedding, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(N_TOKENS, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.Sequential(*(Attention(width) for _ in range(n_blocks)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[-1]))
        return self.norm(self.blocks(x)) @ self.embedding.weight.T


class Logits(nn.Module):
    """A model of transformers that answers with its logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


def gpt2(width: int, n_blocks: int) -> Logits:
    """GPT-2 of transformers with random weights, of the sizes of `Transformer`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_positions": N_TOKENS, "n_embd": width, "n_layer": n_blocks}
    config = GPT2Config(
        **sizes, n_head=max(1, width // 32), bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    return Logits(GPT2LMHeadModel(config))


def images(size: str) -> Case:
    """A ResNet on random images of ten classes, each with a mean of its own."""
    torch.manual_seed(0)
    classes = torch.arange(N_IMAGES) % 10
    inputs = torch.randn(10, 3, 32, 32)[classes] + torch.randn(N_IMAGES, 3, 32, 32)
    model = resnet18(WIDTHS[size])
    return Case(model, lambda outputs, targets, step: cross_entropy(outputs, targets), inputs, classes, "6.1.*")


def tokens(size: str, make: Callable = Transformer) -> Case:
    """A transformer on texts in which each token follows from the one before, most of the time."""
    torch.manual_seed(0)
    follows, text = torch.randperm(VOCABULARY), torch.randint(VOCABULARY, (N_SEQUENCES, N_TOKENS + 1))
    for i in range(N_TOKENS):
        kept = torch.rand(N_SEQUENCES) < 0.8
        text[:, i + 1] = torch.where(kept, follows[text[:, i]], text[:, i + 1])
    model = make(*SHAPES[size])
    last = SHAPES[size][1] - 1
    block = f"blocks.{last}.*" if make is Transformer else f"model.transformer.h.{last}.*"
    return Case(model, next_token, text[:, :-1].contiguous(), text[:, 1:].contiguous(), block)


def next_token(outputs, targets, step):
    """Mean cross entropy of the next token; the step does not matter."""
    return cross_entropy(outputs.flatten(0, -2), targets.flatten())


FAMILIES: dict[str, Callable[[str], Case]] = {
    "ResNet-18": images,
    "transformer": tokens,
    "transformers.GPT2": lambda size: tokens(size, gpt2),
}
