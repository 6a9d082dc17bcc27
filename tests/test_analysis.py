"""An analysis on disk and on a page: what is kept is what there was, and what is no analysis is said to be none."""

import json
import re
from dataclasses import fields, replace
from html import escape

import numpy as np
import pandas as pd
import pytest
from handmade_fits import ONE_OF_EACH, N, batches_of, fits_of

import gmmcnn
from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.errors import StoreError, StoreNotFoundError
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.files import arrays_in, write_arrays
from gmmcnn.filters.fits import LayerFits

TWICE = batches_of(ONE_OF_EACH, ONE_OF_EACH)
TAPPED = {"conv1": Tapped("after relu", "Conv2d", "8x8"), "conv2": Tapped("after relu")}


@pytest.fixture
def analysis() -> Analysis:
    return Analysis(
        fits=replace(fits_of(TWICE, replace(TWICE, scores=TWICE.scores + 1)), tapped=TAPPED),
        known=pd.DataFrame(
            {"batch": np.arange(2 * N) // N, "label": np.arange(2 * N) % 10, "planted": np.arange(2 * N) == 39}
        ),
        thumbnails=np.random.default_rng(0).integers(0, 256, (2 * N, 4, 4), dtype=np.uint8),
        settings=config.Screen(small_cluster=4, average="mean", scope="network"),
        skipped=(("head", "never called"), ("side", "1 x 1 maps")),
        name="network X",
    )


def test_a_saved_analysis_is_the_same_again(analysis, tmp_path):
    loaded = gmmcnn.load(analysis.save(tmp_path / "analysis.npz"))
    pd.testing.assert_frame_equal(loaded.filters, analysis.filters)
    pd.testing.assert_frame_equal(loaded.outliers, analysis.outliers, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.known, analysis.known, check_dtype=False)
    np.testing.assert_array_equal(loaded.thumbnails, analysis.thumbnails)
    assert (loaded.skipped, loaded.name, loaded.settings) == (analysis.skipped, analysis.name, analysis.settings)
    assert list(loaded.fits.layers) == ["conv1", "conv2"]
    assert loaded.fits.tapped == TAPPED
    assert (loaded.fits.k_min, loaded.fits.k_max) == (analysis.fits.k_min, analysis.fits.k_max)
    for layer, fits in analysis.fits.layers.items():
        for field in fields(LayerFits):
            found = getattr(loaded.fits.layers[layer], field.name)
            np.testing.assert_array_equal(found, getattr(fits, field.name), err_msg=field.name)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.npz"]


def test_a_file_of_an_earlier_version_says_nothing_of_what_was_tapped(analysis, tmp_path):
    path = analysis.save(tmp_path / "analysis.npz")
    with arrays_in(path, remedy="") as arrays:
        kept = dict(arrays)
    about = json.loads(str(kept["about"]))
    del about["tapped"]
    write_arrays(path, kept | {"about": np.array(json.dumps(about))}, compressed=True)
    loaded = gmmcnn.load(path)
    assert loaded.fits.tapped == {}
    told = ["tap", "kind", "map_shape"]
    assert loaded.filters[told].isna().all(axis=None)
    pd.testing.assert_frame_equal(loaded.filters.drop(columns=told), analysis.filters.drop(columns=told))


def test_thresholds_of_a_loaded_analysis_change_as_before(analysis, tmp_path):
    loaded = gmmcnn.load(str(analysis.save(str(tmp_path / "analysis.npz"))))
    pd.testing.assert_frame_equal(loaded.screen(ch_ratio=0.05), analysis.screen(ch_ratio=0.05))
    assert isinstance(loaded.with_thresholds(ch_ratio=0.05), Analysis)


def test_samples_without_labels_are_kept_as_such(analysis, tmp_path):
    unlabelled = replace(analysis, known=analysis.known.assign(label=pd.NA))
    assert gmmcnn.load(unlabelled.save(tmp_path / "analysis.npz")).known["label"].isna().all()


@pytest.mark.parametrize(
    "damage", ["other.npz", "array.npy", "text.npz", "empty.npz", "truncated.npz", "flipped.npz", "version.npz"]
)
def test_loading_what_is_no_analysis(analysis, tmp_path, damage, monkeypatch):
    path = tmp_path / damage
    whole = analysis.save(tmp_path / "whole.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("gmmcnn.analysis._FORMAT", "gmmcnn-analysis-0")
        of_another_version = analysis.save(tmp_path / "another.npz").read_bytes()
    {
        "other.npz": lambda: np.savez(path, a=1),
        "array.npy": lambda: np.save(path, np.ones(3)),
        "text.npz": lambda: path.write_text("text"),
        "empty.npz": path.touch,
        "truncated.npz": lambda: path.write_bytes(whole[:-100]),
        "flipped.npz": lambda: path.write_bytes(whole[:500] + bytes(100) + whole[600:]),
        "version.npz": lambda: path.write_bytes(of_another_version),
    }[damage]()
    with pytest.raises(
        StoreError, match=rf"{damage}: damaged or something else \(.+\); expected what Analysis\.save wrote"
    ):
        gmmcnn.load(path)


def test_a_file_that_is_missing_is_told_as_missing(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"none\.npz: no such file; expected what Analysis\.save wrote"):
        gmmcnn.load(tmp_path / "none.npz")


def test_the_page_is_written_whole(analysis, tmp_path):
    path = analysis.to_html(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "network X" in page
    assert "conv2" in page
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_it_is_shown_in_five_lines(analysis):
    assert repr(analysis).split("\n  ") == [
        "Analysis of network X",
        "10 filters in 2 layers, 8 of them live",
        "2 probe batches of 40 samples, 2 to 3 clusters",
        "2 anomalous, 6 outlier samples",
        "λ·K_max/N = 4·3/40 = 0.30: informative",
    ]
    assert str(analysis) == repr(analysis)


def test_the_summary_is_sentences(analysis):
    headline, reading, which, *others = analysis.summary().split("\n")
    assert headline.startswith("2 of 10 filters are anomalous: they respond strongly and set a few images apart")
    assert which.startswith("Anomalous: conv1:0, conv2:0")
    assert reading == "λ·K_max/N = 4·3/40 = 0.30: informative."
    assert others[-2:] == ["Not analysed: head: never called.", "Not analysed: side: 1 x 1 maps."]


def test_a_saturated_analysis_shows_no_count(analysis):
    saturated = analysis.with_thresholds(small_cluster=5)
    assert repr(saturated).split("\n  ")[3] == "saturated: chance alone makes small clusters here"
    headline = saturated.summary().split("\n")[0]
    assert "saturated: chance alone makes small clusters here" in headline
    assert saturated.summary().count("λ·K_max/N = 5·3/40") == 1
    assert len(repr(saturated).split("\n")) == 5


def test_a_notebook_shows_sentences_and_layers_and_runs_nothing_of_a_name(analysis):
    shown = replace(analysis, name="<script>x</script>")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    headline = analysis.summary().splitlines()[0]
    assert f"<b>{escape(headline)}</b>" in shown
    cells = re.findall(r"<td>(.*?)</td>", shown)
    assert cells[::4] == list(analysis.fits.layers)
    assert sum(map(int, cells[1::4])) == analysis.fits.n_filters
