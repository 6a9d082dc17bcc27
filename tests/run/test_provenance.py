"""What maps were made from: recorded, compared by content where it is there, and told where it is another."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, StoreNotFoundError
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.run import provenance
from gmmcnn.run.provenance import Record

GIVEN = config.Settings(model=config.Model(checkpoint="weights.pt"), extract=config.Extract(tap="post_activation"))
WEIGHTS = "0123456789abcdef" * 4


def record_for(settings: config.Settings, weights: str | None = WEIGHTS, probe: str | None = "samples") -> Record:
    return Record(
        identity=provenance.identity(settings, weights, probe),
        origin=config.behind(settings, "maps"),
        n_samples=200,
        analysed={"conv1": Tapped("after relu", "Conv2d", "8x8")},
        skipped=(("head", "never called"),),
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "maps.npy"
    np.save(path, np.ones((3, 2, 2, 2)))
    return path


def imported(source: Path) -> config.Settings:
    return config.Settings(extract=config.Extract(source=str(source)))


def test_what_is_written_is_read(tmp_path):
    record_for(GIVEN).write(tmp_path / "taps.json")
    assert Record.read(tmp_path / "taps.json") == record_for(GIVEN)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"identity": {}}', '{"identity": 1, "origin": {}, "n_samples": 3}']
)
def test_what_is_no_record_is_none(tmp_path, text):
    path = tmp_path / "taps.json"
    if text is not None:
        path.write_text(text)
    assert Record.read(path) is None


@pytest.mark.parametrize("missing", ["identity", "origin", "n_samples", "analysed", "skipped"])
def test_a_record_without_a_part_is_none(tmp_path, missing):
    path = tmp_path / "taps.json"
    record_for(GIVEN).write(path)
    content = json.loads(path.read_text())
    del content["digest"]
    del content[missing]
    path.write_text(json.dumps(content))
    assert Record.read(path) is None


def test_names_of_an_earlier_version_are_read(tmp_path):
    path = tmp_path / "taps.json"
    record_for(GIVEN).write(path)
    content = json.loads(path.read_text())
    del content["digest"]
    content["batch_samples"] = content.pop("n_samples")
    content["identity"]["settings"] = ["post_activation", None, "float32"]
    content["origin"]["demo.plant"] = content["origin"].pop("probe.plant")
    path.write_text(json.dumps(content))
    assert Record.read(path) == record_for(GIVEN)


def test_earlier_versions_recorded_where_maps_were_taken_and_no_more(tmp_path):
    path = tmp_path / "taps.json"
    record_for(GIVEN).write(path)
    content = {"analysed": {"conv1": "after relu"}}
    earlier = {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"}
    path.write_text(json.dumps(earlier | content))
    assert Record.read(path) == replace(record_for(GIVEN), analysed={"conv1": Tapped("after relu")})


@pytest.mark.parametrize("said", [1, None, [], {}, {"kind": "Conv2d"}, {"tap": "after relu", "colour": "blue"}])
def test_a_record_that_says_something_else_of_a_layer_is_none(tmp_path, said):
    path = tmp_path / "taps.json"
    record_for(GIVEN).write(path)
    content = {"analysed": {"conv1": said}}
    earlier = {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"}
    path.write_text(json.dumps(earlier | content))
    assert Record.read(path) is None


def test_maps_depend_on_weights_samples_and_where_they_are_taken_and_on_nothing_else():
    now = provenance.identity(GIVEN, WEIGHTS, "samples")
    assert now == {
        "weights": WEIGHTS[:16],
        "probe samples": "samples",
        "settings": {"extract.tap": "post_activation", "extract.layers": None, "extract.dtype": "float32"},
    }
    others = replace(
        GIVEN, gmm=config.Gmm(k_max=3), engine=config.Engine(threads=1), screen=config.Screen(ch_ratio=2.0), debug=True
    )
    assert provenance.identity(others, WEIGHTS, "samples") == now


def test_a_setting_that_came_later_is_named_only_where_it_changes_maps():
    shorter = replace(GIVEN, extract=replace(GIVEN.extract, autocast="bfloat16"))
    before, now = record_for(GIVEN), record_for(shorter)
    assert "extract.autocast" not in before.identity["settings"]
    assert provenance.differences(before, now.identity) == ["settings"]
    for record, settings, made_with in ((before, shorter, "null"), (now, GIVEN, "bfloat16")):
        with pytest.raises(ConfigurationError, match=f"made with extract.autocast={made_with}"):
            provenance.require_own(record, settings, WEIGHTS, Path("run/activations/given"))


@pytest.mark.parametrize(
    ("weights", "probe", "tap", "names"),
    [
        (WEIGHTS, "samples", "post_activation", []),
        ("f" * 64, "samples", "post_activation", ["weights"]),
        (WEIGHTS, "others", "pre_activation", ["probe samples", "settings"]),
    ],
)
def test_differences_are_named(weights, probe, tap, names):
    now = provenance.identity(replace(GIVEN, extract=config.Extract(tap=tap)), weights, probe)
    assert provenance.differences(record_for(GIVEN), now) == names
    assert provenance.differences(None, now) == ["weights", "probe samples", "settings"]


def test_imported_maps_depend_on_their_source_and_its_content(source):
    settings = imported(source)
    now = provenance.identity(settings, None, None)
    assert now["source"] == str(source)
    assert now["settings"] == {"extract.dtype": "float32", "probe.samples": settings.probe.samples}
    os.utime(source, ns=(0, 10**18))
    assert provenance.identity(settings, None, None)["source content"] == 10**18 != now["source content"]
    source.unlink()
    assert "source content" not in provenance.identity(settings, None, None)


def test_the_content_of_a_folder_is_that_of_its_latest_file(tmp_path):
    for number, name in enumerate(("a", "b"), 1):
        (tmp_path / "maps.zarr" / name).mkdir(parents=True)
        (tmp_path / "maps.zarr" / name / "file").touch()
        os.utime(tmp_path / "maps.zarr" / name / "file", ns=(0, number * 10**9))
    assert provenance.identity(imported(tmp_path / "maps.zarr"), None, None)["source content"] == 2 * 10**9


def require(record: Record | None, settings: config.Settings, weights: str | None = WEIGHTS) -> Record:
    return provenance.require_own(record, settings, weights, Path("RUN/activations/given"))


def test_a_record_of_the_settings_in_force_is_the_folders_own(source):
    for record, settings, weights in (
        (record_for(GIVEN), GIVEN, WEIGHTS),
        (record_for(GIVEN), GIVEN, None),  # the weights are not there any more
        (record_for(imported(source), None, None), imported(source), None),
    ):
        assert require(record, settings, weights) is record


def test_without_a_record_the_task_that_makes_maps_is_named():
    with pytest.raises(StoreNotFoundError, match=r"given/taps\.json: missing.*first: gmmcnn task=extract run=RUN"):
        require(None, GIVEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract": config.Extract(tap="branch")}, r"other settings \(made with extract\.tap=post_activation\)"),
        (
            {"extract": config.Extract(tap="post_activation", layers=["a"])},
            r"other settings \(made with extract\.layers=null\)",
        ),
        ({"probe": config.Probe(batches=3)}, r"other probe samples \(made with probe\.batches="),
        ({"seed": 5}, r"other probe samples \(made with seed=0\)"),
        ({"data": config.Data(label_noise=0.5)}, r"other probe samples \(made with data\.label_noise=0"),
        (
            {"seed": 5, "extract": config.Extract(tap="branch")},
            r"other probe samples and settings \(made with seed=0 extract\.tap=post_activation\)",
        ),
    ],
)
def test_settings_of_other_maps_are_told_with_what_they_were(changes, message):
    with pytest.raises(ConfigurationError, match=rf"^RUN/activations/given: holds feature maps of {message}"):
        require(record_for(GIVEN), replace(GIVEN, **changes))


def test_other_weights_under_the_same_name_are_told():
    with pytest.raises(ConfigurationError, match=r"holds feature maps of other weights; give what they were made with"):
        require(record_for(GIVEN), GIVEN, "f" * 64)


def test_the_same_weights_in_another_place_are_the_same():
    moved = replace(GIVEN, model=config.Model(checkpoint="elsewhere.pt"))
    assert require(record_for(GIVEN), moved)
    with pytest.raises(ConfigurationError, match=r"other weights \(made with model\.checkpoint=weights\.pt\)"):
        require(record_for(GIVEN), moved, None)  # where nobody can look


def test_a_source_that_was_written_over_is_told_and_one_that_is_gone_is_not(source):
    record = record_for(imported(source), None, None)
    os.utime(source, ns=(0, 10**18))
    with pytest.raises(ConfigurationError, match="holds feature maps of other source content"):
        require(record, imported(source), None)
    source.unlink()
    assert require(record, imported(source), None) is record
