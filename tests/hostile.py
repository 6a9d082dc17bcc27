"""Files and names as somebody would make them who wants something run, overwritten, or a machine out of memory.

Each input is made in a folder and read as a user would have it read. Whatever comes of it, an error of ours or values,
nothing may be executed, nothing written elsewhere, and memory stays bounded.
"""

import io
import json
import os
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmmcnn.errors import GmmcnnError
from gmmcnn.featuremaps.foreign import open_maps
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.files import arrays_in, file_name, read_digests, read_record, read_table, write_json, write_table
from gmmcnn.filters import fitting
from gmmcnn.models.checkpoints import read_state
from gmmcnn.run import probed, record, status, verify
from gmmcnn.run.provenance import Record

Read = Callable[[], object]
"""Reads one input."""


class Bait:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


NAMES = (
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../../up",
    "..\\up",
    "C:\\x",
    "CON",
    "nul.txt",
    "a/b",
    "a\0b",
    "a\nb",
    "a\r\nb",
    " a ",
    "~",
    "~root",
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "-rf",
    "--help",
    "|touch executed",
    "=cmd|'/C calc'!A0",
    "+1",
    "@SUM(1)",
    "\t=1",
    "'=1",
    "<script>alert(1)</script>",
    "%2e%2e%2f",
    "é" * 300,
    "x" * 300,
    "X",
    "x",
    "\u202egnp.exe",
    "\ud800",
    "a.partial",
    ".lock",
    "run.json",
    "config.yaml",
    "{0.__class__}",
    "%s%n",
    "*",
    "?",
)
VALUES = (
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1e308,
    float("nan"),
    "",
    "..",
    "x" * 5000,
    [],
    [[]],
    {},
    {"id": "pickle"},
    {"name": "numcodecs.pickle"},
    [1] * 1000,
    "|O",
    "object",
    "<f8" * 100,
    {"a": {"a": {"a": {}}}},
    "os:system",
)
CODECS = (
    "pickle",
    "json2",
    "msgpack2",
    "vlen-utf8",
    "vlen-bytes",
    "vlen-array",
    "categorize",
    "zfpy",
    "pcodec",
    "os.system",
)
YAML = (
    "!!python/object/apply:os.system ['touch executed']",
    "a: !!python/name:os.system",
    "!!python/module:os",
    "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]",
    "seed: ${oc.env:HOME}",
    "seed: ${oc.decode:'${seed}'}",
    "seed: 0\ndata: ${data}",
    "seed: 0\ndata: {name: 'os:system'}",
    "seed: 0\ndata: {root: /etc}",
    "- task=run",
    "? [a]\n: b",
    "{" * 2000,
    "a: " + "[" * 2000,
    "\0",
    "\ufeffseed: 0",
    "seed: 0\nseed: 1",
    "seed: 1e400\ndata: {}",
    "a: 'x" + "x" * (1 << 20) + "'",
)


def inputs(folder: Path, n: int, seed: int = 0) -> Iterator[tuple[str, Read]]:
    """Inputs of every kind in turn, each with what it is."""
    draw, kinds = random.Random(seed), (_name, _archive, _header, _codec, _settings, _records, _state)
    for number in range(n):
        place = folder / str(number)
        place.mkdir()
        kind = kinds[number % len(kinds)]
        yield f"{number}: {kind.__name__}", kind(place, draw)


def _name(place: Path, draw: random.Random) -> Read:
    """A name of a layer, of a sample, of a class."""
    import pandas as pd

    name = draw.choice(NAMES) + draw.choice(["", *NAMES])

    def read() -> None:
        own = file_name(name)
        assert (place / own).resolve().parent == place.resolve()
        assert len(own.encode()) < 256
        if not any("\ud800" <= letter <= "\udfff" for letter in name):  # which no file can hold as text
            write_table(place / f"{own}.csv", pd.DataFrame({"layer": [name or "x"], "n": [1]}))
            cell = (place / f"{own}.csv").read_text().split("\n", 1)[1].lstrip('"')
            assert not cell.startswith(("=", "+", "@", "\t", "-1"))
            read_table(place / f"{own}.csv", ["layer"], remedy="")

    return read


