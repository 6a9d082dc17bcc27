"""What of a fit repeats from one seed to another, and what does not.

    python -m benchmarks.stability [--json FILE] [--samples N] [--starts S]

Every filter of three trained networks is clustered in ten probe batches, or as many as there are samples for, from 3 S
single starts for each K. Each way of using starts is put together from them three times, from starts of its own each
time, and the three are compared in pairs:

- share of live filters and batches with the same K, and with the same K′, the smallest whose CH index is within 10 % of
  the largest;
- Jaccard overlap of the flagged (filter, batch); with repeats, of those that half of the repeats flag;
- share of filters with the same verdict, anomalous or not, where anomalous is being flagged in 50 % of the fits, and
  in 10 % of them, and the Jaccard overlap of the anomalous ones;
- correlation, standard error and largest difference of the flag frequency;
- relative difference of the number of filters flagged in a batch.
"""

import argparse
import warnings
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import cases, timing
from benchmarks.networks import Network
from gmmcnn import config
from gmmcnn.featuremaps import filter_blocks
from gmmcnn.featuremaps.activation import activation_statistics
from gmmcnn.filters.fits import cluster_sizes
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca

NETWORKS = (
    Network("lenet5", "fashion_mnist", seed=1, epochs=40, images=2000, label_noise=0.2),
    Network("simple_cnn", "fashion_mnist", seed=0, epochs=10),
    Network("simple_cnn", "digits", seed=0, epochs=5),
)
COUNTS = range(cases.K_MIN, cases.K_MAX + 1)
SEEDS = 3
NEAR = 0.1
"""An index smaller by no more than this share is as good."""
SMALL_SHARE = 0.025
"""λ / N: 5 of 200 samples."""


class Maps(NamedTuple):
    """All filters of a network in B probe batches."""

    layer: NDArray[np.int64]
    """(F,)"""
    scores: NDArray[np.float32]
    """(F, B, N, 2)"""
    mean_activation: NDArray[np.float64]
    """(F, B)"""
    live: NDArray[np.bool_]
    """(F, B)"""


class Starts(NamedTuple):
    """Outcome of S single starts for each of n_k numbers of components."""

    lower_bounds: NDArray[np.float64]
    """(S, n_k, F, B)"""
    index: NDArray[np.float64]
    """(S, n_k, F, B), -inf where undefined."""
    small: NDArray[np.bool_]
    """(S, n_k, F, B): whether a cluster has at most λ samples."""


class Way(NamedTuple):
    """A way of using starts."""

    name: str
    n_init: int
    repeats: int = 1
    by_index: bool = False
    """Of several starts, keep the one with the largest index instead of the largest likelihood."""
    all_near: bool = False
    """Flag by the share of the values of K with an index near the largest that have a small cluster."""
    smallest_near: bool = False
    """Take K′ in place of K."""


