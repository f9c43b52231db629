"""A ResNet-20 for 32×32 images with projection shortcuts (He et al. 2015, arXiv:1512.03385): 272,474 parameters."""

import torch
from torch import nn


class Block(nn.Module):
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
        projection = (nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.shortcut = nn.Identity() if (n_in, stride) == (n_out, 1) else nn.Sequential(*projection)

    def forward(self, images):
        return torch.relu(self.residual(images) + self.shortcut(images))


def resnet20() -> nn.Sequential:
    """The network with PyTorch's default initialisation."""
    blocks = [
        Block(n_in, n_out, stride)
        for stage, n_out in enumerate((16, 32, 64))
        for n_in, stride in [(max(16, n_out // 2), 1 if stage == 0 else 2), (n_out, 1), (n_out, 1)]
    ]
    stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
