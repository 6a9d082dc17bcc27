"""The benchmarks of the CPU engine run, here on a few random images, and their rivals do the work they claim."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Parallel
from torch import nn

from benchmarks import (
    bench_codec,
    bench_live,
    bench_pca,
    bench_pipeline,
    bench_samples,
    bench_sweep,
    cases,
    cluster_model,
    peaks,
    rivals,
    timing,
)
from gmmcnn import config
from gmmcnn.featuremaps import ActivationStore, extract
from gmmcnn.principal_components import krylov

SAMPLES = 40


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ActivationStore:
    """Maps of a random network, which take the place of the trained one's."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    images = torch.rand(3 * SAMPLES, 1, 16, 16)
    store = extract(network, images, tmp_path / "maps", probe_samples=SAMPLES)
    monkeypatch.setattr(bench_live, "network", lambda case: (network.eval(), images))
    monkeypatch.setattr(bench_live, "N", SAMPLES // 2)
    monkeypatch.setattr(cases, "trained_store", lambda: store)
    monkeypatch.setattr(cases, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cases, "pool", lambda: Parallel(n_jobs=1))
    monkeypatch.setattr(cases, "LARGE_BATCH", SAMPLES)
    monkeypatch.setattr(cases, "DEFAULT_BATCH", SAMPLES // 2)
    monkeypatch.setattr(cases, "K_MAX", 3)
    return store


@pytest.mark.parametrize(
    ("benchmark", "arguments", "titles"),
    [
        (bench_sweep, ["--filters", "8"], ["bench_sweep"] * 3 + ["sweep_peak"]),
        (bench_pca, ["--filters", "2"], ["bench_pca", "pca_limits", "bench_pca"] * 2 + ["bench_pca", "pca_limits"]),
        (bench_pipeline, ["--one-in", "3"], ["bench_pipeline"] * 2),
        (bench_live, ["--one-in", "3"], ["bench_live lenet5", "bench_live alexnet"]),
    ],
)
def test_it_runs_and_writes_its_ratios(
    store: ActivationStore, benchmark, arguments, titles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--rounds", "1", "--json", str(tmp_path / "result")])
    benchmark.main()
    results = json.loads((tmp_path / "result").read_text())
    assert [result["title"] for result in results] == titles
    ratios = {rival["rival"]: rival["ratio"] for result in results for rival in result.get("results", [])}
    assert "scikit-learn" in ratios
    assert min(ratios.values()) > 0


def test_a_fit_that_a_rival_gives_up_is_a_row_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def given_up(*_: object) -> None:
        raise ValueError("ill-defined empirical covariance")

    monkeypatch.setattr(rivals, "sklearn_clustering", given_up)
    maps, settings = np.random.default_rng(0).random((20, 9), np.float32), config.Screen()
    rows = [rivals.sklearn_filter(maps, {"layer": "conv", "filter": 0, "batch": 0}, 2, 3, settings)]
    assert rows[0]["status"] == rivals.FAILED
    columns = {"n_components": 2, "calinski_harabasz": 1.0, "smallest_cluster": 9, "n_small_clusters": 0}
    table = rivals.screened([*rows, {**rows[0], "filter": 1, "status": "ok", **columns}], settings)
    assert table["status"].tolist() == [rivals.FAILED, "ok"]
    assert not table["anomalous"].any()
    assert bench_live.compared(table, table) == "2 and our 2 filters, 1 failed"


@pytest.mark.parametrize("rival", [*rivals.ONE_BY_ONE, *rivals.BATCHED])
def test_a_rival_fits_the_same_mixtures(rival: str) -> None:
    if not rivals.installed(rival):
        pytest.skip(f"{rival} is not installed; benchmarks/README.md says how")
    rng = np.random.default_rng(0)
    groups = np.array([[-4, 0], [4, 0], [0, 5]])[rng.integers(3, size=(4, 300))]
    scores = cases.standardised((groups + rng.normal(size=groups.shape)).astype(np.float32))
    theirs = bench_sweep.sweep_by(rival, scores, Parallel(n_jobs=1))[:, 1]  # K = 3
    ours = bench_sweep.fit(scores, n_init=5).lower_bound_[:, 1]
    assert theirs == pytest.approx(ours, abs=0.02)


def test_the_loop_screens_the_same_filters_by_the_same_measures(store: ActivationStore) -> None:
    settings = config.Settings(
        engine=config.Engine(name="cpu"), gmm=config.Gmm(k_max=cases.K_MAX, n_init=10, repeats=1)
    )
    ours = bench_pipeline.analysed(store, settings)
    theirs = bench_pipeline.looped(store, store.n_samples // cases.DEFAULT_BATCH, settings, Parallel(n_jobs=1))
    assert set(theirs) <= set(ours)
    for column in ("layer", "filter", "status"):
        assert theirs[column].tolist() == ours[column].tolist()
    for column in ("mean_activation", "active_share"):
        np.testing.assert_allclose(theirs[column], ours[column], rtol=1e-5)


def test_passes_are_those_of_the_iteration() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 100, 100)).astype(np.float32)
    maps[1] *= 0.8 ** np.arange(100)  # falls off steeply, hence converges soon
    slow, quick = bench_pca.passes(maps)
    assert krylov.FIRST_CHECK <= quick < slow <= krylov.MAX_PASSES


def test_reading_reads_everything() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 64 * peaks.CHAINS)).astype(np.float32)
    assert peaks._read(maps.reshape(2, -1), np.array([1, 2])) == pytest.approx(
        maps[0].sum() + 2 * maps[1].sum(), rel=1e-4
    )


