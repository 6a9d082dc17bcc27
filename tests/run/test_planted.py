"""Does the check catch noise far beyond the range of images, in the probe set of a really trained network?"""

import pytest

import gmmcnn
from gmmcnn import config
from gmmcnn.data.probe import draw_probe

N_SAMPLES = 1000  # with λ = 5: strict, only isolated samples are found


def analysed(model, data, planted: int, seed: int) -> gmmcnn.Analysis:
    probe = draw_probe(data, config.Probe(samples=N_SAMPLES, batches=1, plant=planted, plant_clipped=False), seed=seed)
    analysis = gmmcnn.analyze(model, probe.images, probe.samples["label"], random_state=seed)
    analysis.outliers["planted"] = analysis.outliers["sample"].map(probe.samples["planted"])
    return analysis


@pytest.mark.fashion_mnist
@pytest.mark.parametrize("seed", [0, 1])
def test_four_noise_images_are_found_and_nothing_is_reported_without_them(fashion_lenet5, fashion_mnist, seed):
    found = analysed(fashion_lenet5, fashion_mnist, planted=4, seed=seed).outliers
    assert (found["planted"] == "noise").sum() == 4
    assert len(found) <= 6  # the odd image may join the noise; the four are singled out
    assert analysed(fashion_lenet5, fashion_mnist, planted=0, seed=seed).outliers.empty
