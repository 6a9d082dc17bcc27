"""Ranks say of every value of every slider what the rules say."""

import numpy as np
import pytest
from handmade_fits import ONE_OF_EACH, fits_of
from report_outcomes import random_outcome

from gmmcnn import config
from gmmcnn.filters.fits import is_live
from gmmcnn.filters.screening import judge
from gmmcnn.report.thresholds import places, ranks, sliders_around

OUTCOME = random_outcome({"conv1": 6, "conv2": 16}, n_batches=3, n_repeats=2, n_samples=60, images=False)


def test_sliders_ascend_can_be_bytes_and_hold_the_thresholds_in_force():
    for small, screen in [
        (5, config.Screen()),
        (900, config.Screen(small_cluster=900, ch_ratio=1.2345, activation_ratio=0.0, min_frequency=0.33)),
        (1, config.Screen(small_cluster=1, min_small_clusters=9, ch_ratio=5000.0)),
    ]:
        sliders = sliders_around(screen, small)
        for values in sliders:
            assert values == sorted(set(values))
            assert len(values) < 256
        stands = places(sliders, screen, small)
        assert sliders.small_cluster[stands["small_cluster"]] == small
        for name in ("min_small_clusters", "ch_ratio", "activation_ratio", "min_frequency"):
            assert getattr(sliders, name)[stands[name]] == getattr(screen, name)


def held(planes: np.ndarray, n_alphas: int, place: dict[str, int]) -> dict[str, np.ndarray]:
    """What the page does with ranks."""
    return {
        "unbalanced": planes[place["min_small_clusters"]] <= place["small_cluster"],
        "separated": planes[n_alphas] > place["ch_ratio"],
        "active": planes[n_alphas + 1] > place["activation_ratio"],
    }


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("fits", [OUTCOME.fits, fits_of(ONE_OF_EACH)], ids=["random", "handmade"])
def test_ranks_agree_with_the_rules_at_drawn_thresholds(fits, scope):
    rng = np.random.default_rng(1)
    screen = config.Screen(scope=scope)
    sliders = sliders_around(screen, screen.small_cluster_for(fits.n_samples, fits.k_max))
    planes, live = ranks(fits, screen, sliders)
    found = set()
    for _ in range(60):
        place = {name: int(rng.integers(len(values))) for name, values in sliders._asdict().items()}
        place["ch_ratio"] = int(rng.integers(60))  # where most ratios lie
        place["activation_ratio"] = int(rng.integers(60))
        chosen = {name: getattr(sliders, name)[at] for name, at in place.items()}
        judged = judge(fits, config.Screen(scope=scope, **chosen))
        for name, holds in held(planes, len(sliders.min_small_clusters), place).items():
            assert np.array_equal(holds, judged[name].reshape(fits.n_filters, -1)), (name, chosen)
            found.add((name, bool(holds.any())))
    assert {(name, True) for name in ("unbalanced", "separated", "active")} <= found
    assert live.dtype == np.uint8


def test_ratios_that_equal_a_threshold_do_not_exceed_it():
    fits = fits_of(ONE_OF_EACH)  # CH is 100, 100, 10, 100 of a median of 100
    screen = config.Screen(ch_ratio=1.0)
    sliders = sliders_around(screen, 3)
    planes, _ = ranks(fits, screen, sliders)
    at = sliders.ch_ratio.index(1.0)
    above = planes[len(sliders.min_small_clusters), :, 0]
    assert not (above > at).any()
    assert (above > at - 1).tolist() == [True, True, False, True, False]


def test_live_filters_are_those_of_the_table():
    _, live = ranks(OUTCOME.fits, OUTCOME.settings, sliders_around(OUTCOME.settings, OUTCOME.small_cluster))
    assert live.astype(bool).tolist() == is_live(OUTCOME.filters["status"]).tolist()
    assert 0 < live.sum() < len(live)
