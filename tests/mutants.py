"""Do the tests notice a mistake? Change one operator or number at a time and run the tests of the module that it is in.

``make mutants`` draws :data:`A_MODULE` changes from each of :data:`MODULES`, always the same ones for the same code,
makes each in a copy of the project, and runs the tests that mirror the module there. A change that no test notices
*survived*: it is printed with its place, and the exit code is 1 where less than :data:`LEAST_KILLED` of them were
noticed. Changes that make no difference to any result (:data:`EQUIVALENT`, each with its reason) are not made.

``python tests/mutants.py filters/rules.py`` makes every change that there is in the modules named.

Each change is tried in a process of its own, forked from one that has loaded the larger libraries, none of gmmcnn.
"""

import ast
import compileall
import gc
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
A_MODULE = 8
LEAST_KILLED = 0.9
SECONDS = 240
"""A change that makes the tests run for so long is noticed: they would have ended."""
LIBRARIES = (
    "hydra", "hypothesis", "numba", "pandas", "plotly.graph_objects", "scipy.stats", "sklearn.datasets",
    "sklearn.mixture", "torch", "zarr",
)  # fmt: skip

MODULES = (
    "filters/rules.py", "filters/screening.py", "filters/outliers.py", "mixture/sweep.py",
    "mixture/calinski_harabasz.py", "mixture/reference.py", "principal_components/reference.py",
    "principal_components/pca.py", "featuremaps/store.py", "pruning/masks.py", "pruning/following.py",
    "experiments/statistics.py", "experiments/intervals.py", "experiments/associations.py",
)  # fmt: skip
"""What decides about results and about what is kept of them."""

EQUIVALENT: dict[str, str] = {
    "filters/outliers.py:small_members: 1 → 2": "one more slot, which no sample is in",
    "principal_components/reference.py:exact_pca: n_samples < n_pixels → n_samples <= n_pixels": (
        "of a square matrix either Gram matrix serves"
    ),
}
"""Name of a change → why it changes no result."""

