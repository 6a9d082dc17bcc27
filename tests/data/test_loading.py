import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gmmcnn import config
from gmmcnn.data import Splits, load
from gmmcnn.errors import ConfigurationError


def test_digits_are_those_of_scikit_learn(digits: Splits) -> None:
    original = load_digits()

    assert torch.equal(digits.train.images[:, 0] * 16, torch.tensor(original.images[digits.train_indices]).float())
    assert digits.train.labels.tolist() == original.target[digits.train_indices].tolist()
    assert digits.class_names == tuple("0123456789")
    assert (digits.in_channels, digits.image_size, digits.n_classes) == (1, (8, 8), 10)


def test_digits_hold_out_the_validation_share(digits: Splits) -> None:
    assert len(digits.validation) == round(0.2 * 1797)
    assert len(digits.train) + len(digits.validation) == 1797
    held_out = np.setdiff1d(np.arange(1797), digits.train_indices)
    assert torch.equal(digits.validation.images[:, 0] * 16, torch.tensor(load_digits().images[held_out]).float())


def test_the_description_fits_on_one_line_and_counts(digits: Splits) -> None:
    assert digits.description == (
        "digits: handwritten digits (scikit-learn), 1 × 8 × 8 pixels, 10 classes; "
        "1,438 for training, 359 for validation"
    )


def test_noisy_samples_are_recorded_with_their_labels() -> None:
    settings = config.Data(name="digits", train_samples=500, label_noise=0.2)

    data = load(settings, seed=3)

    true_labels = torch.tensor(load_digits().target[data.train_indices])
    assert len(data.train) == 500
    assert torch.equal((data.train.labels != true_labels).nonzero().flatten(), data.noisy)
    assert len(data.noisy) == 100
    assert torch.equal(data.original_labels, true_labels[data.noisy])
    assert "500 for training, 100 of them with a wrong label" in data.description


def test_noise_touches_neither_split_nor_validation() -> None:
    clean, noisy = (load(config.Data(label_noise=noise), seed=1) for noise in (0.0, 0.5))
    assert torch.equal(clean.train_indices, noisy.train_indices)
    assert torch.equal(clean.validation.labels, noisy.validation.labels)


def test_the_seed_alone_decides() -> None:
    settings = config.Data(name="digits", train_samples=100, label_noise=0.3)
    torch.manual_seed(1)
    first = load(settings, seed=5)
    torch.manual_seed(2)
    np.random.default_rng(2)
    again, other = load(settings, seed=5), load(settings, seed=6)

    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.train_indices, other.train_indices)


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    load(config.Data(name="digits", train_samples=100, label_noise=0.3), seed=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "nearest"), [("digit", "digits"), ("fashion-mnist", "fashion_mnist"), ("cifar", "cifar10")]
)
def test_a_misspelt_name_meets_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.name={name}: expected .*; did you mean {nearest}\?"):
        load(config.Data(name=name), seed=0)


def test_built_in_data_sets_take_no_kwargs() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.kwargs=\{'size': 3\}.*digits takes none"):
        load(config.Data(name="digits", kwargs={"size": 3}), seed=0)


def test_more_samples_than_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.train_samples=1439.* 1438 training samples"):
        load(config.Data(name="digits", train_samples=1439), seed=0)
