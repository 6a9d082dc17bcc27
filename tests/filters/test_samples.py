"""Scores of samples whose labels agree with their maps, but for a few, from small real fits."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn import config
from gmmcnn.constants import Status
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.fitting import fit_maps
from gmmcnn.filters.outcome import Outcome
from gmmcnn.filters.samples import PROFILE, score_samples
from gmmcnn.filters.surprise import (
    cluster_evidence,
    label_surprise,
    map_evidence,
    memorisation_rank,
    of_unit_size,
    times_together,
    total_distances,
)

B, N, R = 2, 60, 3
CLASSES = np.array([3, 7, 8])
WRONG = np.array([5, 31, 77])
SETTINGS = config.Settings(gmm=config.Gmm(k_max=4, n_init=1, repeats=R))


@pytest.fixture(scope="module")
def labels() -> pd.Series:
    """Class of each sample as it was given; of WRONG it is another than that of their maps."""
    own = np.tile(CLASSES, B * N // 3)
    own[WRONG] = np.roll(CLASSES, 1)[np.searchsorted(CLASSES, own[WRONG])]
    return pd.Series(own)


@pytest.fixture(scope="module")
def fits() -> Fits:
    """``early`` filters see the class, ``late`` ones nothing but noise."""
    rng = np.random.default_rng(0)
    seen = np.tile(np.arange(3), B * N // 3)[:, None] * np.ones(6)
    maps = {
        "early": seen + 0.1 * rng.normal(size=(4, B * N, 6)) + 1,
        "late": rng.normal(size=(3, B * N, 6)),
    }
    layers = {
        layer: fit_maps(some.astype(np.float32), layer, range(len(some)), range(B), SETTINGS)
        for layer, some in maps.items()
    }
    return Fits(layers, SETTINGS.gmm.k_min, SETTINGS.gmm.k_max)


@pytest.fixture(scope="module")
def scores(fits, labels) -> pd.DataFrame:
    return score_samples(fits, labels, 0.05)


def test_wrong_labels_surprise_where_filters_see_the_class_and_nowhere_else(scores):
    others = scores.index.difference(WRONG)
    assert scores.loc[WRONG, PROFILE + "early"].min() > 1
    assert scores.loc[others, PROFILE + "early"].max() < 0
    assert scores[PROFILE + "late"].abs().max() < 1
    assert set(scores.groupby(np.arange(B * N) // N)["memorisation_rank"].idxmax()) <= set(WRONG)


def test_clusters_speak_for_the_class_of_the_maps(scores):
    assert scores["cluster_label"].tolist() == np.tile(CLASSES, B * N // 3).tolist()


def test_scores_of_a_batch_are_those_of_its_clusterings(fits, labels, scores):
    clusters = {layer: fit.labels[:, 1].reshape(-1, N) for layer, fit in fits.layers.items()}
    own = np.searchsorted(CLASSES, labels[N:])
    surprise = label_surprise(np.concatenate(list(clusters.values())), own).mean(axis=0)
    evidence = cluster_evidence(sum(map(times_together, clusters.values())), own)[np.arange(N), own]
    np.testing.assert_allclose(scores["label_surprise"][N:], surprise)
    np.testing.assert_allclose(scores["cluster_evidence"][N:], evidence)
    points = np.concatenate([of_unit_size(fit.scores[:, 1]) for fit in fits.layers.values()])
    by_maps = map_evidence(total_distances(points) / len(points), own)[np.arange(N), own]
    np.testing.assert_allclose(scores["map_evidence"][N:], by_maps, atol=1e-6)  # of distances in single precision
    np.testing.assert_allclose(scores["memorisation_rank"][N:], memorisation_rank(surprise, by_maps))
    np.testing.assert_allclose(scores[PROFILE + "late"][N:], label_surprise(clusters["late"], own).mean(axis=0))


def test_dead_and_near_dead_filters_are_asked_nothing(fits, labels):
    def without(**changes) -> pd.DataFrame:
        return score_samples(replace(fits, layers=fits.layers | {"late": replace(late, **changes)}), labels, 0.05)

    early, late = fits.layers["early"], fits.layers["late"]
    alone = score_samples(replace(fits, layers={"early": early}), labels, 0.05)
    dead = without(status=np.full(late.status.shape, str(Status.DEAD)))
    near_dead = without(active_share=np.full(late.active_share.shape, 0.04))
    assert dead[PROFILE + "late"].isna().all()
    pd.testing.assert_frame_equal(dead.drop(columns="carried_by"), near_dead.drop(columns="carried_by"))
    pd.testing.assert_frame_equal(dead.drop(columns=PROFILE + "late"), alone)


def test_without_a_live_filter_nothing_is_scored(fits, labels):
    layers = {layer: replace(fit, status=np.full(fit.status.shape, "dead")) for layer, fit in fits.layers.items()}
    assert score_samples(replace(fits, layers=layers), labels, 0.05).isna().all(axis=None)


def test_samples_without_a_label_have_a_density_alone_and_count_in_no_cluster(fits, labels, scores):
    some = labels.astype(object).where(np.arange(len(labels)) % 4 > 0, None)
    partly = score_samples(fits, some, 0.05)
    unknown = some.isna()
    assert partly.loc[unknown].drop(columns=["density", "carried_by"]).isna().all(axis=None)
    assert partly.loc[~unknown].notna().all(axis=None)
    pd.testing.assert_series_equal(partly["density"], scores["density"])

    def of_the_known(fit: LayerFits) -> LayerFits:
        known = ~unknown.to_numpy().reshape(B, N)
        by_batch = [fit.labels[:, batch][..., known[batch]] for batch in range(B)]
        maps = [fit.scores[:, batch][:, known[batch]] for batch in range(B)]
        return replace(fit, labels=np.stack(by_batch, axis=1), scores=np.stack(maps, axis=1))

    fewer = replace(fits, layers={layer: of_the_known(fit) for layer, fit in fits.layers.items()})
    alone = score_samples(fewer, labels[~unknown].reset_index(drop=True), 0.05)
    compared = ["label_surprise", "cluster_evidence", "map_evidence", "memorisation_rank", "cluster_label"]
    np.testing.assert_allclose(
        partly.loc[~unknown, compared].to_numpy(float), alone[compared].to_numpy(float), rtol=1e-12
    )


@pytest.mark.parametrize("unlabelled", [pd.NA, None, np.nan])
def test_without_labels_there_is_a_density_and_no_error(fits, scores, unlabelled):
    found = score_samples(fits, pd.Series([unlabelled] * (B * N)), 0.05)
    pd.testing.assert_series_equal(found["density"], scores["density"])
    assert found.drop(columns=["density", "carried_by"]).isna().all(axis=None)


def test_one_class_is_no_surprise(fits):
    found = score_samples(fits, pd.Series(np.full(B * N, 4)), 0.05)
    np.testing.assert_allclose(found["label_surprise"], 0, atol=1e-12)
    assert set(found["cluster_label"]) == {4}


def test_names_of_classes_do_not_matter(fits, labels, scores):
    renamed = score_samples(fits, labels.map({3: 0, 7: 1, 8: 2}), 0.05)
    pd.testing.assert_frame_equal(renamed.drop(columns="cluster_label"), scores.drop(columns="cluster_label"))
    assert renamed["cluster_label"].map(dict(enumerate(CLASSES))).tolist() == scores["cluster_label"].tolist()


def test_a_sample_is_carried_by_the_filters_that_set_it_apart(fits, labels):
    """Filter 2 of ``late`` is made to put sample 7 of the second batch into a cluster of its own."""
    late = fits.layers["late"]
    changed = late.labels.copy()
    changed[2, 1, :, :] = 0
    changed[2, 1, :, 7] = 1
    layers = fits.layers | {"late": replace(late, labels=changed)}
    found = score_samples(replace(fits, layers=layers), labels, 0.05)["carried_by"]
    assert found[N + 7].startswith("late:2, ")
    assert not found[N:].drop(N + 7).str.contains("late:2").any()  # they are together with all the others
    assert (found.str.count(",") == 2).all()
    unlabelled = score_samples(replace(fits, layers=layers), pd.Series([pd.NA] * (B * N)), 0.05)
    pd.testing.assert_series_equal(unlabelled["carried_by"], found)


def test_near_dead_filters_carry_and_dead_ones_do_not(fits, labels):
    layers = {name: replace(fit, active_share=np.full((len(fit), B), 0.01)) for name, fit in fits.layers.items()}
    assert score_samples(replace(fits, layers=layers), labels, 0.05)["carried_by"].notna().all()
    status = fits.layers["early"].status.copy()
    status[1:] = str(Status.DEAD)
    one_left = {"early": replace(fits.layers["early"], status=status)}
    assert set(score_samples(replace(fits, layers=one_left), labels, 0.05)["carried_by"]) == {"early:0"}


def test_an_analysis_has_a_row_for_every_sample(fits, labels, scores):
    known = pd.DataFrame({"batch": np.arange(B * N) // N, "label": labels, "dataset_index": 5})
    found = Outcome(fits, known, np.zeros((B * N, 1, 1), np.uint8), config.Screen()).samples
    assert list(found.columns) == [
        "sample", "batch", "label", "cluster_label", "label_surprise", "cluster_evidence", "map_evidence",
        "memorisation_rank", "density", "n_filters", "carried_by", "label_surprise:early", "label_surprise:late",
        "dataset_index",
    ]  # fmt: skip
    assert found["sample"].tolist() == list(range(B * N))
    pd.testing.assert_frame_equal(found[scores.columns], scores)


def test_filters_that_single_a_sample_out_are_counted(fits, labels):
    known = pd.DataFrame({"batch": np.arange(B * N) // N, "label": labels})
    lenient = config.Screen(small_cluster=30, ch_ratio=0, activation_ratio=0)
    outcome = Outcome(fits, known, np.zeros((B * N, 1, 1), np.uint8), lenient)
    assert len(outcome.outliers)
    counted = outcome.samples.set_index("sample")["n_filters"]
    assert counted[counted > 0].to_dict() == outcome.outliers.set_index("sample")["n_filters"].to_dict()