def _archive(place: Path, draw: random.Random) -> Read:
    """An ``.npz`` with parts that are no arrays, lie elsewhere, or unpack to gigabytes."""
    path = place / "fits.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for _ in range(draw.randint(1, 4)):
            name = draw.choice(
                ["../../up.npy", "/up.npy", "scores.npy", "status.npy", "about.npy", "a\0.npy", "of.npy"]
            )
            archive.writestr(name, _npy(draw))
    if draw.random() < 0.3:
        _claim(path, draw.choice([2**31, 2**32 - 2]))
    readers: list[Read] = [
        lambda: fitting.LayerFits.load(path), lambda: fitting.LayerFits.said_of(path), lambda: _all_arrays(path),
        lambda: probed.read(_as_probe(path), "0"),
    ]  # fmt: skip
    return draw.choice(readers)


def _npy(draw: random.Random) -> bytes:
    """A file of one array, or of something that is none."""
    buffer = io.BytesIO()
    match draw.randint(0, 4):
        case 0:
            np.save(buffer, np.array([Bait()], object), allow_pickle=True)
        case 1:
            np.save(buffer, np.zeros(draw.randint(0, 10**5)))
        case 2:
            return pickle.dumps(Bait())
        case _:
            return _with_header(draw)
    return buffer.getvalue()


