"""The page of an analysis whose verdicts can be told by hand: 20 samples, one filter with a small cluster."""

import json
import re
from html import unescape
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

import gmmcnn
from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.data import Splits
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.report import views
from gmmcnn.report.compose import page_of

N, K = 20, 2


def layer(smallest: list[int], n_batches: int = 1) -> LayerFits:
    """Filters with two clusters, the second with so many of the N samples in every batch."""
    shape = (len(smallest), n_batches)
    labels = np.stack([np.repeat([0, 1], [N - size, size]) for size in smallest]).astype(np.int16)
    clusterings = (*shape, 1)
    index = (*clusterings, 1)
    return LayerFits(
        scores=np.random.default_rng(0).normal(size=(*shape, N, 2)).astype(np.float32),
        explained_variance=np.ones((*shape, 2)),
        mean_activation=np.ones(shape),
        active_share=np.ones(shape),
        status=np.full(clusterings, "ok"),
        n_components=np.full(clusterings, K),
        labels=np.tile(labels[:, None, None], (1, n_batches, 1, 1)),
        calinski_harabasz=np.full(index, 10.0),
        lower_bound=np.zeros(index),
        n_iter=np.ones(index, np.int64),
        converged=np.ones(index, bool),
        weights=np.full((*clusterings, K), 0.5),
        means=np.zeros((*clusterings, K, 2)),
        covariances=np.tile(np.eye(2), (*clusterings, K, 1, 1)),
    )


