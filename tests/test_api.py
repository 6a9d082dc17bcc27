"""gmmcnn.analyze and what it returns, on a really trained network."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import gmmcnn
from gmmcnn.errors import CaptureError, ConfigurationError, SaturationWarning

QUICK = {"k_max": 4, "n_init": 1, "repeats": 1}


@pytest.fixture(scope="module")
def images(digits):
    return digits.train.images[:120]


@pytest.fixture(scope="module")
def labels(digits):
    return digits.train.labels[:120]


@pytest.fixture
def analysis(digits_cnn, images, labels):
    return gmmcnn.analyze(digits_cnn, images, labels, samples=60, **QUICK)


def test_every_filter_gets_a_row_and_every_outlier_its_label(analysis, labels):
    assert analysis.filters.groupby("layer", sort=False).size().to_dict() == {
        "features.conv1": 16,
        "features.conv2": 32,
        "features.conv3": 64,
    }
    assert analysis.filters.groupby("layer", sort=False)[["kind", "map_shape"]].first().to_numpy().tolist() == [
        ["Conv2d", "8x8"],
        ["Conv2d", "4x4"],
        ["Conv2d", "2x2"],
    ]
    assert analysis.filters["tap"].str.contains("relu").all()
    outliers = analysis.outliers
    assert len(outliers) > 0
    assert outliers["label"].tolist() == labels[outliers["sample"].tolist()].tolist()


def test_all_images_are_one_batch_unless_samples_splits_them(digits_cnn, images):
    whole = gmmcnn.analyze(digits_cnn, images, layers=["features.conv1"], **QUICK)
    assert (whole.fits.n_batches, whole.fits.n_samples) == (1, 120)
    halves = gmmcnn.analyze(digits_cnn, images, layers=["features.conv1"], samples=60, **QUICK)
    assert (halves.fits.n_batches, halves.fits.n_samples) == (2, 60)
    assert list(whole.filters["layer"].unique()) == ["features.conv1"]


def test_batches_are_the_first_ones_and_what_is_left_over_is_said(digits_cnn, images):
    def n_batches(**settings):
        return gmmcnn.analyze(digits_cnn, images, layers=["features.conv1"], **settings, **QUICK).fits.n_batches

    assert n_batches(samples=40, batches=1) == 1
    assert n_batches(samples=50, batches=9) == 2
    with pytest.warns(UserWarning, match="samples=50: the last 20 of 120 images are left out; expected a divisor"):
        assert n_batches(samples=50) == 2


def test_where_chance_makes_small_clusters_it_warns_and_defaults_keep_clear_of_it(digits_cnn, images):
    def analysed(n, **settings):
        return gmmcnn.analyze(digits_cnn, images[:n], layers=["features.conv1"], repeats=1, **settings)

    assert analysed(64).small_cluster == 1
    assert analysed(120, k_max=4).saturation.ratio == 7 * 4 / 120
    with pytest.warns(
        SaturationWarning, match=r"5·10/64 = 0\.78: saturated, .*; raise probe\.samples to 167 or more, or"
    ):
        assert "saturated: chance alone makes small clusters here" in repr(analysed(64, small_cluster=5))
    with pytest.warns(SaturationWarning, match=r"1·10/30 = 0\.33: saturated, .*; raise probe\.samples to 34 or more$"):
        analysed(30)


def test_numbers_of_any_library_are_numbers(digits_cnn, images):
    settings = {"k_max": np.int64(4), "samples": np.uint8(60), "ch_ratio": np.float32(0.5)}
    analysis = gmmcnn.analyze(digits_cnn, images, layers=["features.conv1"], repeats=1, **settings)
    assert [type(value) for value in (analysis.settings.ch_ratio, analysis.fits.k_max)] == [float, int]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_maps_are_taken_in_parts_and_give_the_same_bit_by_bit(digits_cnn, images, monkeypatch, dtype):
    many = torch.cat([images] * 3)

    def analyze(**settings):
        return gmmcnn.analyze(digits_cnn, many, samples=len(many), dtype=dtype, **QUICK, **settings)

    whole, passes, forward = analyze(), [], digits_cnn.forward
    monkeypatch.setattr(digits_cnn, "forward", lambda x: passes.append(len(x)) or forward(x))
    analyze()
    at_once = len(passes)
    in_parts = analyze(memory=1)
    assert len(passes) - at_once > at_once
    assert whole.skipped == in_parts.skipped
    assert whole.fits.tapped == in_parts.fits.tapped
    assert whole.fits.layers.keys() == in_parts.fits.layers.keys()
    for layer, fits in whole.fits.layers.items():
        for name, values in vars(fits).items():
            np.testing.assert_array_equal(values, getattr(in_parts.fits.layers[layer], name), strict=True)


def test_every_kind_of_input_gives_the_same_tables(digits_cnn, images, labels, analysis):
    data = TensorDataset(images, labels)
    for given in (images.numpy(), data, DataLoader(data, batch_size=7, shuffle=True)):
        known = labels.numpy() if isinstance(given, np.ndarray) else None
        again = gmmcnn.analyze(digits_cnn, given, known, samples=60, **QUICK)
        pd.testing.assert_frame_equal(again.filters, analysis.filters)
        pd.testing.assert_frame_equal(again.outliers, analysis.outliers, check_dtype=False)


def test_the_network_comes_back_as_it_was(digits_cnn, images):
    digits_cnn.train()
    before, state = copy.deepcopy(digits_cnn.state_dict()), torch.get_rng_state()
    gmmcnn.analyze(digits_cnn, images[:60], **QUICK)
    assert digits_cnn.training
    assert all(torch.equal(value, before[key]) for key, value in digits_cnn.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in digits_cnn.modules())


def test_thresholds_change_the_table_and_refit_nothing(analysis, monkeypatch):
    monkeypatch.setattr(gmmcnn.GaussianMixtureSweep, "fit", None)
    assert not analysis.screen(activation_ratio=1000).anomalous.any()
    loose = analysis.screen(small_cluster=30, ch_ratio=0, activation_ratio=0)
    assert loose.anomalous.sum() > analysis.filters.anomalous.sum()
    with pytest.raises(ConfigurationError, match="smal_cluster: no such threshold; expected one of small_cluster"):
        analysis.screen(smal_cluster=3)
    with pytest.raises(ConfigurationError, match=r"screen\.small_cluster=0"):
        analysis.screen(small_cluster=0)
    with pytest.raises(ConfigurationError, match=r"screen\.ch_ratio='1': expected a number"):
        analysis.screen(ch_ratio="1")


def test_the_reference_engine_finds_the_same(digits_cnn, images):
    tables = [
        gmmcnn.analyze(digits_cnn, images[:60], layers=["features.conv2"], engine=engine, **QUICK).filters
        for engine in ("cpu", "reference")
    ]
    same = [
        (tables[0][column] == tables[1][column]).mean() for column in ("n_components", "n_small_clusters", "anomalous")
    ]
    assert min(same) >= 0.9  # float32 may settle a near-tie of CH otherwise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_maxx": 3}, "k_maxx: no such setting; did you mean k_max?"),
        ({"k_max": 99}, "gmm.k_max=99"),
        ({"samples": 121}, "samples=121: there are 120 images"),
        ({"labels": [1, 2]}, r"labels have shape \(2,\) and type int64; expected \(120,\) whole numbers"),
        ({"labels": ["cat"] * 120}, r"labels have shape \(120,\) and type <U3; expected \(120,\) whole numbers"),
        ({"labels": torch.eye(10)[[0] * 120]}, r"labels have shape \(120, 10\)"),
        ({"layers": "features.conv1"}, r"layers='features\.conv1': expected a list of dotted names"),
        ({"layers": 0}, "layers=0: expected a list of dotted names"),
        ({"source": "nope.npy"}, "source: no such setting"),
        ({"keep_maps": "all"}, "keep_maps: no such setting"),
        ({"batches": 0}, "probe.batches=0"),
        ({"k_max": "8"}, "gmm.k_max='8': expected a whole number"),
        ({"samples": 50.5}, r"probe.samples=50\.5: expected a whole number"),
        ({"dims": 1.5}, r"pca.dims=1\.5: expected a whole number"),
        ({"n_init": True}, "gmm.n_init=True: expected a whole number"),
        ({"tol": None}, "gmm.tol=None: expected a number"),
        ({"tap": 3}, "extract.tap=3: expected text"),
        ({"engine": "gpu"}, "engine=gpu: expected one of auto, cpu, cuda, reference"),
    ],
)
def test_wrong_settings_are_named(digits_cnn, images, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        gmmcnn.analyze(digits_cnn, images, **arguments)


def test_images_of_the_wrong_shape_and_maps_that_are_not_finite(digits_cnn, images):
    with pytest.raises(ConfigurationError, match=r"images: shape \(8, 8\) in a batch; expected a tensor"):
        gmmcnn.analyze(digits_cnn, images[0, 0])
    broken = images.clone()
    broken[7] = torch.nan
    with pytest.raises(CaptureError, match=r"layer 'features\.conv1', filter 0, sample 7"):
        gmmcnn.analyze(digits_cnn, broken, **QUICK)
