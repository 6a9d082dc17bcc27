"""Networks without shortcuts, from 8 × 8 pixels upwards.

Each is written in another of the ways that people write networks: activations as modules (SimpleCNN), as functions
(LeNet5), and in place (AlexNet).
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Three 3 × 3 convolutions, each with ReLU and a halving of the maps, and one linear layer.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : (H, W)
        At least 8 × 8.
    widths : tuple of three ints
        Filters of conv1, conv2 and conv3.
    """

    smallest_image = (8, 8)

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], n_classes: int, widths: tuple[int, int, int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, first, 3, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(first, second, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(second, third, 3, padding=1),
                relu3=nn.ReLU(),
                pool3=nn.MaxPool2d(2),
            )
        )
        height, width = (pixels // 8 for pixels in image_size)
        self.classifier = nn.Linear(third * height * width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, n_classes)."""
        return self.classifier(self.features(images).flatten(1))


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and maximum pooling.

    After LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition" (1998). As there,
    images of 32 × 32 pixels are not padded; smaller ones are, by 2, which brings 28 × 28 to the same maps. Where the
    second convolution would be left without a map to pool, it is padded too.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : (H, W)
        At least 4 × 4.
    """

    smallest_image = (4, 4)

    def __init__(self, in_channels: int, image_size: tuple[int, int], n_classes: int) -> None:
        super().__init__()
        padding1 = 0 if min(image_size) >= 32 else 2
        pooled = [(pixels + 2 * padding1 - 4) // 2 for pixels in image_size]
        padding2 = 0 if min(pooled) >= 6 else 2
        height, width = ((pixels + 2 * padding2 - 4) // 2 for pixels in pooled)
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=padding1)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=padding2)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, n_classes)."""
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        hidden = F.relu(self.fc2(F.relu(self.fc1(maps.flatten(1)))))
        return self.fc3(hidden)


class AlexNet(nn.Module):
    """The five convolutions of AlexNet, adapted to small images.

    After Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014), with its numbers of
    filters. For images under 64 pixels all kernels are 3 × 3 and pooling halves the maps; the first convolution has
    stride 2, or 1 under 16 pixels. The two hidden layers have 1024 units instead of 4096, which small images do not
    need.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : (H, W)
        At least 8 × 8.
    hidden : int
        Units of each hidden layer.
    dropout : float
        Share of hidden units dropped in training; 0 lets the network overfit faster.
    """

    smallest_image = (8, 8)

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], n_classes: int, hidden: int = 1024, dropout: float = 0.5
    ) -> None:
        super().__init__()
        stride = 1 if min(image_size) < 16 else 2
        height, width = (-(-pixels // stride) // 8 for pixels in image_size)
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 64, 3, stride=stride, padding=1),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(64, 192, 3, padding=1),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(192, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 256, 3, padding=1),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(256, 256, 3, padding=1),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(2),
            )
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * height * width, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, n_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # torch's own draw lets the signal fade over eight layers
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) → logits (N, n_classes)."""
        return self.classifier(self.features(images).flatten(1))
