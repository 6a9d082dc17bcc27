"""Screening on hand-made fits whose verdicts can be told by hand."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from handmade_fits import K_MAX, K_MIN, ONE_OF_EACH, N, batches_of, fits_of, layer_of, repeats_of, screened
from scipy.stats import binomtest

from gmmcnn import config
from gmmcnn.experiments import thresholds
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.fitting import fit_maps
from gmmcnn.filters.screening import (
    SATURATED,
    STRICT,
    _over_average,
    counts,
    measure,
    saturation,
    screen,
    usual_status,
    wilson_interval,
)  # fmt: skip


def test_a_filter_is_anomalous_when_all_three_criteria_hold():
    filters = screened(ONE_OF_EACH).filters
    assert filters["unbalanced"].tolist() == [True, False, True, True, False]
    assert filters["separated"].tolist() == [True, True, False, True, False]
    assert filters["active"].tolist() == [True, True, True, False, False]
    assert filters["anomalous"].tolist() == [True, False, False, False, False]
    assert filters["status"].tolist() == ["ok"] * 4 + ["dead"]


def test_the_table_has_the_documented_columns():
    about = {"layer", "filter", "status"}
    measured = {"n_components", "calinski_harabasz", "smallest_cluster", "n_small_clusters", "mean_activation"}
    verdict = {"unbalanced", "separated", "active", "anomalous", "flag_frequency"}
    assert about | measured | verdict <= set(screened(ONE_OF_EACH).filters.columns)


@pytest.mark.parametrize(("small_cluster", "flagged"), [(2, 0), (3, 1), (19, 1)])
def test_lambda_is_the_largest_size_that_counts_as_small(small_cluster, flagged):
    assert screened(ONE_OF_EACH, small_cluster=small_cluster).filters["anomalous"].sum() == flagged


def test_alpha_is_the_number_of_small_clusters_needed():
    layer = layer_of([[36, 2, 2], [38, 2], [20, 20]], ch=[9, 9, 9], activation=[1, 1, 1])
    assert screened(layer, min_small_clusters=2).filters["unbalanced"].tolist() == [True, False, False]


def test_a_near_dead_filter_is_never_anomalous_and_moves_no_average():
    near_dead = layer_of(
        [[37, 3], [37, 3]], ch=[1e10, 10.0], activation=[50.0, 1.0], active_share=np.array([[0.02], [1.0]])
    )
    filters = screened(near_dead, average="mean").filters
    assert filters["status"].tolist() == ["near_dead", "ok"]
    assert filters["anomalous"].tolist() == [False, True]
    assert filters["ch_over_average"][1] == 1.0
    assert filters["activation_over_average"][1] == 1.0


@pytest.mark.parametrize("min_frequency", [0.5, 0.3])
def test_a_filter_that_is_near_dead_in_most_batches_is_not_anomalous_for_the_others(min_frequency):
    flagged = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1])
    silent = replace(flagged, active_share=np.array([[0.02], [1.0]]))
    layer = batches_of(flagged, *[silent] * (1 if min_frequency == 0.5 else 2))
    filters = screened(layer, min_frequency=min_frequency).filters
    assert filters["status"].tolist() == ["near_dead", "ok"]
    assert filters["flag_frequency"][0] >= min_frequency
    assert filters["anomalous"].tolist() == [False, True]
    settings = config.Screen(min_frequency=min_frequency)
    fits = Fits({"conv1": layer}, K_MIN, K_MAX)
    assert thresholds.count_by_thresholds(fits, settings, thresholds.point(settings, by_frequency=True)).item() == 1


def test_the_median_withstands_one_filter_with_a_huge_index_and_the_mean_does_not():
    layer = layer_of([[37, 3]] * 3, ch=[1e9, 10, 10], activation=[1, 1, 1])
    assert screened(layer).filters["separated"].tolist() == [True, True, True]
    assert screened(layer, average="mean").filters["separated"].tolist() == [True, False, False]


@pytest.mark.parametrize("average", ["median", "mean"])
def test_the_average_activation_is_the_mean_whatever_the_average_of_the_index(average):
    layer = layer_of([[37, 3]] * 3, ch=[10, 10, 10], activation=[1, 1, 4])  # mean 2, median 1
    filters = screened(layer, average=average, activation_ratio=0.75).filters
    assert filters["activation_over_average"].tolist() == [0.5, 0.5, 2.0]
    assert filters["active"].tolist() == [False, False, True]


def test_a_filter_flagged_in_exactly_the_frequency_asked_for_is_anomalous():
    flagged = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1])
    unflagged = layer_of([[20, 20]] * 2, ch=[10, 10], activation=[1, 1])
    filters = screened(batches_of(flagged, unflagged), min_frequency=0.5).filters
    assert filters["flag_frequency"].tolist() == [0.5, 0.5]
    assert filters["anomalous"].all()
    assert filters["unbalanced"].all()
    assert not screened(batches_of(flagged, unflagged), min_frequency=0.51).filters["anomalous"].any()


def test_an_index_of_exactly_beta_times_the_average_is_not_separated():
    layer = layer_of([[37, 3]] * 3, ch=[8, 10, 10], activation=[1, 1, 1])
    assert screened(layer, ch_ratio=0.8).filters["separated"].tolist() == [False, True, True]


def test_an_activation_of_exactly_theta_times_the_average_is_not_active():
    layer = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[0.5, 1.5])
    assert screened(layer, activation_ratio=0.5).filters["active"].tolist() == [False, True]


def test_a_filter_active_on_exactly_the_least_share_is_live():
    layer = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1], active_share=np.array([[0.25], [0.2]]))
    assert screened(layer, min_active_share=0.25).filters["status"].tolist() == ["ok", "near_dead"]


def test_a_dead_filter_is_dead_however_rarely_it_is_active():
    layer = layer_of([[37, 3], []], ch=[10, 0], activation=[1, 0], active_share=np.array([[1.0], [0.0]]))
    assert screened(layer).filters["status"].tolist() == ["ok", "dead"]


def test_averages_are_those_of_the_same_clustering_of_a_batch():
    one = layer_of([[37, 3]] * 2, ch=[10, 30], activation=[1, 1])
    other = layer_of([[37, 3]] * 2, ch=[100, 100], activation=[1, 1])
    over_average = screened(repeats_of(one, other)).batches["ch_over_average"]
    assert over_average.tolist() == [0.5, 1.0, 1.5, 1.0]


def test_scope_network_compares_across_layers():
    quiet = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[0.1, 0.1])
    loud = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1])
    assert screened(quiet, loud).filters["active"].all()
    assert screened(quiet, loud, scope="network").filters["active"].tolist() == [False, False, True, True]


SPATIAL, EXCITE = Tapped("after relu", "Conv2d", "8x8"), Tapped("after sigmoid", "Conv2d", "1x1")


def test_one_pixel_maps_have_an_average_of_their_own_in_scope_network():
    quiet = layer_of([[37, 3]] * 2, ch=[10, 30], activation=[0.1, 0.3])
    excite = layer_of([[37, 3]] * 2, ch=[100, 300], activation=[10, 30])
    loud = layer_of([[37, 3]] * 2, ch=[20, 20], activation=[0.2, 0.2])
    fits = replace(fits_of(quiet, excite, loud), tapped={"conv1": SPATIAL, "conv2": EXCITE, "conv3": SPATIAL})
    found = screen(fits, config.Screen(scope="network")).filters
    assert found["ch_over_average"].tolist() == pytest.approx([0.5, 1.5, 0.5, 1.5, 1, 1])
    assert found["activation_over_average"].tolist() == pytest.approx([0.5, 1.5, 0.5, 1.5, 1, 1])
    spatial = screened(quiet, loud, scope="network").filters
    of_spatial = found[found["layer"] != "conv2"].reset_index(drop=True)
    assert of_spatial["ch_over_average"].tolist() == spatial["ch_over_average"].tolist()
    assert of_spatial["reason"].tolist() == spatial["reason"].tolist()


@pytest.mark.parametrize("tapped", [{"conv1": EXCITE, "conv2": EXCITE}, {"conv1": SPATIAL}, {"conv1": Tapped("a")}])
def test_one_pixel_maps_change_nothing_where_there_are_no_others_or_by_layer(tapped):
    layers = ONE_OF_EACH, layer_of([[37, 3]] * 2, ch=[10, 30], activation=[0.1, 0.3])
    for scope in ("network", "layer"):
        of_it = measure(replace(fits_of(*layers), tapped=tapped), config.Screen(scope=scope))
        for name, values in measure(fits_of(*layers), config.Screen(scope=scope)).items():
            np.testing.assert_array_equal(of_it[name], values)
    mixed = replace(fits_of(*layers), tapped={"conv1": SPATIAL, "conv2": EXCITE})
    for name, values in measure(fits_of(*layers), config.Screen()).items():
        np.testing.assert_array_equal(measure(mixed, config.Screen())[name], values)


def test_the_last_columns_say_what_was_tapped():
    fits = replace(fits_of(ONE_OF_EACH, ONE_OF_EACH, ONE_OF_EACH), tapped={"conv1": SPATIAL, "conv3": Tapped("a")})
    filters = screen(fits, config.Screen()).filters
    bare = screened(ONE_OF_EACH, ONE_OF_EACH, ONE_OF_EACH).filters
    assert list(filters.columns[-3:]) == ["tap", "kind", "map_shape"]
    assert filters["tap"].fillna("").tolist() == ["after relu"] * 5 + [""] * 5 + ["a"] * 5
    assert filters["kind"].fillna("").tolist() == ["Conv2d"] * 5 + [""] * 10
    assert filters["map_shape"].fillna("").tolist() == ["8x8"] * 5 + [""] * 10
    pd.testing.assert_frame_equal(filters.iloc[:, :-3], bare.iloc[:, :-3])
    assert bare.iloc[:, -3:].isna().all(axis=None)


def test_flag_frequency_is_the_share_of_batches_that_flag_a_filter():
    flagged = layer_of([[37, 3], [20, 20]], ch=[10, 10], activation=[1, 1])
    unflagged = layer_of([[20, 20], [20, 20]], ch=[10, 10], activation=[1, 1])
    screening = screened(batches_of(flagged, unflagged, unflagged))
    assert screening.filters["flag_frequency"].tolist() == pytest.approx([1 / 3, 0])
    assert not screening.filters["anomalous"].any()
    assert screening.flagged_per_batch == pytest.approx(1 / 3)
    again = screened(batches_of(flagged, unflagged, unflagged), min_frequency=0.3)
    assert again.anomalous == {"conv1": [0]}


def test_batches_are_compared_with_their_own_averages():
    weak = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1])
    strong = layer_of([[37, 3]] * 2, ch=[1000, 1000], activation=[1, 1])
    assert screened(batches_of(weak, strong)).batches["ch_over_average"].tolist() == [1.0] * 4


def test_repeats_are_screened_each_and_counted_together():
    flagged = layer_of([[37, 3], [20, 20]], ch=[10, 10], activation=[1, 1])
    unflagged = layer_of([[20, 20], [14, 13, 13]], ch=[10, 10], activation=[1, 1])
    first, second = repeats_of(flagged, flagged, unflagged), repeats_of(unflagged, unflagged, unflagged)
    screening = screened(batches_of(first, second))
    assert screening.batches["batch"].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert screening.batches["repeat"].tolist() == [0, 1, 2] * 4
    assert screening.batches["flagged"].tolist() == [True, True] + [False] * 10
    assert screening.flagged_per_batch == pytest.approx(1 / 3)
    assert screening.filters["flag_frequency"].tolist() == pytest.approx([1 / 3, 0])
    assert screening.filters["n_components"].tolist() == [2, 3]
    assert screening.filters["n_components_share"].tolist() == pytest.approx([1, 2 / 3])


def test_repeated_fits_are_independent_and_the_first_is_that_of_one_repeat():
    maps = np.random.default_rng(0).gamma(0.3, size=(2, 3 * N, 5)).astype(np.float32)
    one, three = (
        fit_maps(maps, "conv1", range(2), range(3), config.Settings(gmm=config.Gmm(n_init=1, repeats=repeats)))
        for repeats in (1, 3)
    )
    assert (one.labels.shape[:3], three.labels.shape[:3]) == ((2, 3, 1), (2, 3, 3))
    np.testing.assert_array_equal(three.scores, one.scores)
    np.testing.assert_array_equal(three.labels[:, :, :1], one.labels)
    np.testing.assert_array_equal(three.calinski_harabasz[:, :, :1], one.calinski_harabasz)
    index = three.calinski_harabasz
    assert (index[:, :, 0] != index[:, :, 1]).any(axis=-1).all()
    assert (index[:, :, 1] != index[:, :, 2]).any(axis=-1).all()


@pytest.mark.parametrize("n_batches", [1, 4, 10])
def test_the_interval_is_wilsons(n_batches):
    flagged = np.arange(n_batches + 1)
    low, high = wilson_interval(pd.Series(flagged / n_batches), n_batches)
    expected = [binomtest(int(k), n_batches).proportion_ci(method="wilson") for k in flagged]
    np.testing.assert_allclose(low, [ends.low for ends in expected], atol=1e-4)
    np.testing.assert_allclose(high, [ends.high for ends in expected], atol=1e-4)


def test_every_verdict_comes_with_its_reason():
    reasons = screened(ONE_OF_EACH).filters["reason"]
    assert reasons[0].startswith("smallest cluster 3, CH 1.0 × layer median, activation ")
    assert reasons[4] == "constant on every sample"


@pytest.mark.parametrize(("n_samples", "verdict"), [(100, "saturated"), (200, "informative"), (1000, "strict")])
def test_the_saturation_ratio_is_commented_on(n_samples, verdict):
    ratio, comment = saturation(n_samples, k_max=10, small_cluster=5)
    assert ratio == 50 / n_samples
    assert verdict in comment
    assert f"{ratio:.2f}" in comment


def test_thousands_of_filters_are_screened_at_once():
    rng, n_filters = np.random.default_rng(0), 4000
    sizes = [[N - k, k] for k in rng.integers(1, 20, n_filters)]
    layer = layer_of(sizes, ch=rng.uniform(1, 9, n_filters), activation=rng.uniform(0, 1, n_filters))
    filters = screened(layer).filters
    assert len(filters) == n_filters
    pd.testing.assert_series_equal(
        filters["anomalous"], filters[["unbalanced", "separated", "active"]].all(axis=1), check_names=False
    )


THREE_BATCHES = batches_of(
    layer_of([[37, 3], [20, 20]], ch=[10, 30], activation=[1, 1], active_share=np.array([[1.0], [1.0]])),
    layer_of([[38, 2], [14, 13, 13]], ch=[20, 20], activation=[2, 6], active_share=np.array([[0.5], [1.0]])),
    layer_of([[16, 4, 20], [14, 13, 13]], ch=[60, 20], activation=[6, 2], active_share=np.array([[0.3], [0.7]])),
)


def test_a_filter_is_summed_up_over_its_batches():
    filters = screened(THREE_BATCHES, small_cluster=5).filters
    assert filters["calinski_harabasz"].tolist() == [20, 20]  # median of 10, 20, 60
    assert filters["smallest_cluster"].tolist() == [3, 13]  # median of 3, 2, 4
    assert filters["ch_over_average"].tolist() == [1.0, 1.0]  # median of 1/2, 1, 3/2
    assert filters["activation_over_average"].tolist() == [1.0, 1.0]  # median of 1, 1/2, 3/2
    assert filters["mean_activation"].tolist() == [3, 3]  # mean of 1, 2, 6
    assert filters["active_share"].tolist() == pytest.approx([0.6, 0.9])
    assert filters["n_components"].tolist() == [2, 3]
    assert filters["n_components_share"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert filters["n_small_clusters"].tolist() == [1, 0]
    mixed = batches_of(*[layer_of([sizes], ch=[10], activation=[1]) for sizes in ([37, 3], [20, 20], [36, 2, 2])])
    assert screened(mixed).filters["n_small_clusters"].tolist() == [1]  # mean of 1, 0, 2
    uneven = batches_of(*[layer_of([sizes], ch=[10], activation=[1]) for sizes in ([20, 20], [20, 20], [36, 2, 2])])
    assert screened(uneven).filters["n_small_clusters"].tolist() == pytest.approx([2 / 3])


def test_of_equally_frequent_values_the_smallest_counts():
    two = layer_of([[37, 3]], ch=[10], activation=[1])
    three = layer_of([[14, 13, 13]], ch=[10], activation=[1])
    dead = layer_of([[]], ch=[0], activation=[0])
    assert screened(batches_of(three, two)).filters["n_components"].tolist() == [2]
    assert screened(batches_of(two, dead)).filters["status"].tolist() == ["dead"]
    status = np.array([[["ok", "dead"], ["ok", "dead"]], [["ok", "ok"], ["near_dead", "dead"]]])
    assert usual_status(status).tolist() == ["dead", "ok"]


def test_filters_are_counted_in_a_batch_on_average():
    dead = layer_of([[37, 3], []], ch=[10, 0], activation=[1, 0])
    near_dead = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1], active_share=np.array([[1.0], [0.01]]))
    both = layer_of([[37, 3], [20, 20]], ch=[10, 1], activation=[1, 1])
    fits = Fits({"a": batches_of(dead, near_dead, both, both), "b": batches_of(*[both] * 4)}, K_MIN, K_MAX)
    found = counts(fits, config.Screen())
    assert found == {
        "flagged": 2.0, "unbalanced": 2.0, "separated": 2.0, "active": 3.5, "live": 3.5, "near_dead": 0.25,
        "dead": 0.25,
    }  # fmt: skip
    repeated = Fits({"a": repeats_of(dead, both)}, K_MIN, K_MAX)
    assert counts(repeated, config.Screen())["live"] == 1.5


def test_measures_of_a_filter_that_was_not_clustered_are_undefined_and_of_others_their_own():
    measured = measure(Fits({"a": ONE_OF_EACH}, K_MIN, K_MAX), config.Screen())
    assert measured["calinski_harabasz"].ravel()[:4].tolist() == [100, 100, 10, 100]
    assert measured["smallest_cluster"].ravel()[:4].tolist() == [3, 20, 3, 3]
    for name in ("calinski_harabasz", "smallest_cluster", "ch_over_average"):
        assert np.isnan(measured[name].ravel()[4])
    assert measured["n_small_clusters"].ravel().tolist() == [1, 0, 1, 1, 0]
    assert measured["calinski_harabasz"].shape == (5, 1, 1)


def test_a_layer_without_a_live_filter_has_no_average():
    silent = layer_of([[37, 3]], ch=[10], activation=[1], active_share=np.array([[0.0]]))
    measured = measure(Fits({"a": silent}, K_MIN, K_MAX), config.Screen())
    assert np.isnan(measured["ch_over_average"]).all()
    assert np.isnan(measured["activation_over_average"]).all()


def test_rows_are_named_by_layer_filter_batch_and_repeat():
    small = layer_of([[37, 3]], ch=[10], activation=[1])
    large = layer_of([[37, 3]] * 2, ch=[10, 10], activation=[1, 1])
    pair = [batches_of(repeats_of(one, one), repeats_of(one, one)) for one in (small, large)]
    table = screened(*pair).batches
    named = table[["layer", "filter", "batch", "repeat"]].itertuples(index=False, name=None)
    assert list(named) == [
        (layer, number, batch, repeat)
        for layer, n_filters in (("conv1", 1), ("conv2", 2))
        for number in range(n_filters) for batch in range(2) for repeat in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("small_cluster", "ratio", "saturated", "word"),
    [(2, 0.08, False, "strict"), (5, 0.2, False, "informative"), (10, 0.4, True, "saturated")],
)
def test_a_saturated_criterion_comes_with_what_would_mend_it(small_cluster, ratio, saturated, word):
    found = saturation(250, k_max=10, small_cluster=small_cluster)
    assert found.ratio == pytest.approx(ratio)
    assert found.is_saturated == saturated
    assert word in found.comment
    if saturated:
        n_samples, largest = (
            int(text) for text in re.findall(r"samples to (\d+).*small_cluster=(\d+)", found.comment)[0]
        )
        assert not saturation(n_samples, 10, small_cluster).is_saturated
        assert saturation(n_samples - 1, 10, small_cluster).is_saturated
        assert not saturation(250, 10, largest).is_saturated
        assert saturation(250, 10, largest + 1).is_saturated


@pytest.mark.parametrize(("ratio", "word"), [(SATURATED, "informative"), (STRICT, "informative")])
def test_the_ends_of_the_informative_range_belong_to_it(ratio, word):
    assert word in saturation(1000, k_max=10, small_cluster=round(ratio * 100)).comment


def test_where_no_small_cluster_would_do_only_more_samples_are_proposed():
    comment = saturation(30, k_max=10, small_cluster=1).comment
    assert "raise probe.samples" in comment
    assert "small_cluster=" not in comment


@pytest.mark.parametrize("average", [np.mean, np.median])
def test_perfectly_separated_filters_are_above_every_average_and_take_none_away(average):
    values = np.array([1.0, 2.0, 3.0, np.inf]).reshape(4, 1, 1)
    live = np.ones(values.shape, bool)
    ratio = _over_average(values, live, [slice(None)], average).ravel()
    assert np.isposinf(ratio[3])
    assert np.isfinite(ratio[:3]).all()
    assert (ratio[:3] > 0).all()
    alone = _over_average(values[3:], live[3:], [slice(None)], average)
    assert np.isposinf(alone).all()
    dead = _over_average(values, live & (values < np.inf), [slice(None)], average).ravel()
    np.testing.assert_allclose(dead[:3], [0.5, 1.0, 1.5])
