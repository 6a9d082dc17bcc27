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
from gmmcnn.report import compose
from gmmcnn.report.compose import content_of, page_of

N, K = 20, 2


def layer(smallest: list[int], n_batches: int = 1) -> LayerFits:
    """Filters with two clusters, the second with so many of the N samples in every batch."""
    shape = (len(smallest), n_batches)
    labels = np.stack([np.repeat([0, 1], [N - size, size]) for size in smallest]).astype(np.int16)
    clusterings = (*shape, 1)
    index = (*clusterings, 1)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(*shape, N, 2))
    return LayerFits(
        scores=(noise + labels[:, None, :, None]).astype(np.float32),
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


def data_of(page: str) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert block
    return json.loads(block[1])


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
    assert "λ·K_max/N = 2·2/20 = 0.20: informative. Keep in mind A note." in text
    assert "network X" in text


def test_findings_name_the_filter_its_sample_and_the_planted_one():
    planted = np.where(np.arange(N) == N - 1, "noise", "")
    text = text_of(page_of(analysed([1, 10], planted=planted), class_names=["cat"]))
    assert "1 of 2 filters is anomalous: it responds strongly and sets a few images apart from all others." in text
    assert "Anomalous: conv1:0." in text
    assert "1 noise image planted in the probe set (samples 19): 1 of 1 found by conv1:0; 0 other samples" in text


def test_an_anomaly_filter_is_drawn_in_the_first_batch_that_flags_it():
    analysis = analysed([1, 10], n_batches=3)
    labels = analysis.fits.layers["conv1"].labels
    labels[0, 0] = np.repeat([0, 1], N // 2)  # an even split, which is not flagged
    assert content_of(analysis).scatters.clustering.tolist() == [1, 0]


def test_the_card_of_an_outlier_says_who_singles_it_out():
    cards = data_of(page_of(analysed([1, 10]), class_names=["cat"]))["samples"]
    [card] = [card for card in cards if card["filters"]]
    assert (card["sample"], card["class"], card["filters"], card["n_anomalous"]) == (N - 1, "cat", ["conv1:0"], 1)


def test_imported_maps_have_neither_labels_nor_images():
    page = page_of(analysed([1, 10], images=False, label=pd.NA))
    data = data_of(page)
    assert data["sheet"] is None
    assert [card["sample"] for card in data["samples"] if card["filters"]] == [N - 1]
    assert {card["class"] for card in data["samples"]} == {None}
    assert "data:image" not in page


def test_epochs_that_are_given_follow_the_thresholds_if_they_are_of_the_same_clusterings():
    now, before, other = analysed([1, 10]), analysed([10, 10]), analysed([1, 10], n_batches=2)
    assert list(content_of(now, earlier={3: before}, epoch=7).ranks) == [3, 7]
    assert list(content_of(now, earlier={3: before, 5: other}, epoch=7).ranks) == [7]
    assert list(content_of(now).ranks) == [None]


def test_too_many_clusterings_leave_the_earlier_epochs_out(monkeypatch):
    monkeypatch.setattr(compose, "_MOST_CLUSTERINGS", 5)
    now, before = analysed([1, 10]), analysed([10, 10])
    assert list(content_of(now, earlier={3: before}, epoch=7).ranks) == [3, 7]
    assert list(content_of(now, earlier={3: before, 4: before}, epoch=7).ranks) == [7]


def test_a_saturated_setting_is_a_warning_and_an_informative_one_a_note():
    informative = content_of(analysed([1, 10]))
    assert informative.warnings == []
    assert len(informative.notes) == 1
    saturated = content_of(analysed([1, 10]).with_thresholds(small_cluster=4))
    assert "saturated" in saturated.warnings[0]
    assert saturated.notes == []


def test_the_index_of_every_number_of_clusters_is_the_median_of_the_clusterings():
    analysis = analysed([1, 10], n_batches=4)
    index = analysis.fits.layers["conv1"].calinski_harabasz
    index[0, :, 0, 0], index[1, :, 0, 0] = [5, np.inf, np.nan, 7], np.nan
    found = content_of(analysis).index_by_k
    assert found[0, 0] == 7
    assert np.isnan(found[1, 0])


def test_curves_and_masks_stand_on_the_page():
    metrics = pd.DataFrame(
        {"epoch": [1, 2, 3], "train_accuracy": [0.1, 0.2, 0.3], "validation_accuracy": [0.1, 0.2, 0.2]}
    ).assign(train_loss=1.0, validation_loss=1.0, anomalous_filters=[1, np.nan, 2], flagged_per_batch=[1, np.nan, 2])
    masking = pd.DataFrame({"mask": ["none", "anomalous", "random"], "n_filters": [0, 1, 1]}).assign(
        train_accuracy=[0.3, 0.2, 0.1], validation_accuracy=[0.2, 0.1, 0.1], train_loss=1.0, validation_loss=1.0
    )
    page = page_of(analysed([1, 10]), metrics=metrics, masking=masking)
    data = data_of(page)
    assert data["metrics"]["anomalous_filters"] == [1, None, 2]
    assert [lane["name"] for lane in data["masking"]] == ["training", "validation"]
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
    assert anomalous > 0
    assert f"{anomalous} of {len(analysis.filters)} filters" in text_of(page)
    assert data_of(page)["arrays"]["images"]["length"] == 60


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
    assert "Sample 9 stands first by memorisation rank: labelled bag, its clusters say shirt" in text
    cards = data_of(page_of(analysis, class_names=["shirt", "bag"]))["samples"]
    assert {card["sample"]: card["sentence"] for card in cards}[
        9
    ] == "labelled bag, clusters say shirt; surprising in conv1"


def test_without_labels_the_page_says_so():
    text = text_of(page_of(analysed([10, 10], label=pd.NA)))
    assert "The labels of the samples are not known, so none can surprise." in text
    assert "stands first" not in text
