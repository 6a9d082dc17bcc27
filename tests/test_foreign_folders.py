"""A run folder that somebody else filled runs nothing, reads nothing outside itself, and names what was wrong."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gmmcnn import cli, config
from gmmcnn.errors import ConfigurationError
from gmmcnn.featuremaps import ActivationStore
from gmmcnn.featuremaps.taps import Tap
from gmmcnn.filters.fitting import find_fits, fit_key, fit_store
from gmmcnn.names import runs_foreign_code
from gmmcnn.run import record

OWN = """
from pathlib import Path
from torch import nn
Path("imported").touch()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(72, 10)
    def forward(self, images):
        return self.head(self.conv(images).relu().flatten(1))
"""


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run the command line in this process and an empty folder: (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gmmcnn", *arguments])
        monkeypatch.setattr(cli, "_exit_codes", [])
        for name in ("own", "leaves"):
            sys.modules.pop(name, None)
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def test_only_who_asks_for_it_runs_the_code_that_a_folder_names(here, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    assert here("model.name=own:Net", "debug=tiny", "train.epochs=1", "run=theirs") == (0, "")
    imported = tmp_path / "imported"
    imported.unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    for task in ("screen", "samples", "report", "verify"):
        assert here(f"task={task}", "run=theirs")[0] == 0, task
    for task in ("run", "train", "extract", "fit", "prune", "doctor"):
        code, said = here(f"task={task}", "run=theirs")
        assert code == 2
        assert "model.name=own:Net" in said
        assert f"gmmcnn task={task} run=theirs trust=true" in said
    assert not imported.exists()
    assert here("task=train", "run=theirs", "model.name=own:Net") == (0, "")
    assert imported.exists()
    imported.unlink()
    assert here("task=train", "run=theirs", "trust=true") == (0, "")
    assert imported.exists()
    assert here("task=train", "run=theirs")[0] == 2, "one command's word is not the next one's"


@pytest.mark.parametrize(
    ("key", "name", "runs"),
    [
        ("model.name", "lenet5", False),
        ("model.name", "torchvision.models:resnet18", False),
        ("model.name", "torchvision.models.segmentation.fcn_resnet50", False),
        ("model.name", "torch.nn:Identity", False),
        ("model.name", "gmmcnn.models.resnet:resnet8", False),
        ("model.name", "os:system", True),
        ("model.name", "torch:load", True),  # unpickles, if asked to
        ("model.name", "torch.hub:load", True),
        ("model.name", "torchvision.models._api:load_state_dict_from_url", True),
        ("model.name", "torchvision.models.densenet:load_state_dict_from_url", True),
        ("model.name", "gmmcnn.names:import_dotted", True),
        ("model.name", "torchvision.modelsandmore:Net", True),
        ("model.name", "torch.nn:Identity\nos:system", True),
        ("data.name", "digits", False),
        ("data.name", "torch.nn:Identity", True),
        ("data.name", "torchvision.datasets:LSUN", True),  # unpickles its cache
    ],
)
def test_which_names_are_looked_up_unasked(key, name, runs):
    assert runs_foreign_code(key, name) is runs


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.mine._target_=os.system",
        "hydra.run.dir=/elsewhere",
        "hydra/launcher=submitit_slurm",
        "--config-dir=/elsewhere",
        "-m",
        "+new=1",
        "not an override",
    ],
)
def test_overrides_of_an_earlier_version_are_settings_and_nothing_else(here, tmp_path, override):
    (tmp_path / "theirs" / ".hydra").mkdir(parents=True)
    (tmp_path / "theirs" / ".hydra" / "overrides.yaml").write_text(json.dumps(["seed=1", override]))
    code, said = here("task=train", "run=theirs")
    assert code == 2
    assert said.count("\n") == 1
    assert not (tmp_path / "theirs" / "config.yaml").exists()


def test_a_network_that_an_earlier_version_stored_needs_the_word_too(here, tmp_path):
    (tmp_path / "theirs" / ".hydra").mkdir(parents=True)
    (tmp_path / "theirs" / ".hydra" / "overrides.yaml").write_text('- "model.name=own:Net"\n')
    (tmp_path / "own.py").write_text(OWN)
    code, said = here("task=train", "run=theirs")
    assert (code, "trust=true" in said, (tmp_path / "imported").exists()) == (2, True, False)


def aliases() -> str:
    lines = ["seed: 0", "data: &a0 {name: digits}"]
    return "\n".join([*lines, *(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])


@pytest.mark.parametrize(
    "content",
    [aliases(), "seed: 0\ndata: " + "[" * 5000, "5", "- seed", "\0", "seed: 0\ndata: {}\n# " + "x" * (1 << 20)],
    ids=["aliases that make gigabytes", "deep", "a number", "a list", "a zero", "long"],
)
def test_a_record_that_is_none_is_damaged_and_costs_no_memory(tmp_path, content):
    (tmp_path / record.NAME).write_text(content)
    with pytest.raises(ConfigurationError, match="damaged; expected the settings of that run"):
        record.read(tmp_path)


@pytest.mark.parametrize("where", ["import", "init", "forward", "training"])
def test_sys_exit_in_a_network_is_an_error(here, tmp_path, where):
    leave = "__import__('sys').exit(0)"
    lines = {
        "import": OWN + leave,
        "init": OWN.replace("super().__init__()", f"super().__init__(); {leave}"),
        "forward": OWN.replace("return", f"{leave}; return"),
        "training": OWN.replace("return", f"if self.training: {leave}\n        return"),
    }
    (tmp_path / "leaves.py").write_text(lines[where])
    code, said = here("task=train", "model.name=leaves:Net", "data.train_samples=50", "train.epochs=1", "run=mine")
    assert code in (1, 2)
    assert "sys.exit(0)" in said


def test_a_folder_of_options_that_is_not_there(here):
    assert here("--config-dir=/no/such/folder") == (
        2,
        "gmmcnn: --config-dir=/no/such/folder: no such folder; expected one with more options\n",
    )


HOSTILE = [
    "/absolute/Conv",
    "../../up",
    "..",
    ".",
    "a\nb",
    "a\0b",
    "=cmd|'/C calc'!A0",
    "x" * 300,
    "Conv",
    "conv",
    "CON",
    "<script>alert(1)</script>",
    "\x1b[31mred",
    "ü",
    "",
]


def test_layers_of_any_name_are_kept_inside_the_folder_and_apart(tmp_path):
    (tmp_path / "inside").mkdir()
    taps = [Tap(layer=name, n_filters=1, height=2, width=2, description="x") for name in HOSTILE]
    store = ActivationStore.create(tmp_path / "inside" / "maps.zarr", taps, 12, block_samples=12)
    for number, name in enumerate(HOSTILE):
        maps = np.random.default_rng(number).normal(size=(1, 12, 2, 2))
        store.write(name, 0, maps.astype(np.float32))
    store.commit(0)
    store = ActivationStore.open(tmp_path / "inside" / "maps.zarr")
    settings = config.Settings(gmm=config.Gmm(k_max=2, repeats=1))
    fits = fit_store(store, tmp_path / "inside" / "fits", n_samples=12, settings=settings)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    kept = [path.name for path in (tmp_path / "inside" / "fits" / fit_key(settings, 12)).iterdir()]
    assert len({name.lower() for name in kept}) == len(HOSTILE), "no two share a folder, whatever the file system"
    assert find_fits(tmp_path / "inside" / "fits", HOSTILE, 12, settings) is not None
    scores = [fits.layers[name].scores.tobytes() for name in HOSTILE]
    assert len(set(scores)) == len(HOSTILE)


def test_fits_of_an_earlier_version_lie_under_the_name_as_it_was(tmp_path):
    taps = [Tap(layer="Features.Conv", n_filters=1, height=2, width=2, description="x")]
    store = ActivationStore.create(tmp_path / "maps.zarr", taps, 12, block_samples=12)
    store.write("Features.Conv", 0, np.random.default_rng(0).normal(size=(1, 12, 2, 2)).astype(np.float32))
    store.commit(0)
    settings = config.Settings(gmm=config.Gmm(k_max=2, repeats=1))
    fit_store(store, tmp_path / "fits", n_samples=12, settings=settings)
    [made] = (tmp_path / "fits" / fit_key(settings, 12)).iterdir()
    made.rename(made.with_name("Features.Conv"))
    assert find_fits(tmp_path / "fits", ["Features.Conv"], 12, settings) is not None


@pytest.mark.parametrize("part", ["../../secret.npz", "/secret.npz", "batch-0000/../../secret.npz", 3, None])
def test_a_record_of_fits_leads_nowhere_else(tmp_path: Path, part):
    settings = config.Settings()
    folder = tmp_path / "fits" / fit_key(settings, 12) / "conv"
    folder.mkdir(parents=True)
    (tmp_path / "secret.npz").touch()
    (folder / "complete.json").write_text(json.dumps({"parts": [part]}))
    assert find_fits(tmp_path / "fits", ["conv"], 12, settings) is None
