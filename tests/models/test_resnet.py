"""Residual networks: depth, widths, and shortcuts without weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmmcnn.models.resnet import WIDTHS, Block, ResNet, resnet8, resnet20


@pytest.mark.parametrize(("network", "layers"), [(resnet8, 8), (resnet20, 20)])
def test_the_name_tells_the_number_of_layers(network, layers) -> None:
    model = network(3, (32, 32), 10)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == layers
    assert {convolution.kernel_size for convolution in convolutions} == {(3, 3)}
    assert all(convolution.bias is None for convolution in convolutions)
    per_stage = (layers - 2) // 3
    assert [c.out_channels for c in convolutions[1:]] == [width for width in WIDTHS for _ in range(per_stage)]
    assert [c.stride[0] for c in convolutions].count(2) == 2


def test_maps_are_halved_twice() -> None:
    model, sizes = ResNet(3, 10, 2).eval(), []
    for stage in (model.stage1, model.stage2, model.stage3):
        assert len(stage) == 2
        stage.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    model(torch.rand(1, 3, 33, 20))
    assert sizes == [(16, 33, 20), (32, 17, 10), (64, 9, 5)]


@pytest.mark.parametrize(("in_channels", "stride"), [(4, 1), (4, 2), (2, 2)])
def test_a_block_that_adds_nothing_hands_on_its_input(in_channels, stride) -> None:
    """Option A: every stride-th pixel, and zeros for the channels that are new."""
    block = Block(in_channels, 4, stride).eval()
    nn.init.zeros_(block.bn2.weight)
    maps = torch.rand(2, in_channels, 7, 6)
    out = block(maps)
    torch.testing.assert_close(out[:, :in_channels], maps[:, :, ::stride, ::stride])
    assert not out[:, in_channels:].any()
    assert out.shape == (2, 4, -(-7 // stride), -(-6 // stride))


def test_a_block_is_rectified_after_the_addition() -> None:
    torch.manual_seed(0)
    block, maps = Block(3, 3, 1).eval(), torch.randn(2, 3, 5, 5)
    main = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(maps)))))
    torch.testing.assert_close(block(maps), (main + maps).clamp(min=0))
    assert (block(maps) == 0).any()


def test_logits_are_of_the_means_of_the_last_maps() -> None:
    torch.manual_seed(0)
    model, x = resnet8(1, (9, 9), 5).eval(), torch.rand(2, 1, 9, 9)
    maps = model.stage3(model.stage2(model.stage1(F.relu(model.bn1(model.conv1(x))))))
    torch.testing.assert_close(model(x), model.classifier(maps.mean((2, 3))))


def test_weights_are_drawn_for_rectified_outputs() -> None:
    torch.manual_seed(0)
    weight = resnet8(3, (8, 8), 10).stage3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
