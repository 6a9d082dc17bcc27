"""Commands whose file operations are counted, and disturbed at one of them."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TINY = (
    "data.train_samples=60", "train.epochs=2", "train.checkpoint_epochs=[1,2]", "probe.samples=30", "probe.batches=2",
    "extract.forward_samples=16", "extract.keep_maps=all", "gmm.k_max=3", "gmm.n_init=1", "gmm.repeats=1",
    "screen.ch_ratio=0", "screen.activation_ratio=0", "prune.controls=1", "engine.name=cpu", "engine.threads=1",
    "quiet=true",
)  # fmt: skip
"""Settings of a run that does everything in less than a second."""
DISTURBANCES = {
    "killed": ("k", 0),
    "torn": ("t", 0),
    "no space, once": ("e", errno.ENOSPC),
    "no space from then on": ("f", errno.ENOSPC),
    "input/output error, once": ("e", errno.EIO),
    "input/output errors from then on": ("f", errno.EIO),
}
"""What is done to an operation: see ``shim.c``."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes
    ----------
    code : int
        Exit code; negative: the signal that ended it.
    operations : int
        That changed something below the folder, or failed to.
    said : str
        All that it printed.
    """

    code: int
    operations: int
    said: str

    @property
    def told_in_one_line(self) -> bool:
        """Whether it failed as it should: by one line for people, with no traceback and nothing unexpected in it."""
        lines = [line for line in self.said.splitlines() if line.startswith("gmmcnn: ")]
        unforeseen = any(word in self.said for word in ("Traceback", "unexpected", "Error:", "Exception"))
        return self.code in (1, 2) and len(lines) == 1 and not unforeseen


class Commands:
    """A process from which commands are forked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def do(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        disturbance: str = "",
        at: int = 0,
        log: Path | None = None,
        jobs: bool = False,
    ) -> Ended:
        """Carry out a command.

        Parameters
        ----------
        arguments : sequence of str
        folder : Path
            Whose changes count.
        disturbance : str
            One of :data:`DISTURBANCES`, or none.
        at : int
            Number of the operation that is disturbed; the first is 1.
        log : Path, optional
            Where every change is recorded.
        jobs : bool
            Whether the processes that a sweep starts are disturbed, each at that operation, and not the one that
            starts them.
        """
        action, error = DISTURBANCES.get(disturbance, ("\0", 0))
        asked = {
            "arguments": list(arguments), "folder": str(folder), "action": action, "at": at, "error": error,
            "log": str(log or ""), "jobs": jobs,
        }  # fmt: skip
        return Ended(**json.loads(self._asked(json.dumps(asked))))

    def run(self, folder: Path, task: str = "run", *more: str, **disturbance: object) -> Ended:
        """Carry out a task of the tiny run in a folder; as :meth:`do`."""
        return self.do([f"task={task}", *TINY, *more, f"run={folder}"], folder, **disturbance)  # type: ignore[arg-type]

    def _asked(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def built(folder: Path) -> Path:
    """Compile the shim."""
    library = folder / "shim.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True)
    return library


@contextmanager
def commands(library: Path) -> Iterator[Commands]:
    """Start the process that commands are forked from."""
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, HERE / "server.py"], stdin=-1, stdout=-1, text=True, env=environment
    ) as process:
        started = Commands(process)
        answer = started._asked(json.dumps([*TINY]))
        if answer != "ready\n":
            raise RuntimeError(f"the process that commands are forked from answered {answer!r}")
        yield started
        assert process.stdin
        process.stdin.close()
