"""Networks that make capturing hard, each with a plain computation of its maps to compare with."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InPlaceBlock(nn.Module):
    """A residual block as torchvision writes it: one ReLU module used twice, in place, after an in-place addition."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class InPlaceResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(InPlaceBlock(8, 8, 1), InPlaceBlock(8, 8, 1))
        self.layer2 = nn.Sequential(InPlaceBlock(8, 16, 2), InPlaceBlock(16, 16, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def in_place_resnet_maps(model: InPlaceResNet, x: Tensor) -> dict[str, Tensor]:
    maps = {"conv1": F.relu(model.bn1(model.conv1(x)))}
    x = F.max_pool2d(maps["conv1"], 2)
    for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        block = model.get_submodule(name)
        inner = maps[f"{name}.conv1"] = F.relu(block.bn1(block.conv1(x)))
        identity = x if block.downsample is None else block.downsample(x)
        x = maps[f"{name}.conv2"] = F.relu(block.bn2(block.conv2(inner)) + identity)
    return maps


def sequential_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a network whose ``features`` are a Sequential of convolutions, ReLUs and pooling."""
    maps, layer = {}, ""
    for name, module in model.features.named_children():
        if isinstance(module, nn.Conv2d):
            x, layer = module(x), f"features.{name}"
        elif isinstance(module, nn.ReLU):
            x = maps[layer] = F.relu(x)
        else:
            x = module(x)
    return maps


def lenet_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    first = F.relu(model.conv1(x))
    return {"conv1": first, "conv2": F.relu(model.conv2(F.max_pool2d(first, 2)))}


def resnet_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = F.relu(model.bn1(model.conv1(x)))
    maps = {"conv1": x}
    for stage in ("stage1", "stage2", "stage3"):
        for index, block in enumerate(model.get_submodule(stage)):
            inner = maps[f"{stage}.{index}.conv1"] = F.relu(block.bn1(block.conv1(x)))
            x = F.relu(block.bn2(block.conv2(inner)) + block._shortcut(x))
            maps[f"{stage}.{index}.conv2"] = x
    return maps


@dataclass
class Case:
    """A network in training mode, images, and the plain computation of all its post-activation maps."""

    model: nn.Module
    images: Tensor
    plain: Callable[[nn.Module, Tensor], dict[str, Tensor]]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Layer → (N, C, H, W), computed in eval mode and in no other pass's memory."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            maps = self.plain(self.model, images)
        self.model.train(was_training)
        return maps


def randomised(model: nn.Module) -> nn.Module:
    """BatchNorm as after training: statistics, weights and biases away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3, generator=generator)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture
def in_place_resnet() -> nn.Module:
    torch.manual_seed(0)
    return randomised(InPlaceResNet())


BUILT_IN = {
    "simple_cnn": sequential_maps,
    "lenet5": lenet_maps,
    "alexnet": sequential_maps,
    "resnet8": resnet_maps,
    "resnet20": resnet_maps,
}


@pytest.fixture(params=[*BUILT_IN, "in_place_resnet"])
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the built-in networks, and one with in-place ReLUs."""
    from gmmcnn.models.building import BUILT_IN as NETWORKS

    torch.manual_seed(0)
    if request.param == "in_place_resnet":
        model, plain = InPlaceResNet(), in_place_resnet_maps
    else:
        model = NETWORKS[request.param](in_channels=3, image_size=(32, 32), n_classes=10)
        plain = BUILT_IN[request.param]
    return Case(randomised(model).train(), torch.rand(11, 3, 32, 32), plain)
