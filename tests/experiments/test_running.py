"""What the command line starts: every experiment by its name, results where they are promised."""

from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

from gmmcnn import config
from gmmcnn.cli import CONFIG_MODULE
from gmmcnn.errors import ConfigurationError
from gmmcnn.run.folder import Run
from gmmcnn.tasks import TASKS


@pytest.mark.parametrize("name", config.EXPERIMENTS)
def test_every_name_is_an_experiment_and_an_option(name):
    assert callable(import_module(f"gmmcnn.experiments.{name}").run)
    assert (Path(str(files(CONFIG_MODULE))) / "experiment" / f"{name}.yaml").is_file()


def test_make_evidence_runs_them_all_but_the_search_of_hours():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    short = [name for name in config.EXPERIMENTS if name != "conditions"]
    assert f"for name in {' '.join(short)}; do" in makefile


def test_an_experiment_leaves_its_results_in_the_run_folder_and_says_its_verdict(laboratory, capsys):
    settings = replace(laboratory.settings, experiment=config.Experiment(name="overfitting", size="smoke"))
    job = Run(settings, laboratory.folder)
    TASKS["experiment"](job)
    assert (laboratory.folder / "config.yaml").exists()
    results = laboratory.folder / "experiments" / "overfitting-smoke"
    said = " ".join(capsys.readouterr().out.split())
    assert (results / "table.csv").exists()
    assert (results / "verdict.txt").read_text().splitlines()[0] in said
    assert job.timings["overfitting"] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "astrology"}, "experiment=astrology"),
        ({"size": "huge"}, "experiment.size=huge"),
        ({"seeds": 0}, "seeds=0"),
        ({"finetune_epochs": -1}, "finetune_epochs=-1"),
    ],
)
def test_impossible_settings_are_named(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        config.Experiment(**wrong)


@pytest.mark.parametrize(
    "given", [{"model": config.Model(checkpoint="w.pt")}, {"extract": config.Extract(source="m.npy")}]
)
def test_an_experiment_that_trains_takes_no_trained_network_and_no_stored_activations(laboratory, given):
    job = Run(replace(laboratory.settings, **given), laboratory.folder)
    with pytest.raises(ConfigurationError, match="trains its own networks"):
        TASKS["experiment"](job)
