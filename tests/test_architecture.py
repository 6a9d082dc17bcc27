"""The house: what imports what, and that nothing imports upwards."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gmmcnn

ROOT = Path(gmmcnn.__file__).parent
TESTS = Path(__file__).parent
ROOMS = (
    {"__main__", "earlier"},
    {"cli"},
    {"multirun"},
    {"tasks"},
    {"experiments", "pipeline"},
    {"run"},
    {"lightning"},
    {"monitor", "api"},
    {"analysis"},
    {"report"},
    {"filters", "pruning"},
    {"mixture", "principal_components", "featuremaps"},
    {"models"},
    {"data"},
    {"hardware", "tracking"},
    {"config", "files", "progress"},
    {"names"},
    {"errors", "constants"},
)
"""From the ways in down to the ground; a room imports from its own and from lower ones."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, lazily or not, without the package's own name."""
    known = {module_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gmmcnn":
            home = (node.module or "").removeprefix("gmmcnn").removeprefix(".")
            for name in node.names:
                inner = f"{home}.{name.name}".removeprefix(".")
                yield inner if inner in known else home


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_is_imported_from_a_higher_room(path):
    own = LEVEL[module_of(path).partition(".")[0]]
    upward = [name for name in imports(path) if name and LEVEL[name.partition(".")[0]] < own]
    assert not upward


def test_no_circle_of_modules_or_of_rooms():
    modules = {module_of(path): set(imports(path)) - {"", module_of(path)} for path in FILES}
    assert list(TopologicalSorter(modules).static_order())
    rooms: dict[str, set[str]] = {}
    for module, imported in modules.items():
        room = module.partition(".")[0]
        rooms.setdefault(room, set()).update(name.partition(".")[0] for name in imported)
    assert list(TopologicalSorter({room: found - {room} for room, found in rooms.items()}).static_order())


def test_the_root_has_a_file_for_each_way_in_and_the_ground():
    assert len(list(ROOT.glob("*.py"))) <= 16


def has_something_to_test(path: Path) -> bool:
    """Whether a file defines a function or a class: tables of contents and earlier names of modules do not."""
    body = ast.parse(path.read_text()).body
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in body)


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *filter(has_something_to_test, FILES)], ids=module_of)
def test_every_module_has_tests_in_the_same_place(path):
    """The tests of ``gmmcnn/a/b.py`` are ``tests/a/test_b.py``; those of a package's contents are ``test_init.py``."""
    name = path.stem.strip("_")
    mirrored = TESTS / path.relative_to(ROOT).parent / f"test_{name}.py"
    assert mirrored.is_file()
    assert "\ndef test_" in mirrored.read_text()
