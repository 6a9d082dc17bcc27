"""A residual network of torchvision's kind, written here so that nothing need be installed: what is tapped and found.

python examples/resnet.py
"""

from itertools import pairwise

import torch
from torch import nn

import gmmcnn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        same = stride == 1 and n_in == n_out
        self.downsample = (
            None if same else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        activated: torch.Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return activated


def resnet18(n_classes: int = 10) -> nn.Sequential:
    """ResNet-18 with the stem of torchvision's."""
    widths = (64, 64, 128, 256, 512)
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    blocks = [
        block
        for stage, (n_in, n_out) in enumerate(pairwise(widths))
        for block in (Block(n_in, n_out, 1 if stage == 0 else 2), Block(n_out, n_out, 1))
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, n_classes))


if __name__ == "__main__":
    torch.manual_seed(0)
    images, labels = torch.rand(256, 3, 64, 64), torch.arange(256) % 10
    analysis = gmmcnn.analyze(resnet18().eval(), images, labels)  # put your own weights and images here
    print(analysis)
    print(analysis.filters.groupby("layer", sort=False)["tap"].first().to_string())
    print("Page:", analysis.to_html("resnet18.html"))
