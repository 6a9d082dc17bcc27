"""What README and docs tell people to type: commands that are taken, code that runs, links that lead somewhere."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmmcnn import cli
from gmmcnn.models.plain import LeNet5

HERE = Path(__file__).parent.parent
PAGES = [HERE / "README.md", HERE / "CONTRIBUTING.md", HERE / "SECURITY.md", *sorted((HERE / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line.startswith("gmmcnn ") or line == "gmmcnn"})


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_the_command_line_takes(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command.replace("...", ""), comments=True)[1:]
    cli.check([cli._normalise(argument) for argument in arguments])


def test_commands_are_found():
    assert len(commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_readme_is_read_in_three_minutes():
    assert len((HERE / "README.md").read_text().splitlines()) <= 120


def test_the_example_of_the_readme_runs(digits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(HERE / "README.md", "python")
    torch.manual_seed(0)
    images, labels = digits.train.images[:400], digits.train.labels[:400]
    model = LeNet5(in_channels=1, image_size=(8, 8), n_classes=10).eval()
    names = {"model": model, "images": images, "labels": labels}
    exec(example, names)
    assert len(names["analysis"].samples) == 400
    assert (tmp_path / "report.html").stat().st_size > 1e5


def run(command: str, *more: str) -> None:
    arguments = [*shlex.split(command, comments=True)[1:], "engine.threads=1", *more]
    assert cli._command_line(arguments) in (0, None), command


@pytest.mark.slow
def test_the_quick_start_runs_from_top_to_bottom(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    page = HERE / "docs" / "quickstart.md"
    whole, again = blocks(page, "sh")
    run(whole)
    for line in again.splitlines():
        run(line)
    assert (tmp_path / "first" / "report.html").exists()
    capsys.readouterr()
    tables, in_python = blocks(page, "python")
    exec(tables, {})
    assert "memorisation_rank" in capsys.readouterr().out
    exec(in_python, {})
    assert capsys.readouterr().out == blocks(page, "text")[0]
    assert (tmp_path / "digits.html").exists()


@pytest.mark.slow
def test_a_network_and_a_folder_of_pictures_never_seen_are_analysed_as_the_page_says(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = HERE / "docs" / "own-network.md"
    network, in_python = blocks(page, "python")
    Path("mynet.py").write_text(network)
    exec(network, names := {"__name__": "mynet"})
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), "net.pt")
    rng = np.random.default_rng(0)
    for kind in range(3):
        (folder := Path("pictures") / f"kind{kind}").mkdir(parents=True)
        for n in range(90):
            Image.fromarray(rng.integers(0, 256, (30, 28, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    dry, real = blocks(page, "sh")[0].splitlines()
    run(dry)
    assert "features.4" in capsys.readouterr().out
    assert not Path("mine").exists()
    run(real)
    assert Path("mine/report.html").exists()
    images, labels = torch.rand(200, 3, 24, 24), np.arange(200) % 3
    exec(in_python, {"train_images": images, "train_labels": labels})
    assert Path("mine.html").exists()
    sys.modules.pop("mynet", None)


def small_network() -> dict[str, object]:
    """What the pages take as given: the reader's own network, samples and loop, and maps."""
    torch.manual_seed(0)
    images, labels = torch.rand(400, 1, 8, 8), np.arange(400) % 10
    model = LeNet5(in_channels=1, image_size=(8, 8), n_classes=10).eval()
    given = {"model": model, "images": images, "labels": labels, "train_images": images, "epochs": 2}
    return given | {"train_one_epoch": lambda _: None, "maps": np.random.default_rng(0).random((3, 60, 25), np.float32)}


def test_the_page_on_python_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = small_network()
    first, monitored = blocks(HERE / "docs" / "python.md", "python")
    exec(first, names)
    assert names["sweep"].n_components_.shape == (3,)
    monitored = monitored.replace(".show()", "")  # which opens a browser
    exec(monitored, names)
    assert names["monitor"].history["epoch"].tolist() == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "analysis.npz", "last.html"}


def test_thresholds_are_moved_as_the_page_on_choosing_says(capsys):
    names = small_network()
    exec("import gmmcnn\nanalysis = gmmcnn.analyze(model, images, labels, samples=200)", names)
    (block,) = blocks(HERE / "docs" / "choosing.md", "python")
    exec(block, names)
    counts = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [count[0] for count in counts] == ["2", "5", "8"]


def test_maps_of_ones_own_are_clustered_as_the_page_on_stores_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = HERE / "docs" / "stores.md"
    (made,), (command,) = blocks(page, "python"), blocks(page, "sh")
    exec(made, {})
    run(command)
    assert Path("given/filters.csv").exists()


def test_every_block_of_python_is_run_by_one_of_these():
    run_here = {
        "README.md": 1,
        "quickstart.md": 2,
        "own-network.md": 2,
        "python.md": 2,
        "choosing.md": 1,
        "stores.md": 1,
    }
    assert {page.name: n for page in PAGES if (n := len(blocks(page, "python")))} == run_here


