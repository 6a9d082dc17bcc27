"""Commands of gmmcnn in processes forked from this one, which has imported and compiled everything, under the shim.

Started with the shim preloaded. Reads one JSON object a line, and answers each by one. Not imported by anyone: what is
loaded here, and which threads were never started, is what makes a fork work, in less than a second.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the processes of a sweep import this file as well
    LIBRARY = os.environ.pop("LD_PRELOAD")
    SHIM = ctypes.CDLL(LIBRARY)
    SHIM.shim_arm.argtypes = [
        ctypes.c_char_p, ctypes.c_long, ctypes.c_char, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p,
    ]  # fmt: skip

LONGEST = 60
"""Seconds that a command may take."""


def warm(arguments: list[str]) -> None:
    """Do a whole run here, once, so that every process forked later has all it needs in memory.

    The reading of stores by compiled code is left out: it would start threads, which a fork does not have.
    """
    import torch

    from gmmcnn import cli
    from gmmcnn.featuremaps import store

    torch.set_num_threads(1)
    reading = dict(store._READING)
    store._READING.clear()
    with tempfile.TemporaryDirectory() as folder:
        code = cli._command_line([*arguments, f"run={folder}/run"])
    store._READING.update(reading)
    if code:
        raise SystemExit(f"the run that warms up ended with {code}")


def do(asked: dict[str, Any], said: str) -> tuple[int, int]:
    """One command in a process of its own: exit code (negative: the signal), and file operations."""
    counted = mmap.mmap(-1, 8)
    pid = os.fork()
    if not pid:
        code = 70
        signal.alarm(LONGEST)  # a command that hangs is killed by it
        try:
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = _armed(asked, ctypes.addressof(ctypes.c_char.from_buffer(counted)))
        except BaseException:  # noqa: BLE001 - nothing may get out into the loop of the parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, int.from_bytes(counted, sys.byteorder)


def _armed(asked: dict[str, Any], counter: int) -> int:
    from gmmcnn import cli

    if asked["jobs"]:  # of a sweep, which are started as processes of their own
        os.environ.update(
            LD_PRELOAD=LIBRARY, SHIM_FOLDER=asked["folder"], SHIM_AT=str(asked["at"]), SHIM_ACTION=asked["action"],
            SHIM_ERROR=str(asked["error"]),
        )  # fmt: skip
        return cli._command_line(asked["arguments"])
    SHIM.shim_arm(
        os.fsencode(asked["folder"]), asked["at"], asked["action"].encode(), asked["error"], os.fsencode(asked["log"]),
        counter,
    )  # fmt: skip
    return cli._command_line(asked["arguments"])


def main() -> None:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries say is no answer
    warm(json.loads(sys.stdin.readline()))
    with tempfile.TemporaryDirectory() as folder:
        said = str(Path(folder) / "said")
        os.chdir(folder)  # where the page of a folder that cannot be written goes
        answers.write("ready\n")
        answers.flush()
        for line in sys.stdin:
            code, operations = do(json.loads(line), said)
            answer = {"code": code, "operations": operations, "said": Path(said).read_text(errors="replace")}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
