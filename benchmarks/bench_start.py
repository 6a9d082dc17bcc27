"""What the first call costs: compiling, and loading what was compiled before.

    python -m benchmarks.bench_start [--json FILE] [--dims 1 2 8]

For every d two processes with one cache, which is empty before the first: each imports torch, and from there on its
time is taken until the first maps are reduced and fitted. It is processor time, which other work on the machine does
not lengthen; little of all this runs on more than one core.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

from benchmarks import cases, timing
from gmmcnn.constants import MAX_DIMS

PROGRAM = """
import sys, time
import numpy as np, torch
maps = np.random.default_rng(0).normal(size=(2, 60, 50)).astype(np.float32)
start = time.process_time()
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca
imported = time.process_time()
scores = pca(maps, int(sys.argv[1]), engine="cpu").scores
reduced = time.process_time()
GaussianMixtureSweep(k_max=3, max_iter=1000, engine="cpu").fit(scores)
print(imported - start, reduced - imported, time.process_time() - reduced)
"""


@dataclass(frozen=True)
class Start:
    """Seconds of one core to the first result, from when torch is imported."""

    imports: float
    pca: float
    sweep: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.imports + self.pca + self.sweep


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=range(1, MAX_DIMS + 1))
    arguments = parser.parse_args()
    results = {d: measure(d) for d in arguments.dims}
    for d, (first, again) in results.items():
        print(
            f"d = {d}: compiled in {first.pca:.1f} s (PCA) and {first.sweep:.1f} s (sweep); "
            f"cached, the first result is there in {again.total:.2f} s, {again.imports:.2f} s of them imports"
        )
    content = {d: {"first": asdict(first), "again": asdict(again)} for d, (first, again) in results.items()}
    timing.write_json(arguments.json, {"title": "bench_start", "results": content})


def measure(d: int) -> tuple[Start, Start]:
    """The first process with a cache, and the second."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, "-c", PROGRAM, str(d)]
        runs = [subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True) for _ in range(2)]
    first, again = (Start(*map(float, run.stdout.split())) for run in runs)
    return first, again


if __name__ == "__main__":
    main()
