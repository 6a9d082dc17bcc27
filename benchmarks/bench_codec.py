"""What a store of feature maps costs by codec: bytes, and processor seconds to write and to read a gigabyte.

    python -m benchmarks.bench_codec [--json FILE] [--rounds N]

Maps of a trained LeNet-5 and of AlexNet at random weights, as a store holds them: float32 (and float16 where it says
so), in shards with a CRC-32C for each chunk, written through :class:`~gmmcnn.featuremaps.ActivationStore` with all that
it does beside encoding, and read in blocks as a fit reads them. Codecs take turns, round after round; medians are
printed.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import pandas as pd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from benchmarks import bench_live, cases, timing
from gmmcnn.featuremaps import ActivationStore, extract, filter_blocks
from gmmcnn.featuremaps import store as stores

BATCHES = 5

CODECS: Mapping[str, tuple[str, list[Any]]] = MappingProxyType(
    {
        "Zstandard, level 1": ("float32", [ZstdCodec(level=1)]),
        "Zstandard, level -1": ("float32", [ZstdCodec(level=-1)]),
        "LZ4 in Blosc": ("float32", [BloscCodec(typesize=4, cname="lz4", clevel=5, shuffle="noshuffle")]),
        "LZ4 in Blosc, bytes shuffled": ("float32", [BloscCodec(typesize=4, cname="lz4", clevel=5, shuffle="shuffle")]),
        "Zstandard in Blosc, bytes shuffled": (
            "float32",
            [BloscCodec(typesize=4, cname="zstd", clevel=1, shuffle="shuffle")],
        ),
        "LZ4 in Blosc, float16": ("float16", [BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="noshuffle")]),
        "none": ("float32", []),
    }
)


def main() -> None:
    arguments = cases.parser(__doc__).parse_args()
    for case in bench_live.CASES:
        report(case, maps_of(case), arguments)


def maps_of(case: str) -> ActivationStore:
    """A store of some probe batches of a network."""
    network, images = bench_live.network(case)
    folder = Path(tempfile.mkdtemp(dir=cases.cache_folder()))
    return extract(network, images[: BATCHES * bench_live.N], folder / "maps", probe_samples=bench_live.N)


def report(case: str, maps: ActivationStore, arguments: argparse.Namespace) -> None:
    """Print the table of one network."""
    whole = {(layer, block): whole_block(maps, layer, block) for layer in maps.layers for block in range(maps.n_blocks)}
    gigabytes = sum(block.nbytes for block in whole.values()) / 1e9
    rows: dict[str, list[dict[str, float]]] = {codec: [] for codec in CODECS}
    for _ in range(arguments.rounds):
        for codec, found in rows.items():
            found.append(measured(codec, maps, whole))
    table = pd.DataFrame(
        {
            codec: {name: statistics.median(row[name] for row in found) for name in found[0]}
            for codec, found in rows.items()
        }
    ).T
    table["share of the bytes"] = table.pop("bytes") / gigabytes / 1e9
    for column in ("write", "read"):
        table[column] /= gigabytes
    table["sum"] = table["write"] + table["read"]
    print(f"{case}: {gigabytes:.2f} GB of float32; processor seconds a GB")
    print(table.round(2).to_string())
    timing.write_json(arguments.json, {"title": f"bench_codec {case}", "gigabytes": gigabytes, **table.T.to_dict()})
    shutil.rmtree(maps.path.parent)


def whole_block(maps: ActivationStore, layer: str, block: int) -> NDArray:
    """Maps (C, N, H, W) of one layer and one block of samples."""
    flat = maps.read(layer, samples=maps.block(block))
    return flat.reshape(*flat.shape[:2], *maps.layers[layer].shape[1:])


def measured(codec: str, maps: ActivationStore, whole: Mapping[tuple[str, int], NDArray]) -> dict[str, float]:
    """Bytes on disk, and processor seconds to write and to read."""
    dtype, compressors = CODECS[codec]
    with tempfile.TemporaryDirectory(dir=maps.path.parent) as folder, patch.object(stores, "COMPRESSORS", compressors):
        store = ActivationStore.create(
            Path(folder) / "maps",
            list(maps.layers.values()),
            maps.n_samples,
            block_samples=maps.block_samples,
            dtype=dtype,
        )

        def write() -> None:
            for (layer, block), content in whole.items():
                store.write(layer, block, content)
            for block in range(store.n_blocks):
                store.commit(block)

        def read() -> None:
            for layer in store.layers:
                for _, _ in filter_blocks(store, layer):
                    pass

        return {"write": processor_seconds(write), "bytes": store.stored_bytes, "read": processor_seconds(read)}


def processor_seconds(work: Callable[[], None]) -> float:
    """Of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
