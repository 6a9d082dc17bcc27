"""One run screened by several settings: side by side, by what is stored alone."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gmmcnn import cli, config, data, models
from gmmcnn.errors import ConfigurationError
from gmmcnn.filters import fitting, live
from gmmcnn.run import screenings

TINY = ["debug=tiny", "train.epochs=2", "engine.threads=1"]
Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("screenings") / "run"
    assert cli._command_line([*TINY, f"run={folder}"]) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def gmmcnn(monkeypatch, capsys) -> Callable[..., Answer]:
    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(cli, "_exit_codes", [])
        monkeypatch.setattr(sys, "argv", [])
        return cli._command_line(arguments), *capsys.readouterr()

    return run


def tables_of(folder: Path) -> dict[str, bytes]:
    names = ("config.yaml", "filters.csv", "outliers.csv", "samples.csv", "metrics.csv")
    return {name: (folder / name).read_bytes() for name in names}


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be loaded, built or fitted")


def test_each_has_the_tables_of_a_run_that_is_screened_so(folder, gmmcnn, monkeypatch, tmp_path):
    before = tables_of(folder)
    for module, name in ((data, "load"), (models, "build"), (fitting, "cluster"), (live, "reduce_maps")):
        monkeypatch.setattr(module, name, forbidden)
    code, said, stderr = gmmcnn("-m", f"run={folder}", "task=screen", "screen.ch_ratio=0.5,1.5", "screen=mean,network")
    assert code == 0, stderr
    assert tables_of(folder) == {**before, "config.yaml": (folder / "config.yaml").read_bytes()}
    assert " ch_ratio " in said
    place = folder / "screenings" / "ch_ratio_screen"
    counted = pd.read_csv(place / "screenings.csv")
    assert counted["screening"].unique().tolist() == [
        f"ch_ratio-{ratio}_screen-{option}" for ratio in ("0.5", "1.5") for option in ("mean", "network")
    ]
    assert counted.groupby("screening")["checkpoint"].agg(list).tolist() == [["epoch-0001", "epoch-0002"]] * 4
    for name, rows in counted.groupby("screening"):
        ratio, option = name.removeprefix("ch_ratio-").split("_screen-")
        alone = Path(shutil.copytree(folder, tmp_path / name))
        assert gmmcnn(f"run={alone}", "task=screen", f"screen.ch_ratio={ratio}", f"screen={option}")[0] == 0
        for table in ("filters.csv", "outliers.csv"):
            assert (place / name / table).read_bytes() == (alone / table).read_bytes(), (name, table)
        metrics = pd.read_csv(alone / "metrics.csv")
        assert rows["anomalous_filters"].tolist() == metrics["anomalous_filters"].tolist()
        assert rows["flagged_per_batch"].tolist() == metrics["flagged_per_batch"].tolist()
        assert set(rows["screen.ch_ratio"]) == {float(ratio)}


def test_the_settings_of_the_run_stay_in_force(folder, gmmcnn):
    assert gmmcnn(f"run={folder}", "task=screen")[0] == 0
    before = tables_of(folder)
    assert gmmcnn("-m", f"run={folder}", "task=screen", "screen.ch_ratio=0.5,1.5")[0] == 0
    assert gmmcnn(f"run={folder}", "task=screen")[0] == 0
    assert tables_of(folder) == before


def test_more_values_are_added(folder, gmmcnn):
    assert gmmcnn("-m", f"run={folder}", "task=screen", "screen.small_cluster=2,3")[0] == 0
    assert gmmcnn("-m", f"run={folder}", "task=screen", "screen.small_cluster=3,4")[0] == 0
    place = folder / "screenings" / "small_cluster"
    counted = pd.read_csv(place / "screenings.csv")
    assert counted["screen.small_cluster"].unique().tolist() == [2, 3, 4]
    assert {path.name for path in place.iterdir() if path.is_dir()} == {f"small_cluster-{n}" for n in (2, 3, 4)}
    assert gmmcnn("task=verify", f"run={folder}")[0] == 0


def test_the_same_settings_in_another_order_are_added_to_the_same_folder(folder, gmmcnn):
    ratios, sizes = "screen.ch_ratio=0.5,1", "screen.small_cluster=2"
    assert gmmcnn("-m", f"run={folder}", "task=screen", ratios, sizes)[0] == 0
    assert gmmcnn("-m", f"run={folder}", "task=screen", "screen.small_cluster=3", ratios)[0] == 0
    assert [path.name for path in (folder / "screenings").iterdir()] == ["ch_ratio_small_cluster"]
    counted = pd.read_csv(folder / "screenings" / "ch_ratio_small_cluster" / "screenings.csv")
    assert counted["screen.small_cluster"].value_counts().to_dict() == {2: 4, 3: 4}


def test_fits_by_other_settings_lie_side_by_side_and_so_do_their_tables(folder, gmmcnn):
    before = tables_of(folder)
    code, _, stderr = gmmcnn("-m", f"run={folder}", "task=screen", "gmm.k_max=2,4")
    assert code == 2
    assert f"no fits for these settings; fit first: gmmcnn -m task=fit run={folder} gmm.k_max=2" in stderr
    assert gmmcnn("-m", f"run={folder}", "task=fit", "gmm.k_max=2,4")[0] == 0
    assert gmmcnn("-m", f"run={folder}", "task=screen", "gmm.k_max=2,4")[0] == 0
    counted = pd.read_csv(folder / "screenings" / "k_max" / "screenings.csv")
    assert counted["gmm.k_max"].tolist() == [2, 2, 4, 4]
    after = tables_of(folder)
    assert {name: text for name, text in after.items() if name != "config.yaml"} == {
        name: text for name, text in before.items() if name != "config.yaml"
    }
    assert gmmcnn("task=verify", f"run={folder}")[0] == 0


@pytest.mark.parametrize("name", ["screenings.csv", "asked.json", "ch_ratio-1.5/filters.csv"])
@pytest.mark.parametrize("how", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_what_is_damaged_is_found_and_made_again(folder, gmmcnn, name, how):
    assert gmmcnn("-m", f"run={folder}", "task=screen", "screen.ch_ratio=0.5,1.5")[0] == 0
    path = folder / "screenings" / "ch_ratio" / name
    content = path.read_bytes()
    how(path)
    code, _, stderr = gmmcnn("task=verify", f"run={folder}")
    assert code == 1
    assert "1 of 23 parts not as recorded" in stderr
    code, _, stderr = gmmcnn("task=repair", f"run={folder}")
    if name == "asked.json":  # which says what is to be made
        assert code == 1
        assert "gmmcnn: " in stderr
        return
    assert code == 0, stderr
    assert path.read_bytes() == content
    assert gmmcnn("task=verify", f"run={folder}")[0] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["task=screen", "seed=1,2"], "seed: cannot differ within one run; expected settings of gmm, pca or screen"),
        (["task=screen", "gmm.random_stat=1,2"], "gmm.random_stat: no such setting; did you mean gmm.random_state?"),
        (["task=screen", "screen.ch_ratio=-1,2"], "screen.ch_ratio=-1"),
        (["task=run", "screen.ch_ratio=1,2"], "run= in a sweep: its jobs would overwrite each other"),
        (["screen.ch_ratio=1,2"], "run= in a sweep: its jobs would overwrite each other"),
    ],
)
def test_what_cannot_lie_side_by_side_is_refused(folder, gmmcnn, given, said):
    code, _, stderr = gmmcnn("-m", f"run={folder}", *given)
    assert (code, stderr.count("\n")) == (2, 1)
    assert said in stderr
    assert not (folder / "screenings").exists()


def test_a_folder_without_a_run_is_refused(tmp_path, gmmcnn):
    code, _, stderr = gmmcnn("-m", f"run={tmp_path / 'none'}", "task=screen", "screen.ch_ratio=1,2")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "holds no run" in stderr


def test_a_record_that_names_other_places_is_damaged(folder, gmmcnn):
    assert gmmcnn("-m", f"run={folder}", "task=screen", "screen.ch_ratio=0.5")[0] == 0
    path = folder / "screenings" / "ch_ratio" / "asked.json"
    content = json.loads(path.read_text())
    del content[next(key for key in content if key != "screenings")]  # as one without a digest
    path.write_text(json.dumps({"screenings": {"../../elsewhere": content["screenings"]["ch_ratio-0.5"]}}))
    code, _, stderr = gmmcnn("-m", f"run={folder}", "task=screen", "screen.ch_ratio=0.5")
    assert code == 1
    assert "asked.json: damaged, or of another version; delete the folder" in stderr
    assert not (folder / "elsewhere").exists()


def test_names_are_short_and_say_what_varies():
    assert screenings.name_by({"screen.ch_ratio": "0.5", "gmm": "repeated"}) == "ch_ratio-0.5_gmm-repeated"
    assert screenings.name_by({"screen.ch_ratio": "", "gmm": ""}) == "ch_ratio_gmm"
    assert screenings.name_by({"a.b": "../../x y"}) == "b-..-..-x-y"
    long = [screenings.name_by({"a.b": "x" * 200 + end}) for end in "ab"]
    assert len(set(long)) == 2
    assert max(map(len, long)) == 80
    with pytest.raises(ConfigurationError, match=r"screen\.ch_ratios: cannot differ .*; did you mean screen\.ch_ratio"):
        screenings.require_settings_that_decide(["screen.ch_ratios"])
    assert set(screenings.DECIDING) <= set(config.setting_names())
