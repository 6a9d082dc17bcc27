"""What share of the convolutions of known architectures is analysed, and whether their maps are those that hooks see.

    python -m benchmarks.bench_coverage [--json FILE] [--only NAME ...]

Needs timm. One small variant a family, with random weights, and two random images. Captured maps are compared bit for
bit with what plain forward hooks see modules give: the module that the tap names, or any where it names none.
"""

import argparse
import re
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from gmmcnn.errors import GmmcnnError
from gmmcnn.featuremaps.capture import capture, find_taps
from gmmcnn.featuremaps.taps import Taps
from gmmcnn.models.foreign import CONVOLUTIONS

# fmt: off
TIMM = (
    "caformer_s18", "cait_xxs24_224", "coat_tiny", "convit_tiny", "convmixer_768_32", "convnext_atto", "cpubone_nano",
    "crossvit_tiny_240", "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121",
    "dla46x_c", "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0",
    "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_slim_dw", "eva02_tiny_patch14_224",
    "fasternet_t0", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf", "gcvit_xxtiny", "gernet_s", "ghostnet_050",
    "gmlp_ti16_224", "halonet_h1", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small", "iformer_t",
    "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small",
    "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_b0", "mambaout_femto", "maxvit_pico_rw_256",
    "mixnet_s", "mnasnet_small", "mobilenetv2_050", "mobilenetv3_small_050", "mobileone_s0", "mobilevit_xxs",
    "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "pvt_v2_b0",
    "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvgg_a0", "repvit_m1", "res2next50", "resnest14d", "resnet10t",
    "resnetv2_18", "rexnet_100", "selecsls42", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tinynet_e",
    "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224",
    "vitamin_small_224", "volo_d1_224", "xception41p", "xcit_nano_12_p8_224",
)
TORCHVISION = (
    "alexnet", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small",
    "convnext_tiny", "swin_v2_t", "vit_b_16", "maxvit_t", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large",
)
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
# fmt: on


@dataclass(frozen=True)
class Coverage:
    """Convolutions of one network."""

    network: str
    convolutions: int
    analysed: int
    equal: int
    """Analysed, with maps equal to a module's output; ``no_module`` gives them, where the tap names none."""
    differ: list[str]
    no_module: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.network}: {self.analysed} of {self.convolutions} analysed, {self.equal} equal"]
        lines += [f"    {layer} differs" for layer in self.differ]
        lines += [f"    {layer} is no module's output" for layer in self.no_module]
        return "\n".join(lines + [f"    {layer} {reason}" for layer, reason in self.skipped.items()])


def covered(name: str) -> Coverage:
    """Find and capture the maps of one network, then look for them among its modules' outputs."""
    model, images, taps = _tapped(name)
    maps: dict[str, Tensor] = {}
    capture(model, images, taps, lambda layer, values: maps.update({layer: values.clone()}))
    makers = {tap.layer: _maker(tap.layer, tap.description) for tap in taps.analysed}
    equal: set[str] = set()

    def look(module: str, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            unseen = [layer for layer in maps.keys() - equal if makers[layer] in (None, module)]
            equal.update(layer for layer in unseen if _same(output, maps[layer]))

    for module_name, module in model.named_modules():
        module.register_forward_hook(partial(look, module_name))
    with torch.no_grad():
        model(images)
    others = [layer for layer in maps if layer not in equal]
    return Coverage(
        network=name,
        convolutions=sum(isinstance(module, CONVOLUTIONS) for module in model.modules()),
        analysed=len(taps.analysed),
        equal=len(equal),
        differ=[layer for layer in others if makers[layer]],
        no_module=[layer for layer in others if not makers[layer]],
        skipped={skipped.layer: skipped.reason for skipped in taps.skipped},
    )


def _tapped(name: str) -> tuple[nn.Module, Tensor, Taps]:
    """A network with random weights, two images of the smallest size that it takes, and its taps."""
    import timm  # takes seconds
    from torchvision.models import get_model

    torch.manual_seed(0)
    sizes = [(3, 64, 64), (3, 128, 128), (3, 224, 224)]
    if name in TORCHVISION + VIDEO:
        backbone = {"weights_backbone": None} if name.endswith("_v3_large") else {}
        model = get_model(name, weights=None, **backbone)
        sizes = [(3, 16, 112, 112), (3, 16, 224, 224)] if name in VIDEO else sizes
    else:
        model = timm.create_model(name)
        sizes[-1] = model.default_cfg["input_size"]
    for parameter in model.eval().parameters():  # none is left at zero, so that no maps are alike by their zeros
        parameter.data += 0.02 * torch.randn_like(parameter)
    for size in sizes[:-1]:
        with suppress(GmmcnnError):  # too small for it
            images = torch.randn(2, *size)
            return model, images, find_taps(model, images)
    images = torch.randn(2, *sizes[-1])
    return model, images, find_taps(model, images)


def _maker(layer: str, description: str) -> str | None:
    """Name of the module that a tap says makes the maps, None for a function that is called outside of leaf modules."""
    last = re.search(r"\(([^()]*)\)$", description)
    return last[1] if last else None if description.startswith("after ") else layer


def _same(output: Tensor, maps: Tensor) -> bool:
    """Whether a tensor, with its channels on any axis, holds the maps (N, C, H, W)."""
    axes = [axis for axis in range(1, output.ndim) if output.shape[axis] == maps.shape[1]]
    return output.numel() == maps.numel() and any(
        torch.equal(output.movedim(axis, 1).reshape(maps.shape), maps) for axis in axes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=TIMM + TORCHVISION + VIDEO, metavar="NAME")
    arguments = parser.parse_args()
    try:
        import timm  # noqa: F401
    except ImportError as error:
        sys.exit(f"bench_coverage needs timm (pip install timm): {error}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = []
    for name in arguments.only:
        found.append(covered(name))
        print(found[-1], flush=True)
    total, analysed, equal = (
        sum(getattr(one, what) for one in found) for what in ("convolutions", "analysed", "equal")
    )
    print(f"{len(found)} families: {analysed} of {total} convolutions analysed ({analysed / total:.1%}), {equal} equal")
    print("below 95 %:", *[one.network for one in found if one.analysed < 0.95 * one.convolutions] or ["none"])
    timing.write_json(arguments.json, {"title": "coverage", "results": [asdict(one) for one in found]})


if __name__ == "__main__":
    main()
