"""``benchmarks.stability`` on starts made by hand, and on a few of a real fit."""

import numpy as np
import pytest

from benchmarks import stability
from benchmarks.stability import Maps, Starts, Way, agreement, best_of, jaccard, outcome, single_starts, ways


@pytest.fixture
def maps() -> Maps:
    """Two filters in one batch; the second is quiet."""
    return Maps(
        layer=np.zeros(2, int),
        scores=np.random.default_rng(0).normal(size=(2, 1, 200, 2)).astype(np.float32),
        mean_activation=np.array([[1.0], [0.1]]),
        live=np.ones((2, 1), bool),
    )


@pytest.fixture
def starts() -> Starts:
    """Two starts, two values of K; the first start is the likelier one, the second has the larger indices."""
    index = np.array([[10.0, 9.5], [11.0, 20.0]])[:, :, None, None] * np.ones((2, 1))
    small = np.array([[False, True], [False, True]])[:, :, None, None] & np.ones((2, 1), bool)
    return Starts(np.array([[2.0, 2.0], [1.0, 1.0]])[:, :, None, None] * np.ones((2, 1)), index, small)


def test_the_start_that_is_kept(starts):
    np.testing.assert_array_equal(best_of(starts, by_index=False)[0][:, 0, 0], [10, 9.5])
    np.testing.assert_array_equal(best_of(starts, by_index=True)[0][:, 0, 0], [11, 20])


@pytest.mark.parametrize(
    ("way", "chosen", "near", "flagged"),
    [
        (Way("", 2), 0, 0, 0.0),  # the likelier start prefers two large clusters
        (Way("", 2, by_index=True), 1, 1, 1.0),
        (Way("", 2, all_near=True), 0, 0, 0.5),  # its second K is as good, and has a small cluster
        (Way("", 2, by_index=True, smallest_near=True), 1, 1, 1.0),
        (Way("", 1, repeats=2), 0, 0, 0.5),  # each start flags for itself
    ],
)
def test_ways_of_using_starts(maps, starts, way, chosen, near, flagged):
    result = outcome(maps, starts, way)
    assert result.n_components[0, 0] == chosen
    assert result.smallest_near[0, 0] == near
    assert result.flagged[:, 0].tolist() == [flagged, 0.0]


def test_an_outcome_agrees_with_itself(maps, starts):
    result = outcome(maps, starts, Way("", 2, by_index=True))
    figures = agreement(result, result, maps.live)
    assert figures["K"] == figures["flagged"] == figures["verdict 50%"] == figures["Jaccard 10%"] == 1
    assert figures["standard error"] == figures["largest"] == figures["count"] == 0


def test_jaccard_of_empty_sets_is_undefined():
    none, one, both = np.array([[False, False], [True, False], [True, True]])
    assert np.isnan(jaccard(none, none))
    assert (jaccard(one, none), jaccard(one, both)) == (0, 0.5)


def test_single_starts_fit_every_k_from_starts_that_differ(maps, monkeypatch):
    monkeypatch.setattr(stability, "COUNTS", range(2, 5))
    starts = single_starts(maps.scores, 10)
    assert starts.index.shape == (10, 3, 2, 1)
    assert np.isfinite(starts.lower_bounds).all()
    assert (starts.lower_bounds[0] != starts.lower_bounds[1]).any()
    assert len(ways(100)) == len({way.name for way in ways(100)})
