"""Networks that somebody else wrote: asked before they run, run without a trace, their errors made ours."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gmmcnn.errors import CaptureError, ConfigurationError, ModelError
from gmmcnn.models import foreign
from gmmcnn.models.foreign import eager, outcome, runnable, undisturbed, unwrapped

IMAGES = torch.rand(2, 1, 4, 4)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_wrappers_are_taken_off_however_many_there_are() -> None:
    inner = convolution()
    compiled = SimpleNamespace(_orig_mod=inner)
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(inner)) is inner
    assert unwrapped(compiled) is inner
    assert unwrapped(SimpleNamespace(_orig_mod=nn.DataParallel(inner))) is inner


def test_a_network_that_hooks_reach_is_runnable() -> None:
    inner = convolution()
    assert runnable(nn.DataParallel(inner), ModelError) is inner


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (convolution().state_dict(), "the model is a OrderedDict; .*load it into the network that it belongs to"),
        ("weights.pt", r"the model is a str; expected a torch\.nn\.Module$"),
        (nn.LazyConv2d(2, 3), r"weight has no size yet \(a lazy module\); run the model once"),
        (nn.Conv2d(1, 2, 3, device="meta"), "weight is on the meta device and holds no numbers"),
        (nn.BatchNorm2d(2, affine=False, device="meta"), "running_mean is on the meta device"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_remedy(model: object, message: str) -> None:
    for kind in (ModelError, CaptureError):
        with pytest.raises(kind, match=message):
            runnable(model, kind)  # type: ignore[arg-type]


def test_a_scripted_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(nn.Module):
        pass

    monkeypatch.setattr(foreign.torch.jit, "ScriptModule", Scripted)
    with pytest.raises(ModelError, match="scripted module, which hooks do not reach"):
        runnable(Scripted(), ModelError)


def test_what_a_network_makes_of_images_is_handed_on() -> None:
    assert torch.equal(outcome(nn.Flatten(), IMAGES, ModelError), IMAGES.flatten(1))


@pytest.mark.parametrize("error", [RuntimeError("size\nmismatch"), KeyError("key"), SystemExit(3), AssertionError()])
def test_whatever_a_network_raises_becomes_one_of_ours(error: BaseException) -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise error

    with pytest.raises(CaptureError, match=rf"images of shape \(2, 1, 4, 4\): {type(error).__name__}: ") as raised:
        outcome(Failing(), IMAGES, CaptureError)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, ConfigurationError, KeyboardInterrupt])
def test_memory_our_own_errors_and_interrupts_pass(error: type[BaseException]) -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise error

    with pytest.raises(error):
        outcome(Failing(), IMAGES, CaptureError)


class OfTwo(nn.Module):
    def forward(self, images: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return images * mask


class OfNone(nn.Module):
    def forward(self) -> None:
        return None


class OfNamed(nn.Module):
    def forward(self, *, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OfTwo(), r"OfTwo\.forward needs mask besides the images; wrap it"),
        (OfNone(), r"OfNone\.forward takes no images; wrap it"),
        (OfNamed(), r"OfNamed\.forward takes no images; wrap it"),
    ],
)
def test_arguments_beyond_the_images_are_named(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        outcome(model, IMAGES, ModelError)


def test_modes_buffers_and_random_numbers_are_what_they_were_also_after_an_error() -> None:
    model = convolution().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffer, state = model[1].running_mean, torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(model):  # noqa: PT012
        assert not any(module.training for module in model.modules())
        torch.rand(3)
        model[1].train()
        model(torch.rand(4, 1, 5, 5))
        model[1].running_mean = torch.ones(2)
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].running_mean is buffer
    assert torch.equal(torch.get_rng_state(), state)


def test_an_overridden_eval_is_not_called() -> None:
    class Strict(nn.Module):
        def eval(self) -> nn.Module:
            raise AssertionError

        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError

    model = Strict()
    with undisturbed(model):
        assert not model.training
    assert model.training


def test_a_pending_backward_pass_still_works() -> None:
    """Buffers that did not change are not written: autograd would take that for a change in place."""
    model = convolution().eval()
    loss = model(IMAGES).sum()
    with undisturbed(model):
        model(IMAGES)
    loss.backward()
    assert model[0].weight.grad is not None


def test_compiled_code_runs_uncompiled_where_anything_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    stances: list[str] = []

    class Stance:
        def __init__(self, name: str) -> None:
            stances.append(name)

        def __enter__(self) -> None:
            stances.append("entered")

        def __exit__(self, *_: object) -> None:
            stances.append("left")

    monkeypatch.setattr(torch.compiler, "set_stance", Stance)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with eager():
        assert stances == []
    monkeypatch.setitem(sys.modules, "torch._dynamo", SimpleNamespace())  # type: ignore[arg-type]
    with eager():
        assert stances == ["force_eager", "entered"]
    assert stances[-1] == "left"


def test_every_kind_of_convolution_has_filters() -> None:
    assert {f"Conv{kind}{d}d" for kind in ("", "Transpose") for d in (1, 2, 3)} == {
        convolution.__name__ for convolution in foreign.CONVOLUTIONS
    }