SMALLER = [
    "train.epochs=2", "data.train_samples=240", "probe.samples=60", "gmm.k_max=3", "gmm.n_init=1", "gmm.repeats=1",
    "prune.controls=1",
]  # fmt: skip
"""Said after a command that would start a run: what it does stays the same, and takes seconds."""
ON_THEIR_PAGES = ("run=first", "mynet:Net", "run=given")
"""Commands that the tests above run in the order of their pages."""


def need(command: str) -> str | None:
    """What a command needs that a test has not."""
    command = command.partition("  #")[0]
    if "hydra/launcher=slurm" in command or "cluster=dask_slurm" in command:
        return "Slurm"  # tests/multirun/test_cluster.py has one, and runs sweeps there
    if "hydra.launcher.gpus_per_job=1" in command:
        return "a GPU"
    if "task=experiment" in command:
        return "hours"  # tests/experiments runs each of them at experiment.size=smoke
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_needs_a_cluster_or_a_gpu_is_marked_in_the_page(page):
    found = re.findall(r"^(?:<!-- needs ([\w ]+) -->\n)?```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for marked, block in found:
        needed = {need(line) for line in block.splitlines() if line.startswith("gmmcnn")} - {None, "hours"}
        assert needed == ({marked} if marked else set()), block


def test_no_command_slips_through():
    needs = [need(command) for command in commands()]
    assert (needs.count("Slurm"), needs.count("a GPU")) == (4, 1)
    assert len(needs) - needs.count("hours") - 4 > 25


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands speak of: a run, maps, a package, weights, pictures."""
    home = tmp_path_factory.mktemp("world")
    (home / "my_package.py").write_text(
        "import torch\nfrom gmmcnn.models.plain import LeNet5\n"
        "class Net(LeNet5):\n    def __init__(self):\n        super().__init__(1, (8, 8), 10)\n"
        "class Images(torch.utils.data.Dataset):\n"
        "    def __init__(self, train):\n        self.images = torch.rand(260, 1, 8, 8)\n"
        "    def __len__(self):\n        return 260\n"
        "    def __getitem__(self, index):\n        return self.images[index], index % 10\n"
    )
    torch.manual_seed(0)
    torch.save(LeNet5(in_channels=1, image_size=(8, 8), n_classes=10).state_dict(), home / "net.pt")
    rng = np.random.default_rng(0)
    np.save(home / "maps.npy", rng.random((120, 4, 5, 5), np.float32))
    for kind in ("cats", "dogs"):
        (home / "DIR" / kind).mkdir(parents=True)
        for n in range(160):
            Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(home / "DIR" / kind / f"{n}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run("gmmcnn run=FOLDER", *SMALLER, "probe.batches=2")
    dated = home / "runs" / "2026-11-22" / "10-00-00-1a2b3c"
    shutil.copytree(home / "FOLDER", dated)
    return home


def to_run_here() -> list[str]:
    a_sweep = [c for c in commands() if "sweep=" in c or (" -m " in c and "run=" not in c)]
    here = [c for c in commands() if need(c) is None and c not in a_sweep]
    return [command for command in here if not any(told in command for told in ON_THEIR_PAGES)]


@pytest.mark.slow
@pytest.mark.parametrize("command", to_run_here())
def test_a_command_runs(command, world, monkeypatch):
    if "fashion_mnist" in command and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs the Fashion-MNIST files (Debian: apt-get install dataset-fashion-mnist)")
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world)
    words = shlex.split(command, comments=True)[1:]
    goes_on = any(word.startswith("run=") for word in words)
    starts = not goes_on and not {"--help", "task=doctor"} & set(words) and "task=doctor estimate=true" not in command
    smaller = (
        [] if not starts else [s for s in SMALLER if "extract.source" not in command or s.startswith(("probe", "gmm"))]
    )
    monkeypatch.setattr(sys, "argv", ["gmmcnn", *words, *smaller, *(["engine.threads=1"] if starts else [])])
    monkeypatch.setattr(cli, "_exit_codes", [])
    code = None
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    assert not code, command


@pytest.mark.slow
def test_the_sweeps_of_the_page_run_one_after_the_other(tmp_path):
    small = ["task=train", "train.epochs=1", "data.train_samples=60"]
    first, *then = [line for block in blocks(HERE / "docs" / "clusters.md", "sh")[:2] for line in block.splitlines()]
    for command in (first, *then):
        words = shlex.split(command, comments=True)[1:]
        more = small if any(word.startswith("seed=") for word in words) else []
        done = subprocess.run(
            [sys.executable, "-m", "gmmcnn", *words, *more], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
    assert len(list((tmp_path / "sweeps" / "first").glob("seed-*"))) == 12
    assert (tmp_path / "sweeps" / "first" / "sweep.html").exists()
