"""What the CUDA engine costs at least on named devices: ``python -m benchmarks.gpu_model [--filters F] [--samples N]``.

Nothing here is measured; ``gmmcnn task=doctor`` prints a measured time beside its floor where a device answers.
"""

import argparse

from gmmcnn.hardware import cost_model as cost
from gmmcnn.mixture import cuda

REGISTERS = 64
"""Of ``fit_mixtures`` at d ≤ 2, whatever the architecture (tests/kernels/test_compile.py)."""


def occupancy(device: cost.Device, n_samples: int, n_dims: int, k_max: int) -> str:
    """How the samples are held and how many warps a multiprocessor runs at once."""
    compiled = cuda.macros(n_samples, n_dims, k_max, "float32", device.shared_bytes)
    held = cuda.points_bytes(n_samples, n_dims, "float32") if compiled["RESIDENT"] else 0
    shared = cuda.static_bytes(n_dims, int(compiled["MAX_K"]), "float32") + held
    registers = REGISTERS if compiled["RESIDENT"] else 80
    threads = cuda.n_threads(n_samples)
    blocks = cost.resident_blocks(device, threads, registers, shared)
    where = "shared memory" if held else "L1 cache"
    warps = blocks * threads // cost.WARP
    return f"samples in {where}, {shared} bytes of shared memory, {blocks} blocks = {warps} warps a multiprocessor"


def ways(n_filters: int, n_samples: int, n_pixels: int, cores: int) -> str:
    """What maps cost from where they lie to their fits, and which part of it a better kernel could save."""
    sweep, lines = cost.Sweep(n_filters, n_samples), []
    for device in cost.DEVICES:
        for name, host in (("made on the device", None), (f"from a store, {cores} cores", cores)):
            stages = cost.way(sweep, n_pixels, cores=host)
            seconds = {stage.name: stage.floor_seconds(device) for stage in stages}
            total = sum(seconds.values())
            shares = ", ".join(
                f"{stage} {value / total:.0%}" for stage, value in seconds.items() if value > total / 100
            )
            lines.append(f"{device.name}, maps {name}: {total * 1e3:.1f} ms: {shares}")
    return "\n".join(lines)


def table(n_filters: int, n_samples: int, n_pixels: int) -> str:
    """One paragraph a device."""
    lines = []
    for device in cost.DEVICES:
        sweep = cost.Sweep(n_filters, n_samples)
        lines.append(f"{device.name}: {occupancy(device, n_samples, sweep.n_dims, sweep.k_max)}")
        for stage in cost.sweep_stages(sweep) + cost.pca_stages(n_filters, n_samples, n_pixels):
            lines.append(
                f"  {stage.name:<18} {stage.launches:>3} launches {stage.instructions / 1e9:>9.1f} G instructions "
                f"{stage.memory_bytes / 1e9:>8.2f} GB memory {stage.link_bytes / 1e9:>7.2f} GB link "
                f"{stage.floor_seconds(device) * 1e3:>9.2f} ms"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filters", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=784)
    parser.add_argument("--cores", type=int, default=8)
    arguments = parser.parse_args()
    print(table(arguments.filters, arguments.samples, arguments.pixels))
    print(ways(arguments.filters, arguments.samples, arguments.pixels, arguments.cores))


if __name__ == "__main__":
    main()
