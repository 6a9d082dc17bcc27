"""Files: the old content or the new, on disk before anything speaks of it, and one reader a kind."""

import errno
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gmmcnn
from gmmcnn import files
from gmmcnn.errors import StoreError

ROOT = Path(gmmcnn.__file__).parent
TABLE = pd.DataFrame({"name": ["a", "ü"], "value": [1.5, float("nan")]})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_text(path, "ü\n"),
        lambda path: files.write_json(path, {"a": [1]}),
        lambda path: files.write_table(path, TABLE),
        lambda path: files.write_table(path.with_suffix(".parquet"), TABLE),
        lambda path: files.write_arrays(path, {"a": np.arange(3)}),
    ],
    ids=["text", "json", "csv", "parquet", "arrays"],
)
@pytest.mark.parametrize("interrupt", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_writer_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, write, interrupt):
    write(tmp_path / "file")
    before = contents(tmp_path)

    def fail(_: int) -> None:
        raise interrupt

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(type(interrupt)):
        write(tmp_path / "file")
    assert contents(tmp_path) == before


def test_content_is_on_disk_before_its_name_and_the_name_before_the_writer_returns(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: done.append(Path(f"/proc/self/fd/{fd}").readlink().name) or fsync(fd)
    )
    monkeypatch.setattr(Path, "replace", lambda old, new: done.append(f"rename {new.name}") or replace(old, new))
    files.write_text(tmp_path / "a", "text")
    assert re.fullmatch(r"\.a\.[0-9a-f]{8}-\d+-[0-9a-f]{8}\.partial", done[0])
    assert done[1:] == ["rename a", tmp_path.name]


def test_writers_at_once_do_not_mix(tmp_path):
    texts = [str(number) * 20_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(tmp_path / "file", text), texts * 4))
    assert (tmp_path / "file").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


RECORD = {"name": "ü", "parts": {"a": [1, 2.5]}, "n": 3, "none": None, "yes": True}
KINDS = {"name": str, "parts": {str: [float]}, "n": int, "none": (int, None), "yes": bool}


def test_a_record_comes_back_as_it_was_written(tmp_path):
    files.write_record(tmp_path / "r.json", RECORD)
    assert files.read_record(tmp_path / "r.json", KINDS, remedy="r") == RECORD
    assert files.read_record(tmp_path / "none.json", KINDS, remedy="r") is None
    files.write_json(tmp_path / "earlier.json", RECORD)
    assert files.read_record(tmp_path / "earlier.json", KINDS, remedy="r") == RECORD


def test_no_flipped_bit_of_a_record_changes_what_is_read(tmp_path):
    path = tmp_path / "r.json"
    files.write_record(path, RECORD)
    whole = path.read_bytes()
    n_refused = 0
    for bit in range(8 * len(whole)):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        try:
            read = files.read_record(path, KINDS, remedy="make it again")
        except StoreError as error:
            assert re.fullmatch(rf"{path}: damaged, .*; make it again", str(error))  # noqa: PT017 - or it is read
            n_refused += 1
        else:
            assert read is not None
            assert {name: read[name] for name in RECORD} == RECORD
            assert json.loads(spoilt) == json.loads(whole)  # a bit of white space
    assert n_refused > 7 * len(whole)


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", 1), ("parts", {"a": 1}), ("parts", {"a": ["1"]}), ("n", 1.5), ("n", True), ("none", "x"), ("yes", 1)],
)
def test_a_record_of_other_types_names_what_it_says(tmp_path, name, value):
    files.write_json(tmp_path / "r.json", RECORD | {name: value})
    with pytest.raises(StoreError, match=rf"r\.json: damaged, {name} is .*; make it again"):
        files.read_record(tmp_path / "r.json", KINDS, remedy="make it again")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"null"], ids=repr)
def test_what_is_no_record_is_told(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"r\.json: damaged, no JSON"):
        files.read_record(tmp_path / "r.json", {}, remedy="r")


def test_files_are_compared_with_the_digests_of_their_folder(tmp_path):
    path = tmp_path / "run" / "kept" / "a.bin"
    for name in ("a.bin", "b.bin"):
        files.write_text(path.with_name(name), name)
        files.require_as_recorded(path.with_name(name))  # of which nothing is known
        files.add_digest(path.with_name(name))
        files.require_as_recorded(path.with_name(name))
    path.write_text("b.bin")
    with pytest.raises(StoreError, match=r"a\.bin: damaged, its SHA-256 .*: gmmcnn task=repair run=FOLDER"):
        files.require_as_recorded(path)
    files.write_text(tmp_path / "run" / "config.yaml", "")
    with pytest.raises(StoreError, match=rf"task=repair run={tmp_path}/run$"):
        files.require_as_recorded(path)