def ways(n_starts: int) -> tuple[Way, ...]:
    return (
        Way("1 start", 1),
        Way("10 starts", 10),
        Way(f"{n_starts} starts", n_starts),
        Way("10 starts, K′", 10, smallest_near=True),
        Way("10 starts, all K within 10 %", 10, all_near=True),
        Way("10 starts, best by index", 10, by_index=True),
        Way(f"{n_starts} starts, best by index", n_starts, by_index=True),
        Way("10 repeats of 1 start", 1, 10),
        Way(f"{n_starts} repeats of 1 start", 1, n_starts),
        Way(f"{n_starts // 10} repeats of 10 starts", 10, n_starts // 10),
    )


class Outcome(NamedTuple):
    """What a way gives from one set of starts."""

    n_components: NDArray[np.int64]
    """(F, B); of the first repeat."""
    smallest_near: NDArray[np.int64]
    """(F, B); K′, of the first repeat."""
    flagged: NDArray[np.float64]
    """(F, B) share of the repeats that flag the filter."""


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--samples", type=int, default=cases.DEFAULT_BATCH, help="N")
    parser.add_argument("--starts", type=int, default=50, help="most starts that a way uses, a multiple of 10")
    arguments = parser.parse_args()
    networks = []
    for network in NETWORKS:
        maps = maps_of(network, arguments.samples)
        starts = single_starts(maps.scores, SEEDS * arguments.starts)
        networks.append((maps, starts))
        n_filters, n_batches = maps.mean_activation.shape
        flagged = outcome(maps, starts, Way("", 10)).flagged.mean(axis=1)
        print(
            f"{network.name}: {n_filters} filters, {n_batches} batches of {arguments.samples}, λ = {small(maps)}; "
            f"{flagged.sum():.1f} flagged in a batch, {(flagged >= 0.5).sum()} anomalous; the second-best K is within "
            f"5 % of the best for {flatness(maps, starts):.0%}"
        )
    report(networks, arguments)


def maps_of(network: Network, n_samples: int) -> Maps:
    """Scores of every filter, dead ones included."""
    store = network.store()
    layers, scores, activation, share = [], [], [], []
    for number, layer in enumerate(store.layers):
        maps = np.concatenate([block for _, block in filter_blocks(store, layer)])
        n_batches = min(10, maps.shape[1] // n_samples)
        problems = maps[:, : n_batches * n_samples].reshape(len(maps) * n_batches, n_samples, -1)
        scores.append(pca(problems, cases.DIMS, engine="cpu").scores.reshape(len(maps), n_batches, n_samples, -1))
        for target, values in zip((activation, share), activation_statistics(problems), strict=True):
            target.append(values.reshape(len(maps), n_batches))
        layers += [number] * len(maps)
    live = np.concatenate(share) >= config.Screen().min_active_share
    return Maps(np.array(layers), np.concatenate(scores), np.concatenate(activation), live)


def small(maps: Maps) -> int:
    """λ, in proportion to N."""
    return round(SMALL_SHARE * maps.scores.shape[2])


def single_starts(scores: NDArray, n_starts: int) -> Starts:
    """Fit every K from every start: a sweep for each, which gives its labels."""
    problems = scores.reshape(-1, *scores.shape[2:])
    largest_small = round(SMALL_SHARE * problems.shape[1])
    shape = (n_starts, len(COUNTS), *scores.shape[:2])
    starts = Starts(np.full(shape, np.nan), np.full(shape, -np.inf), np.zeros(shape, bool))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits that stop at the cap
        for start in range(n_starts):
            for i, k in enumerate(COUNTS):
                sweep = GaussianMixtureSweep(k_min=k, k_max=k, random_state=start, engine="cpu").fit(problems)
                sizes = cluster_sizes(sweep.labels_, k)
                has_small = ((sizes > 0) & (sizes <= largest_small)).any(axis=1)
                starts.lower_bounds[start, i] = sweep.lower_bound_.reshape(shape[2:])
                starts.index[start, i] = np.nan_to_num(sweep.calinski_harabasz_, nan=-np.inf).reshape(shape[2:])
                starts.small[start, i] = has_small.reshape(shape[2:])
    return starts


def flatness(maps: Maps, starts: Starts) -> float:
    """Share of live filters and batches whose second-best K has an index within 5 % of the best, from ten starts."""
    index, _ = best_of(Starts(*(array[:10] for array in starts)), by_index=False)
    second, first = np.sort(index, axis=0)[-2:]
    return float((second >= 0.95 * first)[maps.live].mean())


def best_of(starts: Starts, *, by_index: bool) -> tuple[NDArray, NDArray]:
    """Index and smallness (n_k, F, B) of the start that is kept."""
    value = starts.index if by_index else np.nan_to_num(starts.lower_bounds, nan=-np.inf)
    kept = value.argmax(axis=0)[None]
    return np.take_along_axis(starts.index, kept, 0)[0], np.take_along_axis(starts.small, kept, 0)[0]


def outcome(maps: Maps, starts: Starts, way: Way) -> Outcome:
    """Use as many of the starts as the way needs."""
    fits = []
    for first in range(0, way.n_init * way.repeats, way.n_init):
        index, has_small = best_of(
            Starts(*(array[first : first + way.n_init] for array in starts)), by_index=way.by_index
        )
        near = index >= index.max(axis=0) * (1 - NEAR)
        chosen, near_chosen = index.argmax(axis=0), near.argmax(axis=0)
        used = near_chosen if way.smallest_near else chosen
        unbalanced = np.take_along_axis(has_small, used[None], 0)[0].astype(float)
        if way.all_near:
            unbalanced = (has_small & near).sum(axis=0) / near.sum(axis=0)
        ch = np.take_along_axis(index, used[None], 0)[0]
        fits.append((chosen, near_chosen, unbalanced * separated_and_active(maps, ch)))
    return Outcome(fits[0][0], fits[0][1], np.mean([flagged for _, _, flagged in fits], axis=0))


def separated_and_active(maps: Maps, index: NDArray) -> NDArray[np.bool_]:
    """Criteria 2 and 3 by their default thresholds."""
    screen, met = config.Screen(), np.zeros(index.shape, bool)
    live = maps.live & np.isfinite(index)
    for layer in np.unique(maps.layer):
        rows = maps.layer == layer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers without a live filter
            median = np.nanmedian(np.where(live, index, np.nan)[rows], axis=0)
            mean = np.nanmean(np.where(live, maps.mean_activation, np.nan)[rows], axis=0)
        active = maps.mean_activation[rows] > screen.activation_ratio * mean
        met[rows] = (index[rows] > screen.ch_ratio * median) & active & live[rows]
    return met


def agreement(one: Outcome, other: Outcome, live: NDArray[np.bool_]) -> dict[str, float]:
    """How two outcomes agree."""
    frequency = [outcome.flagged.mean(axis=1) for outcome in (one, other)]
    difference = frequency[0] - frequency[1]
    alive = live.any(axis=1)
    count = [outcome.flagged.sum() for outcome in (one, other)]
    return {
        "K": (one.n_components == other.n_components)[live].mean(),
        "K′": (one.smallest_near == other.smallest_near)[live].mean(),
        "flagged": jaccard(one.flagged >= 0.5, other.flagged >= 0.5),
        **verdicts(*frequency, alive),
        "correlation": correlation(frequency[0][alive], frequency[1][alive]),
        "standard error": float(np.sqrt((difference[alive] ** 2).mean() / 2)),
        "largest": np.abs(difference).max(),
        "count": abs(count[0] - count[1]) / np.mean(count) if any(count) else np.nan,
    }


def verdicts(one: NDArray, other: NDArray, live: NDArray[np.bool_]) -> dict[str, float]:
    """How the sets of anomaly filters agree, by the default of ``min_frequency`` and by a lower one."""
    figures = {}
    for least in (0.5, 0.1):
        chosen = [frequency >= least - 1e-9 for frequency in (one, other)]
        figures[f"verdict {least:.0%}"] = (chosen[0] == chosen[1])[live].mean()
        figures[f"Jaccard {least:.0%}"] = jaccard(*chosen)
    return figures


def jaccard(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two sets, NaN where both are empty."""
    return float((one & other).sum() / (one | other).sum()) if (one | other).any() else np.nan


def correlation(one: NDArray, other: NDArray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() and other.std() else np.nan


def report(networks: list[tuple[Maps, Starts]], arguments: argparse.Namespace) -> None:
    """Print a row for each way: means over networks and pairs of seeds."""
    for way in ways(arguments.starts):
        pairs = []
        for maps, starts in networks:
            sets = [
                Starts(*(array[seed * arguments.starts : (seed + 1) * arguments.starts] for array in starts))
                for seed in range(SEEDS)
            ]
            outcomes = [outcome(maps, part, way) for part in sets]
            pairs += [agreement(*pair, maps.live) for pair in combinations(outcomes, 2)]
        figures = {name: mean([pair[name] for pair in pairs]) for name in pairs[0]}
        if way == ways(arguments.starts)[0]:
            print(f"{'':30s}" + "  ".join(figures))
        print(f"{way.name:30s}" + "  ".join(f"{value:{len(name)}.3f}" for name, value in figures.items()))
        timing.write_json(arguments.json, {"title": "stability", "N": arguments.samples, **way._asdict(), **figures})


def mean(values: list[float]) -> float:
    """Mean of those that are defined."""
    defined = [float(value) for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


if __name__ == "__main__":
    main()
