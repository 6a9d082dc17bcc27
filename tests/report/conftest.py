"""A realistic report: a small LeNet on ten classes, with planted images, dead filters and hostile names."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn.report.page import ClusterPlot, ReportContent

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
LAYERS = {"conv1": 6, "conv2": 16}
SAMPLES_PER_BATCH = 200
SMALL = 4


def filter_table(layers: dict[str, int], rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for layer, n_filters in layers.items():
        for index in range(n_filters):
            status = rng.choice(["ok", "dead", "near_dead"], p=[0.8, 0.1, 0.1])
            live = status == "ok"
            anomalous = live and index % 3 == 0
            rows.append(
                {
                    "layer": layer,
                    "filter": index,
                    "status": status,
                    "n_components": rng.integers(2, 11) if live else 0,
                    "calinski_harabasz": rng.lognormal(5, 1) if live else np.nan,
                    "smallest_cluster": rng.integers(1, 6) if anomalous else rng.integers(8, 40) if live else 0,
                    "n_small_clusters": int(anomalous),
                    "mean_activation": rng.uniform(0.1, 1.5) if live else 0.0,
                    "unbalanced": anomalous,
                    "separated": live and bool(rng.integers(2) or anomalous),
                    "active": live,
                    "anomalous": anomalous,
                    "flag_frequency": rng.integers(5, 11) / 10 if anomalous else rng.integers(0, 4) / 10 * live,
                    "reason": "small clusters of 3 and 5 samples; CH 1.9 × the layer's" if anomalous else None,
                }
            )
    return pd.DataFrame(rows)


def cluster_plot(layer: str, index: int, batch: int, rng: np.random.Generator, dims: int = 2) -> ClusterPlot:
    centres = rng.normal(scale=4, size=(5, dims))
    centres[3:] += 14 * rng.choice([-1, 1], size=(2, dims))
    sizes = [110, 60, SAMPLES_PER_BATCH - 170 - SMALL - 1, SMALL, 1]
    labels = np.repeat(np.arange(5), sizes)
    scores = centres[labels] + rng.normal(size=(SAMPLES_PER_BATCH, dims)) * [[1], [1.6], [0.8], [0.6], [0]][0][0]
    order = rng.permutation(SAMPLES_PER_BATCH)
    samples = batch * SAMPLES_PER_BATCH + np.arange(SAMPLES_PER_BATCH)
    return ClusterPlot(
        layer, index, batch, scores[order], labels[order], samples, np.array([False, False, False, True, True])
    )


def metrics_table(epochs: int, rng: np.random.Generator) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    analysed = (epoch % 3 == 0) | (epoch == 1)
    count = np.round(2 + 5 * epoch / epochs + rng.normal(scale=0.5, size=epochs))
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": 0.02 + np.exp(-epoch / 8),
            "train_accuracy": 1 - 0.45 * np.exp(-epoch / 7),
            "validation_loss": 0.5 + 0.02 * epoch,
            "validation_accuracy": 0.84 - 0.3 * np.exp(-epoch / 4) + rng.normal(scale=0.005, size=epochs),
            "anomalous_filters": np.where(analysed, count, np.nan),
            "flagged_per_batch": np.where(analysed, count - 0.7, np.nan),
        }
    )


def masking_table(random: int, rng: np.random.Generator) -> pd.DataFrame:
    names = ["none", "anomalous"] + ["random"] * random
    return pd.DataFrame(
        {
            "mask": names,
            "control": [np.nan, np.nan, *range(random)],
            "n_filters": [0] + [7] * (random + 1),
            "train_accuracy": [0.991, 0.873, *rng.normal(0.86, 0.04, random)],
            "train_loss": [0.03, 0.41, *rng.normal(0.45, 0.1, random)],
            "validation_accuracy": [0.842, 0.821, *rng.normal(0.815, 0.012, random)],
            "validation_loss": [1.1, 0.9, *rng.normal(0.95, 0.1, random)],
        }
    )


def outlier_table(plots: list[ClusterPlot], rng: np.random.Generator) -> pd.DataFrame:
    singled_out: dict[int, list[str]] = {}
    for plot in plots:
        for sample in plot.samples[plot.small[plot.labels]]:
            singled_out.setdefault(int(sample), []).append(f"{plot.layer}:{plot.filter}")
    table = pd.DataFrame(
        {
            "sample": list(singled_out),
            "label": rng.integers(0, 10, len(singled_out)),
            "n_filters": [len(names) for names in singled_out.values()],
            "filters": [", ".join(names) for names in singled_out.values()],
        }
    )
    return table.assign(planted=np.where(table.index < 4, "uniform_noise", ""), noisy_label=table.index % 5 == 4)


def sample_table(targets: dict[int, int], rng: np.random.Generator) -> pd.DataFrame:
    """Scores of all samples; the first thirty surprise, less and less, and the first is planted."""
    number = np.arange(len(targets))
    surprise = np.where(number < 30, 3.0 - number / 20, -1.0)
    return pd.DataFrame(
        {
            "sample": number,
            "label": list(targets.values()),
            "cluster_label": (np.array(list(targets.values())) + (number < 30)) % 10,
            "label_surprise": surprise,
            "memorisation_rank": 1 - number / len(targets),
            "label_surprise:conv1": surprise,
            "label_surprise:conv2": -rng.random(len(targets)),
            "planted": np.where(number == 0, "wrong_label", ""),
            "noisy_label": number == 0,
        }
    )


@pytest.fixture
def content() -> ReportContent:
    return realistic_content()


@pytest.fixture
def bare(content: ReportContent) -> ReportContent:
    """Nothing found, nothing trained, nothing masked: the emptiest report there is."""
    filters = content.filters.assign(anomalous=False, flag_frequency=0.0)
    nothing = content.outliers.iloc[:0]
    return replace(
        content,
        findings=["No anomaly filters."],
        warnings=[],
        metrics=None,
        filters=filters,
        outliers=nothing,
        clusters=[],
        images={},
        class_names=None,
        masking=None,
        skipped=[],
        targets={},
        samples=content.samples.iloc[:0],
    )


def realistic_content() -> ReportContent:
    rng = np.random.default_rng(0)
    filters = filter_table(LAYERS, rng)
    flagged = filters[filters["anomalous"]]
    plots = [
        cluster_plot(layer, index, batch % 3, rng)
        for batch, (layer, index) in enumerate(zip(flagged["layer"], flagged["filter"], strict=True))
    ]
    n_images = 3 * SAMPLES_PER_BATCH
    targets = {sample: int(rng.integers(0, 10)) for sample in range(n_images)}
    return ReportContent(
        title="LeNet-5 on Fashion-MNIST",
        facts={
            "Model": "lenet5, 44,426 parameters",
            "Data": "fashion_mnist, 2,000 training samples",
            "Seed": "0",
            "Probe": "10 batches of 200 samples",
            "Mixtures": "K from 2 to 10",
            "Thresholds": "λ = 5, α = 1, β = 0.8, θ = 0.5",
            "Versions": "gmmcnn 0.1.0, torch 2.13.0, numpy 2.4",
        },
        findings=[
            f"{len(flagged)} of the 22 filters are anomalous: they set a handful of images apart from all the others.",
            "4 planted noise images are among the outlier samples; conv1:0 and conv2:9 single out most of them.",
            "Training accuracy ended at 99.1 %, validation accuracy at 84.2 %.",
        ],
        warnings=["λ·K_max/N = 0.25: the criteria are informative between 0.1 and 0.3."],
        metrics=metrics_table(30, rng),
        filters=filters,
        outliers=outlier_table(plots, rng),
        clusters=plots,
        images={sample: rng.integers(0, 256, (28, 28), dtype=np.uint8) for sample in range(n_images)},
        class_names=CLASSES,
        masking=masking_table(20, rng),
        skipped=[("shortcut.0", "called twice in one forward pass"), ("head<&>", "never called")],
        targets=targets,
        samples=sample_table(targets, rng),
    )