def test_missing_folders_are_made_and_what_is_written_is_read(tmp_path):
    files.write_json(tmp_path / "new" / "a.json", {"ü": 1})
    assert files.read_json(tmp_path / "new" / "a.json") == {"ü": 1}
    files.write_table(tmp_path / "t.csv", TABLE)
    pd.testing.assert_frame_equal(files.read_table(tmp_path / "t.csv", ["name"], remedy="r"), TABLE)
    files.write_table(tmp_path / "t.parquet", TABLE)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), TABLE)
    for compressed in (False, True):
        files.write_arrays(tmp_path / "a.npz", {"x": np.arange(4)}, compressed=compressed)
        with files.arrays_in(tmp_path / "a.npz", remedy="r") as arrays:
            assert arrays["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"PK\x03\x04", b"[1, 2]"])
def test_what_is_missing_or_damaged_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert files.read_json(path) == {}
    with pytest.raises(StoreError, match=rf"^{path}: .*; do this$"):
        files.read_table(path, ["a"], remedy="do this")
    with pytest.raises(StoreError, match=rf"^{path}: .*; do this$"), files.arrays_in(path, remedy="do this") as arrays:
        arrays["a"]


def test_digests_tell_types_shapes_names_and_values_apart():
    one = torch.arange(4, dtype=torch.float32)
    others = [one.double(), one.reshape(2, 2), one + 1, one.bfloat16()]
    digests = [files.digest_tensors([tensor]) for tensor in (one, *others)]
    digests += [files.digest_tensors({name: one}) for name in ("a", "b")]
    assert len(set(digests)) == len(digests)
    assert files.digest_tensors([one.clone()]) == digests[0]
    assert files.name_of({"a": 1, "b": 2}) == files.name_of({"b": 2, "a": 1}) != files.name_of({"a": 1, "b": 3})
    assert files.digest_arrays(b"a", np.arange(3)) != files.digest_arrays(b"a", np.arange(4))


def test_no_other_module_writes_a_file_in_place():
    """Numba's cache is its own; a counter of the kernel and the null device are no files, and a lock holds nothing."""
    in_place = re.compile(
        r"\.write_text\(|\.write_bytes\(|\.to_csv\(\w|\.to_parquet\(|np\.savez|\.write_html\(|OmegaConf\.save|"
        r"torch\.save\(\w+, \w*path|hashlib\.sha256|open\(.*[\"'][wx]b?[\"']"
    )
    allowed = {
        "files.py": 99, "hardware/compiled.py": 2, "experiments/costs.py": 1, "multirun/record.py": 1, "progress.py": 2,
    }  # fmt: skip
    for path in ROOT.rglob("*.py"):
        found = in_place.findall(path.read_text())
        assert len(found) <= allowed.get(str(path.relative_to(ROOT)), 0), (path, found)


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "a[1].txt"
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    mine = files.aside(path)
    left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{int(ended.stdout)}-"))
    elsewhere = mine.with_name(mine.name.replace(".txt.", ".txt.0"))
    for draft in (mine, left, elsewhere):
        draft.touch()
    files.write_text(path, "new")
    assert sorted(tmp_path.iterdir()) == sorted([path, mine, elsewhere])


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_name_of_a_file_is_one_component_and_no_two_texts_share_it(one, other):
    name = files.file_name(one)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)
    assert not name.endswith(".")
    assert (name.lower() == files.file_name(other).lower()) is (one == other)


@pytest.mark.parametrize("text", ["conv1", "layer1.0.conv2", "features.0", "a-b_c"])
def test_a_usual_name_is_its_own(text):
    assert files.file_name(text) == text


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1", "'=1", "''@x"])
def test_a_spreadsheet_takes_no_text_for_a_formula_and_a_reader_gets_it_back(tmp_path, text):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"layer": [text, "conv1"], "value": [-1.5, 2.0]}))
    written = (tmp_path / "t.csv").read_text()
    assert not re.search(r'(^|,|\n)"?[=+@\t\r-]\D', written)
    back = files.read_table(tmp_path / "t.csv", ["layer"], remedy="none")
    assert back["layer"].tolist() == [text, "conv1"]
    assert back["value"].tolist() == [-1.5, 2.0]


@pytest.mark.parametrize("text", ["-", "plain", "'quoted'", "a=b", ""])
def test_other_texts_are_written_as_they_are(tmp_path, text):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"layer": [text, "conv1"]}))
    assert pd.read_csv(tmp_path / "t.csv", keep_default_na=False)["layer"].tolist() == [text, "conv1"]


def test_json_that_is_nested_beyond_reason_is_no_record(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert files.read_json(tmp_path / "deep.json") == {}


def test_an_archive_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_OF_SMALL", 2**20)
    bomb, large = tmp_path / "bomb.npz", tmp_path / "large.npz"
    np.savez_compressed(bomb, a=np.zeros(2**20), b=np.zeros(2**18))
    np.savez_compressed(large, a=np.random.default_rng(0).normal(size=2**18))  # beyond the limit, as it is on disk
    with files.arrays_in(large, remedy="fit again") as arrays:
        assert arrays["a"].shape == (2**18,)
    monkeypatch.setattr(np, "load", lambda *given, **options: pytest.fail("read"))
    message = r"bomb.npz: damaged or something else \(0.0 GiB packed into 0.0 MiB\); fit again"
    with pytest.raises(StoreError, match=message), files.arrays_in(bomb, remedy="fit again"):
        pass


def test_an_array_whose_header_asks_for_more_memory_than_there_is_is_damage(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    message = r"a.npz: damaged or something else .*; fit again"
    with pytest.raises(StoreError, match=message), files.arrays_in(tmp_path / "a.npz", remedy="fit again") as arrays:
        arrays["a"]


def test_a_folder_that_cannot_be_removed_is_an_error_and_one_that_is_not_there_none(tmp_path, monkeypatch):
    files.remove_folder(tmp_path / "none")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "file")

    with monkeypatch.context() as disturbed:
        disturbed.setattr("os.unlink", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            files.remove_folder(tmp_path / "some")
    files.remove_folder(tmp_path / "some")
    assert not (tmp_path / "some").exists()


def test_a_record_is_known_by_every_byte(tmp_path):
    path = tmp_path / "record.json"
    files.write_record(path, {"n": 3, "text": "é"})
    whole = path.read_bytes()
    assert files.read_record(path, {"n": int}, remedy="") == {"n": 3, "text": "é"}
    for damaged in (whole[:-1], whole.replace(b"\n ", b"\n\t", 1), whole + b"\n"):
        assert json.loads(damaged) == json.loads(whole)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="its content is not what was written"):
            files.read_record(path, {"n": int}, remedy="")
