"""Residual networks for small images.

After He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016), section 4.2: 6n + 2 layers, three
stages of n blocks with 16, 32 and 64 filters, the second and third stage halving the maps. Shortcuts are the paper's
option A: they have no weights, so that every convolution of the network is a 3 × 3 one on the main path, with filters
to analyse.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm, and the shortcut that is added before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) → (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self._shortcut(maps))

    def _shortcut(self, maps: Tensor) -> Tensor:
        """Every stride-th pixel, and zeros for the channels that the block adds."""
        kept = maps[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else kept


class ResNet(nn.Module):
    """Residual network with ``6 * blocks_per_stage + 2`` layers.

    Parameters
    ----------
    in_channels, n_classes : int
    blocks_per_stage : int
        1 for ResNet-8, 3 for ResNet-20.
    """

    def __init__(self, in_channels: int, n_classes: int, blocks_per_stage: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.stage1 = _stage(WIDTHS[0], WIDTHS[0], blocks_per_stage, stride=1)
        self.stage2 = _stage(WIDTHS[0], WIDTHS[1], blocks_per_stage, stride=2)
        self.stage3 = _stage(WIDTHS[1], WIDTHS[2], blocks_per_stage, stride=2)
        self.classifier = nn.Linear(WIDTHS[2], n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, n_classes)."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.stage3(self.stage2(self.stage1(maps)))
        return self.classifier(maps.mean(dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, n_blocks: int, *, stride: int) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(Block(out_channels, out_channels, 1) for _ in range(n_blocks - 1)))


def resnet8(in_channels: int, image_size: tuple[int, int], n_classes: int) -> ResNet:
    """ResNet-8: seven convolutions; images of any size."""
    return ResNet(in_channels, n_classes, blocks_per_stage=1)


def resnet20(in_channels: int, image_size: tuple[int, int], n_classes: int) -> ResNet:
    """ResNet-20: nineteen convolutions; images of any size."""
    return ResNet(in_channels, n_classes, blocks_per_stage=3)
