"""The probe set: which samples, in which batches, and what is planted among them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gmmcnn import config
from gmmcnn.data.probe import draw_probe, thumbnails
from gmmcnn.errors import ConfigurationError


def test_batches_are_disjoint_training_samples(digits):
    probe = draw_probe(digits, config.Probe(samples=100, batches=4), seed=0)
    assert probe.n_batches == 4
    assert probe.n_samples == 100
    assert probe.samples["dataset_index"].is_unique
    assert probe.samples.groupby("batch").size().tolist() == [100] * 4
    place = {int(index): position for position, index in enumerate(digits.train_indices)}
    for sample in (0, 150, 399):
        position = place[probe.samples["dataset_index"][sample]]
        assert torch.equal(probe.images[sample], digits.train.images[position])
        assert probe.samples["label"][sample] == digits.train.labels[position]


def test_the_draw_depends_on_the_seed_alone(digits):
    settings = config.Probe(samples=50, batches=2)
    first, again, other = (draw_probe(digits, settings, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_there_are_as_many_batches_as_the_training_set_gives(digits):
    assert draw_probe(digits, config.Probe(samples=400, batches=10), seed=0).n_batches == 3


def test_planted_samples_are_noise_of_the_strength_asked_for_and_the_others_stay(digits):
    settings = config.Probe(samples=500, batches=1)
    plain = draw_probe(digits, settings, seed=0)
    unclipped = replace(settings, plant=50, plant_strength=3.0, plant_clipped=False)
    planted = draw_probe(digits, unclipped, seed=0)
    at = torch.tensor((planted.samples["planted"] == "noise").tolist())
    assert int(at.sum()) == 50
    assert torch.equal(planted.images[~at], plain.images[~at])
    noise = planted.images[at]
    assert float(noise.std()) == pytest.approx(
        3.0 * float(plain.images.std()), rel=0.05
    )  # 3200 pixels: 1.3 % standard error
    assert set(plain.samples["planted"]) == {""}
    clipped = draw_probe(digits, replace(unclipped, plant_clipped=True), seed=0).images
    assert torch.equal(clipped, planted.images.clamp(digits.train.images.min(), digits.train.images.max()))
    assert config.Probe().plant_clipped


def test_samples_planted_in_training_are_known(digits):
    planted = replace(digits, planted={7: "inverted", 9: "wrong_label"})
    probe = draw_probe(planted, config.Probe(samples=len(digits.train), batches=1), seed=0)
    kinds = probe.samples.set_index("dataset_index")["planted"]
    assert kinds[int(digits.train_indices[7])] == "inverted"
    assert kinds[int(digits.train_indices[9])] == "wrong_label"
    assert (kinds == "").sum() == len(digits.train) - 2


def test_all_batches_together_are_the_training_set(digits):
    probe = draw_probe(digits, config.Probe(samples=200, batches="all"), seed=0)
    assert probe.n_batches * probe.n_samples == len(probe.samples)
    assert len(digits.train) - len(probe.samples) <= 3
    assert 180 <= probe.n_samples <= 220
    assert probe.samples["dataset_index"].is_unique


def test_samples_with_a_wrong_label_are_marked(digits):
    noisy = replace(digits, noisy=torch.arange(len(digits.train)))
    assert draw_probe(noisy, config.Probe(samples=10, batches=1), seed=0).samples["noisy_label"].all()


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (config.Probe(samples=5000), r"probe\.samples=5000: the training set has 1438 samples"),
        (config.Probe(samples=10, batches=1, plant=11), r"probe\.plant=11: the probe set has 10 samples"),
    ],
)
def test_more_samples_than_there_are(digits, probe, message):
    with pytest.raises(ConfigurationError, match=message):
        draw_probe(digits, probe, seed=0)


def test_thumbnails_are_small_and_stretch_the_common_range():
    images = torch.rand(200, 1, 100, 80)
    images[0, 0, 0, 0] = 1000.0
    grey = thumbnails(images)
    assert grey.dtype == np.uint8
    assert grey.shape == (200, 64, 51)
    assert grey.max() == 255
    assert 100 < np.median(grey) < 155
    assert thumbnails(torch.rand(2, 3, 8, 8)).shape == (2, 8, 8, 3)
    assert thumbnails(torch.rand(2, 5, 8, 8)).shape == (2, 8, 8)
    assert thumbnails(torch.zeros(2, 1, 8, 8)).max() == 0
