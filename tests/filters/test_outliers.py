"""Outlier samples of fits made by hand."""

import numpy as np
import pytest
from handmade_fits import ONE_OF_EACH, batches_of, fits_of, layer_of, repeats_of
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn import config
from gmmcnn.filters.outliers import find_outliers, small_members, times_singled_out
from gmmcnn.filters.screening import screen


def outliers_of(*layers, small_cluster=5, **thresholds):
    fits = fits_of(*layers)
    return find_outliers(fits, screen(fits, config.Screen(**thresholds)), small_cluster)


def test_outliers_are_the_members_of_small_clusters_of_flagged_filters():
    twice = layer_of([[37, 3], [38, 2]], ch=[10, 10], activation=[1, 1])
    outliers = outliers_of(batches_of(twice, twice))
    assert outliers["sample"].tolist() == [38, 39, 78, 79, 37, 77]
    assert outliers["batch"].tolist() == [0, 0, 1, 1, 0, 1]
    assert outliers["n_filters"].tolist() == [2, 2, 2, 2, 1, 1]
    assert outliers["filters"][0] == "conv1:0, conv1:1"


def test_filters_of_all_layers_count():
    outliers = outliers_of(*[layer_of([[38, 2], [37, 3]], ch=[10, 10], activation=[1, 1])] * 2)
    assert outliers["sample"].tolist() == [38, 39, 37]
    assert outliers["n_filters"].tolist() == [4, 4, 2]
    assert outliers["filters"][2] == "conv1:1, conv2:1"


def test_filters_are_named_in_the_order_of_the_network():
    outliers = outliers_of(layer_of([[38, 2]] * 11, ch=[10] * 11, activation=[1] * 11))
    assert outliers["filters"][0] == ", ".join(f"conv1:{number}" for number in range(11))


def test_an_unflagged_filter_singles_nobody_out():
    assert outliers_of(ONE_OF_EACH)["filters"].unique().tolist() == ["conv1:0"]  # of four with a cluster of three


def test_a_filter_counts_in_the_batches_that_flag_it_and_in_no_other():
    flagged = layer_of([[37, 3]], ch=[10], activation=[1])
    outliers = outliers_of(batches_of(flagged, layer_of([[20, 20]], ch=[10], activation=[1])), min_frequency=1.0)
    assert outliers["sample"].tolist() == [37, 38, 39]  # though the filter is not anomalous


@pytest.mark.parametrize(("small_cluster", "samples"), [(1, [39]), (2, [37, 38, 39]), (3, [37, 38, 39])])
def test_lambda_is_the_largest_small_cluster(small_cluster, samples):
    layer = layer_of([[37, 2, 1]], ch=[10], activation=[1])
    assert outliers_of(layer, small_cluster=small_cluster)["sample"].tolist() == samples


def test_an_outlier_is_one_in_half_of_the_repeats():
    ends = [layer_of([sizes], ch=[10], activation=[1]) for sizes in ([37, 3], [38, 2], [20, 20], [20, 20])]
    outliers = outliers_of(repeats_of(*ends))
    assert outliers["sample"].tolist() == [38, 39]  # 37 in one repeat of four
    assert outliers["n_filters"].tolist() == [1, 1]


def test_half_of_an_odd_number_of_repeats_is_the_larger_half():
    ends = [layer_of([sizes], ch=[10], activation=[1]) for sizes in ([37, 3], [38, 2], [39, 1])]
    assert outliers_of(repeats_of(*ends))["sample"].tolist() == [38, 39]


def test_repeats_of_a_filter_count_once():
    ends = [layer_of([[38, 2]], ch=[10], activation=[1])] * 3
    outliers = outliers_of(repeats_of(*ends))
    assert outliers["n_filters"].tolist() == [1, 1]
    assert outliers["filters"].tolist() == ["conv1:0"] * 2


def test_every_repeat_of_every_flagged_filter_counts_towards_how_often_a_sample_is_singled_out():
    ends = [layer_of([sizes, [38, 2]], ch=[10, 10], activation=[1, 1]) for sizes in ([37, 3], [38, 2], [20, 20])]
    fits = fits_of(repeats_of(*ends))
    times = times_singled_out(fits, screen(fits, config.Screen()), 5)
    assert times.tolist() == [0] * 37 + [1, 5, 5]
    assert times_singled_out(fits, screen(fits, config.Screen(ch_ratio=1e9)), 5).tolist() == [0] * 40


def test_no_flag_no_outliers():
    outliers = outliers_of(layer_of([[20, 20]], ch=[10], activation=[1]))
    assert outliers.empty
    assert list(outliers.columns) == ["sample", "batch", "n_filters", "filters"]


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=3), small_cluster=st.integers(1, 12),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_small_members_are_those_whose_label_is_rare(sizes, small_cluster, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    layer = layer_of([[40]], ch=[1], activation=[1], labels=labels.astype(np.int16)[None, None, None])
    by_hand = [n for n, label in enumerate(labels) if (labels == label).sum() <= small_cluster]
    assert small_members(fits_of(layer), "conv1", 0, 0, small_cluster).tolist() == by_hand


def test_small_members_are_of_the_filter_batch_and_repeat_asked_for():
    def of(*sizes):
        return layer_of([list(size) for size in sizes], ch=[1, 1], activation=[1, 1])

    layer = batches_of(
        repeats_of(of((39, 1), (38, 2)), of((37, 3), (36, 4))), repeats_of(of((35, 5), (34, 6)), of((33, 7), (32, 8)))
    )
    found = [
        len(small_members(fits_of(layer), "conv1", f, batch, 8, repeat))
        for batch in range(2) for repeat in range(2) for f in range(2)
    ]  # fmt: skip
    assert found == [1, 2, 3, 4, 5, 6, 7, 8]
