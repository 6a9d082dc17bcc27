"""Extraction of a large store: peak resident memory, and throughput beside the bare forward pass.

    python benchmarks/bench_extract.py --gigabytes 4 --folder /tmp/bench-store

A VGG-like network on 32 × 32 images, whose maps are 0.9 MB a sample. The bare forward pass runs the same batches in
eval mode and keeps nothing. The folder's file system takes part in the measurement, since every shard is forced to
disk.
"""

import argparse
import resource
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gmmcnn.featuremaps import ActivationStore, extract, filter_blocks


class RandomImages(Dataset):
    """Smooth random images made when asked for, so that the data set itself takes no memory.

    Smooth, because zeros lie together in the rectified maps of natural images, and compression sets a store's speed.
    """

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> Tensor:
        coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(index))
        return nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")[0]


def vgg(widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256), pools: tuple[int, ...] = (1, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = [3, *widths]
    for index, (before, after) in enumerate(zip(channels, widths, strict=False)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if index in pools else []
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--probe-samples", type=int, default=200)
    parser.add_argument("--threads", type=int, default=None, help="of torch; the bare pass uses the same")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = vgg().eval()
    bytes_per_sample = 4 * (2 * 64 * 1024 + 2 * 128 * 256 + 2 * 256 * 64)
    images = RandomImages(int(arguments.gigabytes * 1e9) // bytes_per_sample + 1)

    forward_s = time_forward(model, images, arguments.probe_samples)
    shutil.rmtree(arguments.folder, ignore_errors=True)
    start = time.perf_counter()
    store = extract(model, images, arguments.folder, probe_samples=arguments.probe_samples)
    extract_s = time.perf_counter() - start
    start = time.perf_counter()
    for layer in store.layers:
        for _ in filter_blocks(store, layer):
            pass
    read_s = time.perf_counter() - start
    report(store, forward_s, extract_s, read_s)
    shutil.rmtree(arguments.folder)


def time_forward(model: nn.Module, images: RandomImages, batch: int, n_batches: int = 6) -> float:
    """Seconds for all images, from a few batches."""
    samples = torch.stack([images[index] for index in range(batch)])
    with torch.no_grad():
        model(samples)
        start = time.perf_counter()
        for _ in range(n_batches):
            model(torch.stack([images[index] for index in range(batch)]))
    return (time.perf_counter() - start) / (n_batches * batch) * len(images)


def report(store: ActivationStore, forward_s: float, extract_s: float, read_s: float) -> None:
    gigabytes = store.nbytes / 1e9
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"maps              {gigabytes:.2f} GB, {store.stored_bytes / 1e9:.2f} GB on disk, {store.n_samples} samples")
    print(f"bare forward pass {forward_s:.1f} s ({gigabytes / forward_s:.2f} GB/s of maps)")
    print(f"extraction        {extract_s:.1f} s ({gigabytes / extract_s:.2f} GB/s): {extract_s / forward_s:.2f} × bare")
    print(f"reading back      {read_s:.1f} s ({gigabytes / read_s:.2f} GB/s)")
    print(f"peak memory       {peak_mib:.0f} MiB resident")


if __name__ == "__main__":
    main()
