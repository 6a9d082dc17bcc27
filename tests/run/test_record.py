"""``run=FOLDER``: which settings a command goes on with, and which folders it refuses."""

import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn import cli, config
from gmmcnn.errors import ConfigurationError
from gmmcnn.names import command
from gmmcnn.run import record

Answer = tuple[int, config.Settings | None, str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Answer]:
    """Run the command line up to the task, which accepts its settings: (exit code, settings, standard error)."""
    monkeypatch.chdir(tmp_path)
    done: list[config.Settings] = []

    def execute(settings: config.Settings, folder: Path, _workers: object) -> None:
        done.append(settings)
        (folder / record.NAME).write_text(record.as_text(settings))

    monkeypatch.setattr("gmmcnn.tasks.execute", execute)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["gmmcnn", *arguments])
        monkeypatch.setattr(cli, "_exit_codes", [])
        done.clear()
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), None, capsys.readouterr().err
        return 0, done[0], capsys.readouterr().err

    return run


def refused(answer: Answer, *parts: str) -> bool:
    code, _, stderr = answer
    assert code == 2, stderr
    assert stderr.count("\n") == 1
    assert all(part in stderr for part in parts), stderr
    return True


# ------------------------------------------------------------------------------------------ record


def test_settings_that_were_changed_since_are_told(tmp_path):
    text = record.as_text(config.Settings(seed=3))
    (tmp_path / record.NAME).write_text(text.replace("seed: 3", "seed: 2"))
    with pytest.raises(
        ConfigurationError, match=r"config\.yaml: damaged, or changed by hand: .*delete the line '# sha"
    ):
        record.read(tmp_path)
    first, _, body = text.partition("\n")
    assert first.startswith("# sha256: ")
    (tmp_path / record.NAME).write_text(body.replace("seed: 3", "seed: 2"))
    assert record.read(tmp_path).seed == 2
    (tmp_path / record.NAME).write_text(f"{body}{first}\n")  # where earlier versions wrote it
    assert record.read(tmp_path).seed == 3


@given(st.data())
def test_a_record_of_which_anything_is_lost_or_changed_is_refused(data):
    text = record.as_text(config.Settings(seed=3)).encode()
    end = data.draw(st.integers(0, len(text) - 1))
    bit = data.draw(st.integers(0, 8 * len(text) - 1))
    flipped = bytearray(text)
    flipped[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder:
        for damaged in (text[:end], bytes(flipped)):
            Path(folder, record.NAME).write_bytes(damaged)
            try:
                assert record.read(Path(folder)) == config.Settings(seed=3)
            except ConfigurationError:
                continue
            assert damaged.strip() == text.strip()


def test_a_run_goes_on_with_its_settings_and_those_given_now_laid_over_them(run):
    _, first, _ = run("run=first", "model=lenet5", "gmm=repeated", "screen.ch_ratio=2", "seed=3", "data.kwargs.a=1")
    _, again, _ = run("run=first", "task=fit", "screen.ch_ratio=3")
    assert first is not None
    assert again == replace(first, task="fit", screen=config.Screen(ch_ratio=3.0))
    _, third, _ = run("run=first", "gmm=one_start")
    assert third is not None
    assert (third.gmm.n_init, third.gmm.repeats, third.screen.ch_ratio, third.task) == (1, 1, 3.0, "run")


def test_the_record_holds_every_value_so_that_no_later_default_changes_the_run(run):
    run("run=first", "seed=1")
    stored = yaml.safe_load(Path("first/config.yaml").read_text())
    names = {f"{group}.{key}" for group, inner in stored.items() if isinstance(inner, dict) for key in inner}
    assert names | {key for key, value in stored.items() if not isinstance(value, dict)} == set(config.setting_names())
    stored["gmm"]["k_max"] = 7
    del stored["gmm"]["n_init"]  # as if this version had added it
    Path("first/config.yaml").write_text(yaml.safe_dump(stored))
    _, again, _ = run("run=first")
    assert again is not None
    assert (again.gmm.k_max, again.gmm.n_init) == (7, config.Gmm().n_init)


def test_hydra_keeps_no_record_of_its_own(run):
    run("run=first", "seed=1")
    run("task=train")
    assert not list(Path().rglob(".hydra"))


@pytest.mark.parametrize("name", ["a b", "ä", "a=b", "a,b", "(1)", "#1", "it's", "x$y", "null", "2026", "1e3", "-"])
def test_a_folder_is_found_however_it_is_called_and_quoted(run, name):
    words = shlex.split(command("train", name, "seed=5"))[1:]
    code, _, stderr = run(*words)
    assert code == 0, stderr
    assert [path.name for path in Path().iterdir()] == [name]
    for written in (words[:2], ["task=train", "+" * 2 + words[1]]):
        _, again, _ = run(*written)
        assert again is not None
        assert again.seed == 5


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(str.strip))
def test_a_remedy_comes_through_shell_and_hydra_unchanged(name):
    if "${" in name:
        return
    program, task, folder = shlex.split(command("fit", name))
    assert (program, task) == ("gmmcnn", "task=fit")
    assert str(OverridesParser.create().parse_override(folder).value()) == name