def _with_header(draw: random.Random) -> bytes:
    """An array's file with a header that says something else."""
    descr = draw.choice(
        ["'|O'", "'<f8'", "'<U1000000000'", "[('a','<f8')]*99", "__import__('os').system('touch executed')"]
    )
    shape = draw.choice(
        ["(10**9,)", "(1000000000000,)", "(-1,)", "(4,2,3,3)", "(" * 200 + ")" * 200, "'x'", "(2**62, 8)"]
    )
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(
        draw.choice([118, 1 << 16])
    )
    version = draw.choice([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\xff\x00"])
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little") if len(header) < 2**16 else b"\xff\xff"
    return b"\x93NUMPY" + version + length + header + bytes(64)


def _claim(path: Path, n_bytes: int) -> None:
    """Let an archive's directory say that a part unpacks to so many bytes."""
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02")
    content[at + 24 : at + 28] = n_bytes.to_bytes(4, "little")
    path.write_bytes(content)


def _all_arrays(path: Path) -> None:
    with arrays_in(path, remedy="") as arrays:
        for name in arrays:
            arrays[name].sum()


def _as_probe(path: Path) -> Path:
    (path.parent / "probe").mkdir(exist_ok=True)
    path.rename(path.parent / "probe" / "0.npz")
    return path.parent


def _header(place: Path, draw: random.Random) -> Read:
    """Feature maps in a ``.npy`` file."""
    (place / "maps.npy").write_bytes(_npy(draw))
    return lambda: open_maps(place / "maps.npy").read(slice(0, 1))


def _codec(place: Path, draw: random.Random) -> Read:
    """Feature maps in a Zarr array, of 2 or 3, with some of its description exchanged."""
    path, old = place / "maps.zarr", draw.random() < 0.5
    path.mkdir()
    codec = draw.choice(CODECS)
    if old:
        about: dict[str, Any] = {
            "zarr_format": 2, "shape": [4, 2, 3, 3], "chunks": [4, 2, 3, 3], "dtype": "<f4", "fill_value": 0,
            "order": "C", "filters": None, "compressor": {"id": "zlib", "level": 1},
        }  # fmt: skip
        if draw.random() < 0.4:
            about[draw.choice(["compressor"])] = {"id": codec}
        if draw.random() < 0.3:
            about |= {"filters": [{"id": codec}], "dtype": "|O"}
    else:
        grid = {"name": "regular", "configuration": {"chunk_shape": [4, 2, 3, 3]}}
        about = {
            "zarr_format": 3, "node_type": "array", "shape": [4, 2, 3, 3], "data_type": "float32", "chunk_grid": grid,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
        }  # fmt: skip
        if draw.random() < 0.5:
            about["codecs"] += [{"name": draw.choice([codec, f"numcodecs.{codec}", "gzip", "zstd"])}]
    for _ in range(draw.randint(0, 2)):
        about[draw.choice([*about])] = draw.choice(VALUES)
    if draw.random() < 0.3:
        huge = [4, 10**5, 10**5, 100]
        about |= {"shape": huge} | ({"chunks": huge} if old else {})
    (path / (".zarray" if old else "zarr.json")).write_text(json.dumps(about))
    chunk = draw.choice([pickle.dumps(Bait()), zlib.compress(bytes(288)), zlib.compress(bytes(10**7)), bytes(288), b""])
    target = path / ("0.0.0.0" if old else "c/0/0/0/0")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(chunk)
    return lambda: open_maps(path).read(slice(0, 1))


def _settings(place: Path, draw: random.Random) -> Read:
    """A record of settings, of this version or an earlier one."""
    text = draw.choice(YAML)
    if draw.random() < 0.3:
        text = f"seed: 0\ndata: {{}}\n{text}"
    if draw.random() < 0.3:
        (place / ".hydra").mkdir()
        (place / record.EARLIER).write_text(text)
        return lambda: record.read_earlier(place)
    (place / record.NAME).write_text(text)
    return lambda: record.read(place)


def _records(place: Path, draw: random.Random) -> Read:
    """Records with values of any kind under names that are read."""
    about = {
        name: draw.choice(VALUES[:6] + VALUES[8:])
        for name in (
            "status",
            "task",
            "seconds",
            "files",
            "identity",
            "origin",
            "n_samples",
            "analysed",
            "skipped",
            "sha256",
            "parts",
        )
        if draw.random() < 0.7
    }
    if draw.random() < 0.3:
        about |= {"files": {draw.choice(NAMES) or "x": "0" * 64}, "sha256": {draw.choice(NAMES) or "x": "0" * 64}}
    for name in ("run.json", "digests.json", "taps.json"):
        (place / name).write_text(json.dumps(about))
    store = place / "activations" / "given" / "maps.zarr"
    (store / "maps").mkdir(parents=True)
    header = {"format": "gmmcnn feature maps", "version": 1, "n_samples": 4, "block_samples": 2, "dtype": "float32"}
    layer = {"layer": draw.choice(NAMES), "n_filters": 2, "height": 3, "width": 3, "description": ""}
    header |= {"layers": [layer], "attributes": {}} | (
        {draw.choice([*header]): draw.choice(VALUES)} if draw.random() < 0.5 else {}
    )
    write_json(store / "maps" / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": header})
    readers: list[Read] = [
        lambda: status.read(place), lambda: read_digests(place), lambda: Record.load(place / "taps.json"),
        lambda: read_record(place / "run.json", {"files": {str: str}}, remedy=""),
        lambda: ActivationStore.open(store, partial=True).verify(), lambda: verify.verify(place),
    ]  # fmt: skip
    return draw.choice(readers)


def _state(place: Path, draw: random.Random) -> Read:
    """Weights that are none, or more than that."""
    path = place / "net.pt"
    content = draw.choice(
        [Bait(), {"a": Bait()}, {"state_dict": {"a": Bait()}}, {"a": torch.zeros(3)}, [1], {}, np.zeros(3)]
    )
    torch.save(content, path)
    if draw.random() < 0.3:
        path.write_bytes(pickle.dumps(content))
    if draw.random() < 0.2:
        _claim(path, 2**32 - 2)
    return lambda: read_state(path)


def outcome(read: Read) -> str:
    """What comes of reading an input: values, or the name of an error of ours; other errors get out."""
    try:
        read()
    except GmmcnnError as error:
        return type(error).__name__
    return "values"
