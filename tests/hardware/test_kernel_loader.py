from typing import Any

import pytest
from cuda_shim.device import RawModule
from cuda_shim.fixtures import cupy, fibers

from gmmcnn.hardware import kernel_loader

__all__ = ["cupy", "fibers"]


@pytest.mark.parametrize("file", ["gmm_em", "pca", "calinski_harabasz"])
def test_headers_are_spliced_as_text_and_lines_keep_their_numbers(file: str) -> None:
    text, own = kernel_loader.source(file), kernel_loader._read(f"{file}.cu")
    assert "#include" not in text
    assert kernel_loader._read("common.cuh") in text
    line = next(i for i, line in enumerate(own.splitlines(), 1) if "#include" in line)
    before, after = text.split(f'#line {line + 1} "{file}.cu"\n')
    assert before.startswith("\n".join(own.splitlines()[: line - 1]))
    assert after == "\n".join(own.splitlines()[line:]) + "\n"


def test_macros_become_options() -> None:
    assert kernel_loader.options(REAL="float", DIMS=3)[-2:] == ("-DDIMS=3", "-DREAL=float")


def test_a_module_is_made_once_for_each_set_of_macros(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []

    class Counted(RawModule):
        def __init__(self, code: str, options: tuple[str, ...]) -> None:
            made.append(options)
            super().__init__(code, options)

    monkeypatch.setattr(fibers, "RawModule", Counted)
    for dims in (2, 2, 3):
        kernel_loader.kernel("calinski_harabasz", "calinski_harabasz", DIMS=dims)
        kernel_loader.kernel("calinski_harabasz", "choose_n_components", DIMS=dims)
    assert len(made) == 2
    kernel_loader.clear()
    kernel_loader.kernel("calinski_harabasz", "calinski_harabasz", DIMS=2)
    assert len(made) == 3


def test_an_unknown_kernel_is_named(fibers: Any) -> None:
    with pytest.raises(KeyError, match="nothing: the source has the kernels"):
        kernel_loader.kernel("pca", "nothing")
