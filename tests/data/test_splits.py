import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.data.splits import BytePool, hold_out, replace_labels, subset
from gmmcnn.errors import ConfigurationError

seeds = st.integers(0, 2**32)


@given(n_samples=st.integers(1, 300), share=st.floats(0, 1), n_classes=st.integers(2, 12), seed=seeds)
def test_exactly_the_rounded_share_of_labels_is_replaced(
    n_samples: int, share: float, n_classes: int, seed: int
) -> None:
    labels = torch.arange(n_samples) % n_classes

    noised, noisy = replace_labels(labels, share, n_classes, seed)

    assert len(noisy) == round(share * n_samples)
    assert torch.equal((noised != labels).nonzero().flatten(), noisy)
    assert noised.min() >= 0
    assert noised.max() < n_classes


def test_every_other_class_is_equally_likely() -> None:
    labels = torch.full((9000,), 3)

    noised, _ = replace_labels(labels, 1.0, 10, seed=0)

    counts = torch.bincount(noised, minlength=10)
    assert counts[3] == 0
    others = counts[counts > 0]
    assert len(others) == 9
    assert (others - 1000).abs().max() < 5 * 1000**0.5  # five standard deviations of a count


def test_noise_needs_another_class() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.label_noise=0\.5.*1 class"):
        replace_labels(torch.zeros(10, dtype=torch.int64), 0.5, 1, seed=0)


def test_without_noise_one_class_is_enough() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    noised, noisy = replace_labels(labels, 0.0, 1, seed=0)
    assert torch.equal(noised, labels)
    assert len(noisy) == 0


@given(n_samples=st.integers(2, 500), share=st.floats(0.01, 0.99), seed=seeds)
def test_held_out_and_training_samples_partition_the_data(n_samples: int, share: float, seed: int) -> None:
    n_validation = round(share * n_samples)
    if not 0 < n_validation < n_samples:
        with pytest.raises(ConfigurationError, match=r"data\.validation_share"):
            hold_out(n_samples, share, seed)
        return

    train, validation = hold_out(n_samples, share, seed)

    assert len(validation) == n_validation
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(n_samples))


@given(n_small=st.integers(1, 50), n_more=st.integers(0, 50), seed=seeds)
def test_a_smaller_subset_is_part_of_a_larger_one(n_small: int, n_more: int, seed: int) -> None:
    indices = np.arange(1000, 1100)

    small, large = subset(indices, n_small, seed), subset(indices, n_small + n_more, seed)

    assert len(set(small)) == n_small
    assert set(small) <= set(large) <= set(indices)
    assert (np.diff(large) > 0).all()


def test_a_subset_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.train_samples=11.* 10 training samples"):
        subset(np.arange(10), 11, seed=0)


def test_another_seed_draws_other_samples() -> None:
    draws = [subset(np.arange(1000), 100, seed).tolist() for seed in (0, 1)]
    assert draws[0] != draws[1]


def test_bytes_become_shares_of_white() -> None:
    pool = BytePool(np.array([0, 8, 16], np.uint8).reshape(3, 1, 1, 1), np.array([2, 1, 0], np.uint8), white=16)

    taken = pool.take(np.array([2, 1]))

    assert taken.images.flatten().tolist() == [1.0, 0.5]
    assert taken.images.dtype == torch.float32
    assert taken.labels.tolist() == [0, 1]
    assert taken.labels.dtype == torch.int64
