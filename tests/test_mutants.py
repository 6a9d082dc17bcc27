"""The changes that ``make mutants`` makes: what they are, and that they come and go."""

import ast
from pathlib import Path

import mutants
import pytest
from mutants import EQUIVALENT, MODULES, UNCHANGED, Mutant

SNIPPET = '''
LIMIT = 3

def function(a: "int | None" = 1) -> "float":
    """Return a + 1."""
    if not a < LIMIT and a.any():
        raise ValueError(f"a = {a + 1}" + "!")
    return -max(a, 2.5) if True else a // 2
'''


@pytest.fixture
def of_the_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "gmmcnn").mkdir()
    (tmp_path / "gmmcnn" / "snippet.py").write_text(SNIPPET)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    mutants.source_of.cache_clear()
    return [name.removeprefix("snippet.py:function: ") for name in mutants.changes("snippet.py")]


def test_operators_numbers_and_functions_are_changed_and_messages_and_annotations_are_not(of_the_snippet):
    assert sorted(of_the_snippet) == sorted(
        [
            "1 → 2", "not a < LIMIT → a < LIMIT", "a < LIMIT → a <= LIMIT", "a.any → a.all", "2.5 → 3.5", "2 → 3",
            "not a < LIMIT and a.any() → not a < LIMIT or a.any()", "max → min", "True → False", "a // 2 → a / 2",
            "-max(a, 2.5) → max(a, 2.5)",
        ]
    )  # fmt: skip


def test_each_source_has_its_one_change_alone(of_the_snippet):
    before = ast.unparse(ast.parse(SNIPPET))
    assert Mutant("snippet.py", UNCHANGED).source == before
    found = mutants.mutants("snippet.py")
    assert len({mutant.source for mutant in found}) == len(found) == len(of_the_snippet)
    for mutant in found:
        changed = [
            pair for pair in zip(mutant.source.splitlines(), before.splitlines(), strict=True) if pair[0] != pair[1]
        ]
        assert len(changed) == 1, mutant.name
        compile(mutant.source, mutant.module, "exec")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_changes_and_tests_to_notice_them(module):
    names = mutants.changes(module)
    assert len(names) == len(set(names)) > 0
    assert (mutants.ROOT / Mutant(module, UNCHANGED).tests).is_file()
    assert mutants.drawn(module) == mutants.drawn(module)


def test_what_makes_no_difference_is_not_made_and_has_its_reason(monkeypatch):
    module = MODULES[0]
    name = mutants.changes(module)[0]
    monkeypatch.setitem(EQUIVALENT, name, "a reason")
    assert name not in {mutant.name for mutant in mutants.mutants(module)}
    assert all(EQUIVALENT.values())