# ------------------------------------------------------------------------------------------ folders without a run


@pytest.mark.parametrize("written", ["run=", "run=''", "run=null", "run=' '", "~run", "run=[a]"])
def test_no_folder_is_none(run, written):
    assert refused(run(written, "seed=1"), "names no folder; expected a run folder that can be written: run=FOLDER")
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=frist"], "frist: holds no run to go on with; did you mean first?; to start one, give a setting: gmmcnn"),
        (["run=frist", "debug=true"], "to start one, give a setting: gmmcnn task=run run=frist seed=0"),
        (["run=frist", "task=train"], "gmmcnn task=train run=frist seed=0"),
        (["run=frist", "task=screen", "screen.ch_ratio=2"], "frist: holds no run, which task=screen needs; did"),
        (["run=frist", "task=verify"], "frist: holds no run, which task=verify needs"),
        (["run=others", "seed=1"], "others: holds notes.txt and no run"),
        (["-m", "run='first'", "seed=1,2"], "run= in a sweep"),
        (["run=ä", "seed=1"], "needs quotes within: \"run='ä'\""),
    ],
)  # fmt: skip
def test_a_folder_without_a_run_is_refused_where_no_run_is_started(run, arguments, message):
    run("run=first", "seed=1")
    Path("others").mkdir()
    Path("others/notes.txt").touch()
    before = sorted(Path().rglob("*"))
    assert refused(run(*arguments), message)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("task", ["run", "train", "extract", "experiment"])
@pytest.mark.parametrize("left", [None, "run.json", ".config.yaml.12-ab.partial"])
def test_a_run_starts_in_a_new_folder_an_empty_one_or_one_that_a_refused_command_left(run, task, left):
    if left:
        Path("new").mkdir()
        (Path("new") / left).touch()
    code, settings, stderr = run("run=new", f"task={task}", "seed=4")
    assert code == 0, stderr
    assert settings is not None
    assert settings.seed == 4


def test_a_run_whose_record_of_settings_is_lost_goes_on_where_they_are_given_again(run):
    run("run=first", "seed=4")
    Path("first/config.yaml").unlink()
    Path("first/filters.csv").touch()
    Path("first/run.json").write_text('{"task": "run"}')
    assert refused(run("run=first"), "first: its config.yaml is lost; give the settings that it was made with beside")
    code, settings, stderr = run("run=first", "seed=4", "task=repair")
    assert (code, settings.seed) == (0, 4), stderr


# ------------------------------------------------------------------------------------------ damaged and earlier records


@pytest.mark.parametrize(
    "content", [b"task: [", b"run", b"- a: b", b"", b"\x00", b"\xff\xfe", b"gmm: {k_max: 1}", b"a: 1"]
)
def test_a_damaged_record_is_named_and_nothing_is_done(run, content):
    Path("first").mkdir()
    Path("first/config.yaml").write_bytes(content)
    assert refused(run("run=first", "seed=1"), "first/config.yaml: ", "; write it again, or delete it and give")
    assert Path("first/config.yaml").read_bytes() == content


def test_the_folder_of_an_earlier_version_opens_by_its_overrides(run):
    stored = Path("first/.hydra/overrides.yaml")
    stored.parent.mkdir(parents=True)
    stored.write_text("- model=lenet5\n- demo.plant=4\n- seed=3\n- run=first\n- task=train\n")
    code, settings, stderr = run("run=first", "seed=5")
    assert code == 0, stderr
    assert settings is not None
    assert (settings.model.name, settings.probe.plant, settings.seed, settings.task) == ("lenet5", 4, 5, "run")


def test_the_record_of_an_earlier_version_is_read_by_the_names_of_now(run):
    stored = yaml.safe_load(record.as_text(config.Settings()))
    del stored["probe"]["plant"], stored["probe"]["plant_strength"], stored["extract"]["forward_samples"]
    stored |= {"demo": {"plant": 4, "strength": 2.0}, "extract": stored["extract"] | {"batch_samples": 7}}
    Path("first").mkdir()
    Path("first/config.yaml").write_text(yaml.safe_dump(stored))
    _, settings, _ = run("run=first")
    assert settings is not None
    assert (settings.probe.plant, settings.probe.plant_strength, settings.extract.forward_samples) == (4, 2.0, 7)


# ------------------------------------------------------------------------------------------ several experiments


def test_another_experiment_in_the_same_folder_keeps_what_was_changed_and_nothing_of_the_first_one(run):
    run("task=experiment", "experiment=conditions", "data=cifar10", "experiment.seeds=4", "run=evidence")
    _, second, _ = run("task=experiment", "experiment=gradients", "run=evidence")
    _, alone, _ = run("task=experiment", "experiment=gradients", "data=cifar10", "experiment.seeds=4")
    assert second is not None
    assert alone is not None
    assert replace(second, run=None) == replace(alone, run=None)
    _, third, _ = run("task=experiment", "run=evidence")
    assert third == second
    assert refused(run("task=experiment", "experiment=gradient", "run=evidence"), "did you mean gradients?")
