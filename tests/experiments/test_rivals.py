"""Rival scores on networks and features whose odd samples are known."""

import numpy as np
import pytest
import torch
from torch import nn

from gmmcnn.data.splits import Images
from gmmcnn.experiments import rivals


class Fixed(nn.Module):
    """Logits that are the flattened image times a weight."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images):
        return torch.relu(self.conv(images)).sum() * 0 + images.flatten(1) * self.weight


@pytest.fixture
def samples():
    """Three images of three classes; the last has the label that its network least believes in."""
    images = torch.tensor([[3.0, 0, 0], [0, 3, 0], [3, 0, 0]]).reshape(3, 1, 1, 3)
    return Images(images, torch.tensor([0, 1, 2]))


@pytest.fixture
def blobs():
    """Two blobs of 20 points, and one point of each blob with the other's label."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5)) + 6 * (np.arange(40) >= 20)[:, None]
    labels = (np.arange(40) >= 20).astype(int)
    labels[[3, 30]] = 1 - labels[[3, 30]]
    return features, labels


def test_loss_and_el2n_are_those_of_the_softmax(samples):
    p = torch.tensor([3.0, 0, 0]).softmax(dim=0).double().numpy()
    np.testing.assert_allclose(rivals.loss(Fixed(), samples), -np.log([p[0], p[0], p[1]]), rtol=1e-6)
    right, wrong = np.linalg.norm(p - [1, 0, 0]), np.linalg.norm(p - [0, 0, 1])
    np.testing.assert_allclose(rivals.el2n(Fixed(), samples), [right, right, wrong], rtol=1e-6)


def test_vog_is_the_spread_of_gradients_within_a_class(samples):
    images = samples.images.clone()
    models = [Fixed(1.0), Fixed(3.0)]
    same = Images(images, torch.tensor([0, 0, 0]))
    np.testing.assert_allclose(rivals.vog(models, same), 0, atol=1e-6)  # all change alike
    assert np.isfinite(rivals.vog(models, samples)).all()


def test_self_influence_is_the_squared_gradient_over_checkpoints(samples):
    models = [Fixed(1.0), Fixed(3.0)]
    # The logits are image * weight: the gradient by the weight is (p - y) · image, by all else 0.
    expected = np.zeros(3)
    for weight in (1.0, 3.0):
        p = torch.softmax(samples.images.flatten(1).double() * weight, dim=1)
        y = torch.eye(3, dtype=torch.float64)[samples.labels]
        expected += ((p - y) * samples.images.flatten(1)).sum(dim=1).square().numpy()
    np.testing.assert_allclose(rivals.self_influence(models, samples), expected, rtol=1e-5)
    assert rivals.self_influence(models, samples).argmax() == 2  # the one whose label is least believed in


@pytest.mark.parametrize(
    "score",
    [
        lambda features, labels: rivals.disagreement(features, labels, 5),
        lambda features, labels: rivals.doubt(rivals.left_out_probabilities(features, labels), labels),
    ],
    ids=["neighbours", "confident learning"],
)
def test_wrong_labels_among_blobs_stand_first(blobs, score):
    found = score(*blobs)
    assert set(np.argsort(found)[-2:]) == {3, 30}
    assert ((found >= 0) & (found <= 1)).all()


def test_more_features_than_samples_give_the_fit_of_their_span(blobs):
    features, labels = blobs
    wide = np.concatenate([features, np.zeros((40, 60))], axis=1)
    np.testing.assert_allclose(
        rivals.left_out_probabilities(wide, labels), rivals.left_out_probabilities(features, labels), atol=1e-3
    )


def test_every_score_is_made_and_belongs_to_a_need():
    rng = torch.Generator().manual_seed(0)
    samples = Images(torch.rand(40, 1, 1, 3, generator=rng), torch.arange(40) % 3)
    found = rivals.scores(lambda number: Fixed(float(number)), 10, samples, "conv")
    assert list(found) == [name for name in rivals.NEEDS if name in found]
    assert set(rivals.NEEDS) - set(found) <= {"cleanlab, last maps"}
    assert all(values.shape == (40,) and np.isfinite(values).all() for values in found.values())
    np.testing.assert_allclose(
        found["mean loss"], np.mean([rivals.loss(Fixed(float(n)), samples) for n in range(1, 11)], axis=0)
    )


def test_features_that_do_not_vary_say_nothing():
    labels = np.arange(30) % 3
    probabilities = rivals.left_out_probabilities(np.zeros((30, 4)), labels)
    np.testing.assert_allclose(probabilities, 1 / 3, atol=1e-3)
