"""Compiled code on disk: kept, and whatever is wrong with it no more than a miss."""

import warnings
from pathlib import Path

import pytest
from numba.core import caching, config
from numba.core.registry import cpu_target

from gmmcnn.errors import CompileCacheWarning
from gmmcnn.hardware import compiled, vectors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "_caches", [])
    return tmp_path


def a_process():
    """The function as a new process finds it: nothing compiled, a cache on disk."""

    def twice(x):
        return x + x

    return compiled.compiled_entry(vectors)(twice)


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*{suffix}"))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": flipped,
    "another": lambda content: b"\x80\x04K\x01.",
    "text": lambda content: b"<html>404</html>",
}


def test_compiled_code_is_kept_and_found(folder):
    first = a_process()
    assert first(2.0) == 4.0
    assert first.stats.cache_misses
    second = a_process()
    assert second(3.0) == 6.0
    assert second.stats.cache_hits
    assert not second.stats.cache_misses
    assert compiled.examine_cache() == (f"2 compiled functions in {files(folder, '.nbi')[0].parent}", True)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_a_miss(folder, suffix, damage):
    a_process()(2.0)
    for path in files(folder, suffix):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        function = a_process()
        assert function(2.5) == 5.0
    for warning in said:
        assert issubclass(warning.category, CompileCacheWarning)
        assert "twice" in str(warning.message)
        assert "deleted and compiled anew" in str(warning.message)
    assert said or suffix == ".nbi"  # an index of another Numba, or of other functions, is no damage
    again = a_process()
    assert again(1.0) == 2.0
    assert again.stats.cache_hits


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damage_is_found_without_running_anything(folder, suffix):
    a_process()(2.0)
    for path in files(folder, suffix):
        path.write_bytes(path.read_bytes()[:-9])
    found, sound = compiled.examine_cache()
    assert not sound
    assert "the compiled code of twice" in found
    assert not files(folder, ".nbi")
    assert not files(folder, ".nbc")
    assert compiled.examine_cache()[1]


def test_a_folder_that_cannot_be_written_costs_only_time(folder):
    function = a_process()
    kept_in = Path(compiled._caches[0].cache_path)
    kept_in.rmdir()
    kept_in.write_text("a file where the folder was")
    with pytest.warns(CompileCacheWarning, match="set NUMBA_CACHE_DIR to a folder that can be written"):
        assert function(2.0) == 4.0


def test_damage_in_a_folder_that_cannot_be_written_is_passed_by(folder, monkeypatch):
    a_process()(2.0)
    for path in files(folder, ".nbi"):
        path.write_bytes(b"")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.warns(CompileCacheWarning, match="damaged"):
        assert a_process()(2.0) == 4.0


def test_no_folder_at_all(folder, monkeypatch):
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.warns(CompileCacheWarning, match="not kept on disk"):
        function = a_process()
    assert function(2.0) == 4.0
    found, sound = compiled.examine_cache()
    assert not sound
    assert found.startswith("none")


def test_without_numbas_private_names_only_the_cache_is_lost(folder, monkeypatch):
    monkeypatch.delattr(caching.Cache, "__init__")  # nothing of it is left but its name
    assert a_process()(2.0) == 4.0
    assert not files(folder, ".nbc")
    monkeypatch.delattr(type(cpu_target.target_context.codegen()), "_customize_tm_features", raising=False)
    assert compiled.target_features(object()) == frozenset()


def test_a_change_of_another_module_is_a_miss(folder, monkeypatch, tmp_path):
    a_process()(2.0)
    other = tmp_path / "vectors.py"
    other.write_text("changed")
    monkeypatch.setattr(vectors, "__file__", str(other))
    changed = a_process()
    changed(2.0)
    assert not changed.stats.cache_hits