def analysed(smallest: list[int], n_batches: int = 1, images: bool = True, **about: Any) -> Analysis:
    n = n_batches * N
    samples = pd.DataFrame({"batch": np.arange(n) // N, "label": about.pop("label", 0), **about})
    return Analysis(
        fits=Fits({"conv1": layer(smallest, n_batches)}, K, K),
        known=samples,
        thumbnails=np.zeros((n if images else 0, 4, 4), np.uint8),
        settings=config.Screen(small_cluster=2),
        skipped=(("head", "never called"),),
        name="network X",
    )


def text_of(page: str) -> str:
    """What is read: no scripts and styles, one space between words."""
    bare = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", bare)).split())


def figures_of(page: str) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert block
    return json.loads(block[1])["figures"]


def images_of(page: str) -> list[int]:
    return [int(sample) for sample in re.findall(r"^\.i(\d+)\{", page, flags=re.MULTILINE)]


def test_facts_of_the_analysis_come_before_those_given():
    text = text_of(page_of(analysed([1, 10], n_batches=2), facts={"Colour of the sky": "blue"}, notes=["A note."]))
    for fact in [
        "Filters 2 in 1 layer",
        "Probe set 2 batches of 20 samples",
        "Clusters tried 2 to 2",
        "Small cluster (λ) at most 2 samples",
        "Unbalanced (α) at least 1 small cluster",
        "Separated (β) CH index above 0.8 × the median of the layer",
        "Active (θ) mean activation above 0.5 × the mean of the layer",
        "Anomalous flagged in at least 50 % of the batches",
    ]:
        assert fact in text
    assert text.index("Anomalous flagged in at least") < text.index("Colour of the sky blue")
    assert "head never called" in text
    assert "λ·K_max/N = 2·2/20 = 0.20: informative. A note." in text
    assert "network X" in text


def test_findings_name_the_filter_its_sample_and_the_planted_one():
    planted = np.where(np.arange(N) == N - 1, "noise", "")
    text = text_of(page_of(analysed([1, 10], planted=planted), class_names=["cat"]))
    assert "1 of 2 filters is anomalous: conv1:0." in text
    assert "1 noise image planted in the probe set (samples 19): 1 of 1 found by conv1:0; 0 other samples" in text
    assert "sample 19 cat planted: noise 1 filter: conv1:0" in text


def test_an_anomaly_filter_is_plotted_in_the_first_batch_that_flags_it():
    figures = figures_of(page_of(analysed([1, 10], n_batches=2), class_names=["cat"]))
    assert list(figures) == ["clusters-0"]
    small = figures["clusters-0"]["data"][-1]
    assert small["customdata"] == [N - 1]
    assert small["hovertext"] == ["<br>cat"]
    assert "small cluster of 1" in small["hovertemplate"]


def test_images_are_those_of_the_plots_and_outliers_only():
    page = page_of(analysed([1, 10], n_batches=3))
    outliers = [N - 1, 2 * N - 1, 3 * N - 1]
    assert images_of(page) == sorted({*range(N), *outliers})


def test_without_an_anomaly_there_is_neither_figure_nor_plotly():
    page = page_of(analysed([10, 10]))
    assert "None of 2 filters is anomalous." in text_of(page)
    assert "No sample was singled out" in text_of(page)
    assert figures_of(page) == {}
    assert images_of(page) == []
    assert "plotly.js" not in page


def test_imported_maps_have_neither_labels_nor_images():
    page = page_of(analysed([1, 10], images=False, label=pd.NA))
    assert images_of(page) == []
    assert "sample 19 1 filter: conv1:0" in text_of(page)
    assert "see its image" not in text_of(page)
    assert {text for trace in figures_of(page)["clusters-0"]["data"] for text in trace["hovertext"]} == {""}


def test_more_anomaly_filters_than_plots_is_said_on_the_page():
    n_anomalous = views.MOST_PLOTS + 2
    page = page_of(analysed([1] * n_anomalous + [10]))
    assert len(figures_of(page)) == views.MOST_PLOTS
    assert f"The {views.MOST_PLOTS} plots of the most flagged filters, of {n_anomalous} in all." in text_of(page)


def test_curves_and_masks_become_figures():
    metrics = pd.DataFrame(
        {"epoch": [1, 2, 3], "train_accuracy": [0.1, 0.2, 0.3], "validation_accuracy": [0.1, 0.2, 0.2]}
    ).assign(train_loss=1.0, validation_loss=1.0, anomalous_filters=[1, np.nan, 2], flagged_per_batch=[1, np.nan, 2])
    masking = pd.DataFrame({"mask": ["none", "anomalous", "random"], "n_filters": [0, 1, 1]}).assign(
        train_accuracy=[0.3, 0.2, 0.1], validation_accuracy=[0.2, 0.1, 0.1], train_loss=1.0, validation_loss=1.0
    )
    page = page_of(analysed([1, 10]), metrics=metrics, masking=masking)
    assert set(figures_of(page)) == {"training", "masking", "clusters-0"}
    assert "Filters flagged per probe batch: 1.0 after epoch 1, 2.0 after epoch 3" in text_of(page)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_real_network_gets_its_page(digits_cnn: nn.Module, digits: Splits, tmp_path, labelled: bool):
    images = digits.train.images[:60]
    labels = digits.train.labels[:60].numpy() if labelled else None
    layers = [name for name, module in digits_cnn.named_modules() if isinstance(module, nn.Conv2d)][:1]
    thresholds = {"small_cluster": 2, "ch_ratio": 0, "activation_ratio": 0}
    analysis = gmmcnn.analyze(
        digits_cnn, images, labels, layers=layers, engine="reference", k_max=8, repeats=1, **thresholds
    )
    page = analysis.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    anomalous = int(analysis.filters["anomalous"].sum())
    assert len(figures_of(page)) == anomalous > 0
    assert f"{anomalous} of {len(analysis.filters)} filters" in text_of(page)
    assert images_of(page) == list(range(60))


def test_samples_planted_in_training_stand_beside_what_the_criteria_single_out():
    label = np.where(np.arange(N) < 9, 0, 1)
    planted = np.where(np.arange(N) == 9, "wrong_label", "")  # among nine others of cluster 0 with label 0
    analysis = analysed([10, 10], label=label, planted=planted)
    assert analysis.samples["memorisation_rank"].idxmax() == 9
    text = text_of(page_of(analysis, class_names=["shirt", "bag"]))
    assert (
        "1 sample planted in the training set (1 wrong label): 1 of 1 are among the 2 of 20 that stand first by "
        "memorisation rank (chance 0.1); the criteria of anomaly filters single out 0 of them, and 0 others."
    ) in text
    assert "Sample 9 stands first by memorisation rank: labelled 1, its clusters say 0" in text
    assert "labelled bag, clusters say shirt; surprising in conv1" in text


def test_without_labels_the_page_says_so():
    text = text_of(page_of(analysed([10, 10], label=pd.NA)))
    assert "The labels of the samples are not known." in text
    assert "stands first" not in text
