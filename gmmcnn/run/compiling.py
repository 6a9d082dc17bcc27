"""The CPU engine compiled ahead of work, its parts side by side, with a bar: what happens once on every machine.

``python -m gmmcnn.run.compiling krylov 2`` compiles one part for one number of dimensions, into Numba's cache.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gmmcnn.errors import EngineError
from gmmcnn.files import name_of
from gmmcnn.hardware import compiled
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import GRAM_PIXELS, pca
from gmmcnn.progress import progress

PARTS = ("sweep", "krylov", "gram")
"""The longest first: mixtures, and PCA of maps of many and of few pixels."""


def compile_part(part: str, dims: int) -> None:
    """Compile one of :data:`PARTS` for ``dims`` dimensions, by a problem of a few samples."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cache that cannot be written whoever asked is told otherwise
        if part == "sweep":
            GaussianMixtureSweep(k_max=3, engine="cpu").fit(rng.normal(size=(2, 60, dims)).astype(np.float32))
        else:
            n_pixels = GRAM_PIXELS + (part == "krylov")
            pca(rng.normal(size=(2, 60, n_pixels)).astype(np.float32), dims, engine="cpu")


def compile_ahead(dims: Iterable[int]) -> int:
    """Compile what is not compiled yet, as many parts at once as there are cores.

    Parameters
    ----------
    dims : iterable of int
        Numbers of dimensions, each of which is compiled on its own.

    Returns
    -------
    int
        Parts that were compiled now.

    Raises
    ------
    EngineError
        One cannot be compiled.
    """
    folder = compiled.cache_folder()
    due = [(part, d) for d in dims for part in PARTS if folder is None or not _mark(folder, part, d).exists()]
    if not due:
        return 0
    with (
        progress("compiling for this processor, once", len(due), "parts") as advance,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for (part, d), done in zip(due, pool.map(_in_a_process, due), strict=True):
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise EngineError(f"engine=cpu: {part} for pca.dims={d} cannot be compiled here: {reason}")
            if folder is not None and folder.is_dir():
                _mark(folder, part, d).touch()
            advance()
    return len(due)


def _in_a_process(due: tuple[str, int]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gmmcnn.run.compiling", due[0], str(due[1])]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def _mark(folder: Path, part: str, dims: int) -> Path:
    """Says that a part is compiled, for this processor and from these sources."""
    return folder / f"compiled-{part}-{dims}-{name_of(compiled.stamp())}"


if __name__ == "__main__":
    compile_part(sys.argv[1], int(sys.argv[2]))