def test_times_are_scaled_to_the_whole_work() -> None:
    quarter = timing.Contestant(lambda: time.sleep(0.02), share=0.25)
    (result,) = timing.compare(timing.Contestant(lambda: time.sleep(0.02)), {"quarter": quarter}, rounds=3)
    assert result.rival_s >= 0.08
    assert result.lowest_ratio <= result.ratio <= result.highest_ratio


def test_samples_are_scored_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of 1,000 filters, whose samples must be read and scored in two seconds.

    Of fewer, what a batch costs whatever their number would be most.
    """
    arguments = ["--filters", "200", "--rounds", "3", "--json", str(tmp_path / "result")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    bench_samples.main()
    (result,) = json.loads((tmp_path / "result").read_text())
    assert result["sizes"] == {"filters": 200, "batches": 10, "samples": 200, "repeats": 10}
    seconds = sum(times["processor"] for times in result["results"].values())
    assert 0 < seconds < 2 * 2 / 5  # on two cores


TWO_SECONDS = cluster_model.Measured([2.0], overhead=0.01, bytes_a_block=1e8, filters_a_block=100, shared_core=1.0)
"""A block; everything that follows can be worked out by hand."""


@pytest.mark.parametrize(
    ("n_tasks", "n_workers", "bandwidth", "expected"),
    [
        (10, 1, np.inf, 0.01 + 10 * 2),
        (10, 10, np.inf, 10 * 0.01 + 2),  # the last is handed out after the others
        (11, 10, np.inf, 0.01 + 2 + 2),  # the eleventh by whoever is free first
        (1000, 1000, np.inf, 1000 * 0.01 + 2),  # most of them have ended before all have work
        (10, 10, 1e8, 0.01 + 9 * 1 + 2),  # nine others are read before the last one
    ],
)
def test_a_cluster_is_simulated(n_tasks: int, n_workers: int, bandwidth: float, expected: float) -> None:
    assert cluster_model.simulate(TWO_SECONDS, n_tasks, n_workers, bandwidth=bandwidth) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("nodes", "bandwidth", "limit"),
    [(1, 1e12, "starting"), (1, 1e8, "the file system"), (100, 1e12, "the scheduler")],
)
def test_what_limits_a_cluster_is_named(nodes: int, bandwidth: float, limit: str) -> None:
    answer = cluster_model.asked(TWO_SECONDS, 10**6, nodes, 16, bandwidth)
    assert answer.limit == limit
    assert answer.tasks == 10**4
    assert answer.efficiency == pytest.approx(10**4 * 2 / (16 * nodes) / answer.seconds)


def test_codecs_are_compared_on_the_same_maps(store: ActivationStore, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--rounds", "1", "--json", str(tmp_path / "result")])
    bench_codec.main()
    results = json.loads((tmp_path / "result").read_text())
    assert [result["title"] for result in results] == [f"bench_codec {case}" for case in bench_live.CASES]
    for result in results:
        assert result["none"]["share of the bytes"] >= 1  # with the index of the shards and checksums
        assert result["LZ4 in Blosc"]["share of the bytes"] < 1
        assert all(min(result[codec]["write"], result[codec]["read"]) > 0 for codec in bench_codec.CODECS)
