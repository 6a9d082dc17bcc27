"""Where files lie, and downloads that fail: by a stand-in for torchvision, without a network."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from gmmcnn.data import downloads
from gmmcnn.errors import DataNotFoundError


def test_the_cache_is_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / "gmmcnn"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for empty in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        empty()
        assert downloads.cache_folder() == tmp_path / "home" / ".cache" / "gmmcnn"


def test_the_first_folder_that_holds_a_file_is_taken(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    for folder in (second, third):
        folder.mkdir()
        (folder / "file").touch()
    assert downloads.first_with([first, second, third], lambda folder: (folder / "file").exists()) == second
    assert downloads.first_with([first], lambda folder: folder.exists()) is None


@pytest.mark.parametrize("error", [ImportError, RuntimeError, AttributeError])
def test_a_torchvision_of_another_torch_is_none_at_all(error, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise error("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert downloads.torchvision_datasets() is None


def test_without_torchvision_the_remedy_is_told_and_nothing_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "torchvision_datasets", lambda: None)
    with pytest.raises(DataNotFoundError, match=r"cifar10: no files in .*data; put them there"):
        downloads.download("cifar10", tmp_path / "data", lambda datasets: None, "put them there")
    assert not (tmp_path / "data").exists()


def test_files_are_fetched_into_a_folder_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = ModuleType("datasets")
    monkeypatch.setattr(downloads, "torchvision_datasets", lambda: datasets)
    root, asked = tmp_path / "a" / "b", []
    for _ in range(2):  # again where the folder is there already
        downloads.download("cifar10", root, lambda given: asked.append((given, root.is_dir())), "put them there")
    assert asked == [(datasets, True)] * 2


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_failed_download_is_told_in_one_line(error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "torchvision_datasets", lambda: ModuleType("datasets"))

    def fetch(datasets: ModuleType) -> None:
        raise error("name resolution\nfailed")

    with pytest.raises(DataNotFoundError, match=r"their download failed \(name resolution failed\); put them there"):
        downloads.download("cifar10", tmp_path, fetch, "put them there")


def test_a_mistake_in_our_own_code_is_no_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "torchvision_datasets", lambda: ModuleType("datasets"))
    with pytest.raises(AttributeError):
        downloads.download("cifar10", tmp_path, lambda datasets: datasets.CIFAR10, "put them there")
