"""Do the tests notice a mistake? Change one operator or number at a time and run the tests of the module that it is in.

``make mutants`` draws :data:`A_MODULE` changes from each of :data:`MODULES`, always the same ones for the same code,
makes each in a copy of the package, and runs the module's own tests there. A change that no test notices *survived*:
it is printed with its place, and the exit code is 1 where less than :data:`LEAST_KILLED` of them were noticed.
Changes that make no difference to any result (:data:`EQUIVALENT`, each with its reason) are not drawn.

``python tests/mutants.py filters/rules.py`` makes every change that there is in the modules named.
"""

import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
A_MODULE = 8
LEAST_KILLED = 0.9
SECONDS = 240
"""A change that makes the tests run for so long is noticed: they would have ended."""

MODULES = {
    "filters/rules.py": ("tests/filters/test_screening.py",),
    "filters/screening.py": ("tests/filters/test_screening.py",),
    "filters/outliers.py": ("tests/filters/test_screening.py",),
    "mixture/sweep.py": ("tests/mixture/test_sweep.py",),
    "mixture/calinski_harabasz.py": ("tests/mixture/test_reference.py", "tests/mixture/test_sweep.py"),
    "mixture/reference.py": ("tests/mixture/test_reference.py",),
    "principal_components/reference.py": ("tests/principal_components",),
    "principal_components/pca.py": ("tests/principal_components",),
    "featuremaps/store.py": ("tests/featuremaps/test_store.py",),
    "pruning/masks.py": ("tests/pruning",),
    "pruning/following.py": ("tests/pruning",),
    "experiments/statistics.py": ("tests/experiments/test_statistics.py",),
}
"""Module → its tests."""

EQUIVALENT: dict[str, str] = {}
"""Name of a change → why it changes no result."""

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_FUNCTIONS = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "any": "all", "all": "any", "and_": "or_", "or_": "and_", "mean": "median", "median": "mean",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change."""

    module: str
    name: str
    """``module.py:function: before → after``, with a number where it would not be unique."""
    source: str
    """The whole module with it."""


def mutants(module: str) -> Iterator[Mutant]:
    """Every change that can be made to a module, in the order of its lines."""
    tree = ast.parse((ROOT / "gmmcnn" / module).read_text())
    seen: dict[str, int] = {}
    for function, index in _sites(tree):
        for change in _changes(_at(tree, index)):
            mutated = copy.deepcopy(tree)
            node = _at(mutated, index)
            before = ast.unparse(node)
            change(node)
            if (after := ast.unparse(node)) == before:
                continue
            name = f"{module}:{function}: {' '.join(before.split())[:70]} → {' '.join(after.split())[:70]}"
            seen[name] = seen.get(name, 0) + 1
            yield Mutant(module, name + (f" ({seen[name]})" if seen[name] > 1 else ""), ast.unparse(mutated))


def _sites(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions and numbers (in the order of ``ast.walk``) of the nodes that may be changed."""
    left_out = {id(inner) for node in ast.walk(tree) for part in _not_code(node) for inner in ast.walk(part)}
    inside = {
        id(inner): function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for inner in ast.walk(function)
    }
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in inside and id(node) not in left_out:
            yield inside[id(node)], index


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


def _become_the_operand(node: ast.AST) -> None:
    operand = node.operand  # type: ignore[attr-defined]
    node.__class__ = type(operand)
    node.__dict__ = vars(operand)


def _at(tree: ast.Module, index: int) -> ast.AST:
    return next(node for number, node in enumerate(ast.walk(tree)) if number == index)


def drawn(module: str) -> list[Mutant]:
    """:data:`A_MODULE` changes of a module, or as many as there are."""
    possible = [mutant for mutant in mutants(module) if mutant.name not in EQUIVALENT]
    return random.Random(module).sample(possible, min(A_MODULE, len(possible)))


def killed(mutant: Mutant, copied: Path) -> bool:
    """Whether the module's tests notice the change, made in a copy of the project."""
    path = copied / "gmmcnn" / mutant.module
    path.write_text(mutant.source)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(copied / "compiled"),
        "GMMCNN_TREE": str(copied),
        "PYTHONPATH": str(copied),
    }
    try:
        done = subprocess.run(
            [*command, *MODULES[mutant.module]],
            cwd=copied, env=environment, capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    finally:
        shutil.copy(ROOT / "gmmcnn" / mutant.module, path)
    if done.returncode not in (0, 1, 2):  # passed, failed, or not even imported
        raise RuntimeError(f"{mutant.name}: the tests did not run: {done.stdout.decode()[-2000:]}")
    return done.returncode != 0


def copy_of_the_project(folder: Path) -> Path:
    """Package, tests and what they read, as a tree of its own whose package is the one that is imported there."""
    for name in ("gmmcnn", "tests", "benchmarks", "conf", "kernels", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "sitecustomize.py").write_text(_FINDER)
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


def main(chosen: list[str]) -> int:
    """Draw, run and count; exit code."""
    work = [m for module in chosen for m in mutants(module)] if chosen else [m for name in MODULES for m in drawn(name)]
    n_workers = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(n_workers):
            free.put(copy_of_the_project(Path(scratch) / str(number)))

        def judged(mutant: Mutant) -> bool:
            copied = free.get()
            try:
                return killed(mutant, copied)
            finally:
                free.put(copied)

        survivors = []
        with ThreadPoolExecutor(n_workers) as pool:
            for number, (mutant, noticed) in enumerate(zip(work, pool.map(judged, work), strict=True), 1):
                print(f"{number:4}/{len(work)}  {'killed  ' if noticed else 'SURVIVED'}  {mutant.name}", flush=True)
                survivors += [] if noticed else [mutant]
    score = 1 - len(survivors) / len(work)
    print(
        f"{len(work) - len(survivors)} of {len(work)} changes noticed ({score:.0%}); at least {LEAST_KILLED:.0%} wanted"
    )
    return int(score < LEAST_KILLED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