OPTIONS = (
    "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # of plugins among the libraries
)  # fmt: skip
UNCHANGED, SAID = "unchanged", "said.txt"

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_FUNCTIONS = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "any": "all", "all": "any", "and_": "or_", "or_": "and_", "mean": "median", "median": "mean",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change, or none."""

    module: str
    name: str
    """``module.py:function: before → after``, with a number where it would not be unique."""

    @property
    def tests(self) -> str:
        """The file that mirrors the module."""
        folder, _, file = self.module.rpartition("/")
        return f"tests/{folder}/test_{file}"

    @property
    def source(self) -> str:
        """The whole module with the change."""
        tree = ast.parse(source_of(self.module))
        if self.name == UNCHANGED:
            return ast.unparse(tree)
        return next(ast.unparse(tree) for name in _changed(self.module, tree) if name == self.name)


@cache
def source_of(module: str) -> str:
    """Text of a module as it was when this was first asked for: while the tests run it may be edited."""
    return (ROOT / "gmmcnn" / module).read_text()


def mutants(module: str) -> list[Mutant]:
    """Every change that can be made to a module and is not known to make no difference."""
    return [Mutant(module, name) for name in changes(module) if name not in EQUIVALENT]


def changes(module: str) -> list[str]:
    """Name of every change that can be made to a module."""
    return list(_changed(module, ast.parse(source_of(module))))


def _changed(module: str, tree: ast.Module) -> Iterator[str]:
    """Name of each change, while the tree has it."""
    seen: dict[str, int] = {}
    for function, node in _sites(tree):
        for change in list(_changes(node)):
            before = ast.unparse(node)
            kept = (
                type(node),
                {key: [*value] if isinstance(value, list) else value for key, value in vars(node).items()},
            )
            change(node)
            if (after := ast.unparse(node)) != before:
                name = f"{module}:{function}: {' '.join(before.split())[:70]} → {' '.join(after.split())[:70]}"
                seen[name] = seen.get(name, 0) + 1
                yield name + (f" ({seen[name]})" if seen[name] > 1 else "")
            node.__class__, node.__dict__ = kept


def _sites(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """Nodes that may be changed, each with the function that it is in."""
    left_out = {id(inner) for node in ast.walk(tree) for part in _not_code(node) for inner in ast.walk(part)}
    inside = {
        id(inner): function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for inner in ast.walk(function)
    }
    return [(inside[id(node)], node) for node in ast.walk(tree) if id(node) in inside and id(node) not in left_out]


def _not_code(node: ast.AST) -> Iterator[ast.AST]:
    """What decides no result: annotations, decorators, messages."""
    if isinstance(node, ast.FunctionDef):
        yield from (*node.decorator_list, *filter(None, [node.returns]))
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
        yield node.annotation
    if isinstance(node, ast.Raise | ast.JoinedStr):
        yield node


def _changes(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        yield lambda n: n.ops.__setitem__(0, _SWAPS[type(n.ops[0])]())  # type: ignore[attr-defined]
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPS:
        yield lambda n: setattr(n, "op", _SWAPS[type(n.op)]())  # type: ignore[attr-defined]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert | ast.USub):
        yield _become_the_operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield lambda n: setattr(n, "value", n.value + 1)  # type: ignore[attr-defined]
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        yield lambda n: setattr(n, "value", not n.value)  # type: ignore[attr-defined]
    if isinstance(node, ast.Name) and node.id in _FUNCTIONS:
        yield lambda n: setattr(n, "id", _FUNCTIONS[n.id])  # type: ignore[attr-defined]
    if isinstance(node, ast.Attribute) and node.attr in _FUNCTIONS:
        yield lambda n: setattr(n, "attr", _FUNCTIONS[n.attr])  # type: ignore[attr-defined]


def _become_the_operand(node: ast.AST) -> None:
    operand = node.operand  # type: ignore[attr-defined]
    node.__class__ = type(operand)
    node.__dict__ = vars(operand)


def drawn(module: str) -> list[Mutant]:
    """:data:`A_MODULE` changes of a module, or as many as there are."""
    possible = mutants(module)
    return random.Random(module).sample(possible, min(A_MODULE, len(possible)))


def copy_of_the_project(folder: Path) -> Path:
    """Package, tests and what they read, with what is compiled of them, as a tree whose package is imported there."""
    for name in ("gmmcnn", "tests", "benchmarks", "conf", "kernels", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "sitecustomize.py").write_text(_FINDER)
    compileall.compile_dir(folder / "gmmcnn", quiet=1)
    return folder


_FINDER = '''\
"""Import the package of this tree, whatever is installed."""
import os, sys
from importlib.util import spec_from_file_location

class OfThisTree:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folders = {"gmmcnn": "gmmcnn", "gmmcnn.conf": "conf", "gmmcnn.kernels": "kernels"}
        if name not in folders:
            return None
        folder = os.path.join(os.environ["GMMCNN_TREE"], folders[name])
        return spec_from_file_location(name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])

if "GMMCNN_TREE" in os.environ:
    sys.meta_path.insert(0, OfThisTree)
'''


@dataclass
class Trial:
    """The tests of a mutant, running in a copy of the project and a process of their own."""

    mutant: Mutant
    copied: Path
    process: int
    deadline: float

    @classmethod
    def begin(cls, mutant: Mutant, copied: Path) -> "Trial":
        """Make the change and fork."""
        (copied / "gmmcnn" / mutant.module).write_text(mutant.source)
        process = os.fork()
        if process == 0:
            os._exit(_tested(mutant.tests, copied))
        return cls(mutant, copied, process, time.monotonic() + SECONDS)

    def noticed(self) -> bool | None:
        """Whether a test failed; None while they run."""
        if time.monotonic() > self.deadline:
            os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            return True
        ended, status = os.waitpid(self.process, os.WNOHANG)
        if not ended:
            return None
        return os.waitstatus_to_exitcode(status) != pytest.ExitCode.OK

    def undo(self) -> None:
        """Make the copy what it was."""
        (self.copied / "gmmcnn" / self.mutant.module).write_text(source_of(self.mutant.module))


def _tested(tests: str, copied: Path) -> int:
    """Exit code of the tests in a copy of the project, whose words go to a file."""
    os.setsid()
    os.chdir(copied)
    os.environ |= {"GMMCNN_TREE": str(copied), "PYTHONPATH": str(copied)}
    said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        exec(_FINDER, {})
        return int(pytest.main([*OPTIONS, tests]))
    except BaseException:  # noqa: BLE001 - the forked process says what it was, and ends
        traceback.print_exc()
        return int(pytest.ExitCode.INTERNAL_ERROR)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def trials(work: list[Mutant], n_workers: int) -> Iterator[tuple[Mutant, bool]]:
    """Try every mutant, some at a time; each with whether it was noticed, as they end."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        free = [copy_of_the_project(Path(scratch) / str(number)) for number in range(n_workers)]
        waiting, running = list(reversed(work)), []
        while waiting or running:
            while waiting and free:
                running.append(Trial.begin(waiting.pop(), free.pop()))
            time.sleep(0.05)
            for trial in list(running):
                if (noticed := trial.noticed()) is not None:
                    if noticed and trial.mutant.name == UNCHANGED:
                        said = (trial.copied / SAID).read_text()
                        raise RuntimeError(f"{trial.mutant.tests} fails with nothing changed: {said[-2000:]}")
                    running.remove(trial)
                    trial.undo()
                    free.append(trial.copied)
                    yield trial.mutant, noticed


def main(chosen: list[str]) -> int:
    """Draw, run and count; exit code."""
    work = [mutant for module in chosen or MODULES for mutant in (mutants if chosen else drawn)(module)]
    unchanged = [Mutant(name, UNCHANGED) for name in dict.fromkeys(mutant.module for mutant in work)]
    sys.dont_write_bytecode = True  # two changes of one second and one size would pass for each other
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # what is there now is not looked at again in any of the processes
    n_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    survivors = number = 0
    for mutant, noticed in trials([*unchanged, *work], n_workers):
        if mutant.name == UNCHANGED:
            continue
        number += 1
        print(f"{number:4}/{len(work)}  {'killed  ' if noticed else 'SURVIVED'}  {mutant.name}", flush=True)
        survivors += not noticed
    for name in EQUIVALENT.keys() - {name for module in MODULES for name in changes(module)}:
        print(f"EQUIVALENT names a change that there is not any more: {name}")
    n_killed = len(work) - survivors
    score = n_killed / len(work)
    print(f"{n_killed} of {len(work)} changes noticed ({score:.0%}); at least {LEAST_KILLED:.0%} wanted")
    return int(score < LEAST_KILLED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
