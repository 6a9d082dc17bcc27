import copy
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmmcnn import config
from gmmcnn.data import Images, Splits
from gmmcnn.errors import TrainingError
from gmmcnn.models import BUILT_IN, build, load_checkpoint
from gmmcnn.models.training import METRICS, TrainingResult, evaluate, require_same, train

QUICK = config.Train(epochs=3, batch_size=32)


class Net(nn.Module):
    """Everything whose state a resumed training needs: dropout, BatchNorm, weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.dropout, self.head = nn.Dropout(0.3), nn.Linear(6 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.norm(self.conv(images))), 2)
        return self.head(self.dropout(maps.flatten(1)))


@pytest.fixture(scope="module")
def few_digits(digits: Splits) -> Splits:
    """200 training and 100 validation images."""
    return replace(
        digits,
        train=Images(digits.train.images[:200], digits.train.labels[:200]),
        validation=Images(digits.validation.images[:100], digits.validation.labels[:100]),
    )


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_folder_holds_what_it_should(few_digits: Splits, tmp_path: Path) -> None:
    settings = config.Train(epochs=4, checkpoint_epochs=[2, 4])
    model = Net()

    result = train(model, few_digits, settings, tmp_path / "new" / "folder", seed=0)

    names = sorted(path.name for path in result.folder.iterdir())
    assert names == ["best.pt", "digests.json", "epoch-0002.pt", "epoch-0004.pt", "last.pt", "metrics.csv"]
    assert [epoch for epoch, _ in result.checkpoints] == [2, 4]
    final = Net(seed=9)
    load_checkpoint(final, result.checkpoints[-1][1])
    assert same_weights(final, model)
    pd.testing.assert_frame_equal(pd.read_csv(result.folder / "metrics.csv"), result.metrics, check_exact=True)
    assert tuple(result.metrics.columns) == METRICS
    assert result.metrics["epoch"].tolist() == [1, 2, 3, 4]


def test_the_metrics_are_those_of_the_checkpoints(digits: Splits, digits_training: TrainingResult) -> None:
    model = build_simple_cnn(digits)
    metrics = digits_training.metrics.set_index("epoch")
    for epoch, path in [*digits_training.checkpoints, (digits_training.best_epoch, digits_training.best)]:
        load_checkpoint(model, path)
        assert evaluate(model, digits.train.images, digits.train.labels) == tuple(
            metrics.loc[epoch, ["train_loss", "train_accuracy"]]
        )
        assert evaluate(model, digits.validation.images, digits.validation.labels) == tuple(
            metrics.loc[epoch, ["validation_loss", "validation_accuracy"]]
        )
    assert metrics["validation_loss"].idxmin() == digits_training.best_epoch


def build_simple_cnn(data: Splits) -> nn.Module:
    return build(
        config.Model(name="simple_cnn"),
        in_channels=data.in_channels, image_size=data.image_size, n_classes=data.n_classes, seed=1,
    )  # fmt: skip


def test_digits_are_learned(digits_training: TrainingResult) -> None:
    last = digits_training.metrics.iloc[-1]
    assert last["validation_accuracy"] > 0.9
    assert last["train_loss"] < 0.5 * digits_training.metrics["train_loss"].iloc[0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_network_learns(few_digits: Splits, tmp_path: Path, name: str) -> None:
    shape = {"in_channels": 1, "image_size": (8, 8), "n_classes": 10}
    model = build(config.Model(name=name), **shape, seed=0)  # type: ignore[arg-type]
    chance, _ = evaluate(model, few_digits.train.images, few_digits.train.labels)

    result = train(model, few_digits, config.Train(epochs=6, batch_size=16), tmp_path, seed=0)

    assert result.metrics["train_loss"].iloc[-1] < 0.8 * chance


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_wrong_labels_can_be_learned_by_heart(few_digits: Splits, tmp_path: Path, optimizer: str) -> None:
    labels = torch.randint(10, (50,), generator=torch.Generator().manual_seed(0))
    data = replace(few_digits, train=Images(few_digits.train.images[:50], labels))
    rate = {"adam": 1e-2, "sgd": 5e-2}[optimizer]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    result = train(
        model, data, config.Train(epochs=60, batch_size=10, optimizer=optimizer, learning_rate=rate), tmp_path, seed=0
    )

    last = result.metrics.iloc[-1]
    assert last["train_accuracy"] == 1.0
    assert last["validation_accuracy"] < 0.4  # nothing to be learned about digits
    assert result.best_epoch < 30  # overfitting: the best validation loss comes early


def test_the_seed_decides(few_digits: Splits, tmp_path: Path) -> None:
    models = [Net() for _ in range(3)]
    for index, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(index)  # the global random state does not matter
        train(model, few_digits, QUICK, tmp_path / str(index), seed=seed)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_the_global_random_state_does_not_move(few_digits: Splits, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(Net(), few_digits, QUICK, tmp_path, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_settings_reach_the_optimiser(few_digits: Splits, tmp_path: Path, optimizer: str) -> None:
    """One epoch of one batch is one step, computed here by hand."""
    settings = config.Train(epochs=1, batch_size=200, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weight = model[1].weight.detach().clone().requires_grad_()
    logits = few_digits.train.images.flatten(1) @ weight.T + model[1].bias.detach()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, few_digits.train.labels), weight)
    gradient = gradient + 0.1 * weight.detach()

    train(model, few_digits, settings, tmp_path, seed=0)

    step = gradient if optimizer == "sgd" else gradient / (gradient.abs() + 1e-8)  # the first step of Adam is the sign
    # float32 gradients near zero decide the sign of Adam's step: compare where they are clear
    clear = gradient.abs() > 1e-5
    torch.testing.assert_close(model[1].weight[clear], (weight - 0.01 * step)[clear], atol=1e-5, rtol=0)
    assert clear.float().mean() > 0.8


def test_a_finished_training_returns_at_once(few_digits: Splits, tmp_path: Path) -> None:
    first, again = Net(), Net()
    result = train(first, few_digits, QUICK, tmp_path, seed=0)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    advanced: list[int] = []

    repeated = train(again, few_digits, QUICK, tmp_path, seed=0, advance=advanced.append)

    assert advanced == [3]
    assert same_weights(first, again)
    assert repeated.checkpoints == result.checkpoints
    pd.testing.assert_frame_equal(repeated.metrics, result.metrics, check_exact=True)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}


def test_progress_counts_epochs(few_digits: Splits, tmp_path: Path) -> None:
    advanced: list[int] = []
    train(Net(), few_digits, QUICK, tmp_path, seed=0, advance=advanced.append)
    assert advanced == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(QUICK, batch_size=16)}, r"train\.batch_size=32; expected train\.batch_size=16"),
        ({"settings": replace(QUICK, epochs=5)}, r"train\.epochs=3; expected train\.epochs=5"),
        (
            {"settings": replace(QUICK, checkpoint_epochs=[1])},
            r"train\.checkpoint_epochs=\[1, 2, 3\]; expected .*\[1\]",
        ),
        ({"seed": 1}, r"seed=0; expected seed=1; give what it was trained with"),
        ({"model": Net(seed=5)}, r"initial weights="),
    ],
)
def test_a_folder_of_another_training_is_refused(
    few_digits: Splits, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    train(Net(), few_digits, QUICK, tmp_path, seed=0)
    arguments = {"model": Net(), "data": few_digits, "settings": QUICK, "folder": tmp_path, "seed": 0} | change
    with pytest.raises(TrainingError, match=message) as caught:
        train(**arguments)  # type: ignore[arg-type]
    assert str(tmp_path) in str(caught.value)


def test_a_folder_of_other_data_is_refused(few_digits: Splits, tmp_path: Path) -> None:
    train(Net(), few_digits, QUICK, tmp_path, seed=0)
    labels = few_digits.train.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    with pytest.raises(TrainingError, match="was trained with data="):
        train(Net(), replace(few_digits, train=Images(few_digits.train.images, labels)), QUICK, tmp_path, seed=0)


def test_a_deleted_checkpoint_is_missed(few_digits: Splits, tmp_path: Path) -> None:
    result = train(Net(), few_digits, QUICK, tmp_path, seed=0)
    result.checkpoints[1][1].unlink()
    with pytest.raises(
        TrainingError,
        match=r"epoch-0002\.pt: missing in a training that came to epoch 3; trained again by: gmmcnn task=repair",
    ):
        train(Net(), few_digits, QUICK, tmp_path, seed=0)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "something else"])
def test_a_damaged_state_is_named(few_digits: Splits, tmp_path: Path, damage: str) -> None:
    train(Net(), few_digits, QUICK, tmp_path, seed=0)
    path = tmp_path / "last.pt"
    content = {"truncated": path.read_bytes()[:-500], "text": b"no longer a state", "empty": b""}
    torch.save(torch.ones(3), path)
    path.write_bytes(content.get(damage, path.read_bytes()))
    for ask in (partial(train, Net()), require_same):
        with pytest.raises(
            TrainingError, match=r"last\.pt: damaged, or something else .*; trained again by: gmmcnn task=repair"
        ):
            ask(data=few_digits, settings=QUICK, folder=tmp_path, seed=0)


def test_a_training_is_told_from_another_without_training(few_digits: Splits, tmp_path: Path) -> None:
    require_same(tmp_path, few_digits, QUICK, seed=0)  # none there
    train(Net(), few_digits, QUICK, tmp_path, seed=0)
    require_same(tmp_path, few_digits, QUICK, seed=0)
    with pytest.raises(TrainingError, match=r"was trained with train\.learning_rate=0\.001; expected .*=0\.1; give"):
        require_same(tmp_path, few_digits, replace(QUICK, learning_rate=0.1), seed=0)
    with pytest.raises(TrainingError, match=r"was trained with seed=0; expected seed=1"):
        require_same(tmp_path, few_digits, QUICK, seed=1)
    fewer = Images(few_digits.validation.images[1:], few_digits.validation.labels[1:])
    with pytest.raises(TrainingError, match="was trained with data="):
        require_same(tmp_path, replace(few_digits, validation=fewer), QUICK, seed=0)


def test_divergence_is_an_error_that_says_what_to_do(few_digits: Splits, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = config.Train(epochs=5, optimizer="sgd", learning_rate=1e38)
    with pytest.raises(TrainingError, match=r"epoch 1: training loss nan.*lower train\.learning_rate"):
        train(model, few_digits, settings, tmp_path, seed=0)


def test_a_lone_last_sample_does_not_upset_batch_norm(few_digits: Splits, tmp_path: Path) -> None:
    data = replace(few_digits, train=Images(few_digits.train.images[:33], few_digits.train.labels[:33]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    result = train(model, data, config.Train(epochs=1, batch_size=32), tmp_path, seed=0)
    assert np.isfinite(result.metrics.to_numpy()).all()


def test_evaluate_is_the_plain_mean(digits_cnn: nn.Module, digits: Splits) -> None:
    images, labels = digits.validation.images, digits.validation.labels
    with torch.no_grad():
        logits = copy.deepcopy(digits_cnn).double().eval()(images.double())
    loss, accuracy = evaluate(digits_cnn, images, labels)
    # float32 logits of size 10 carry errors of about 1e-6 into a mean loss of about 0.1
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    assert accuracy == float((logits.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("batch_size", [1, 7, 359, 1000])
def test_evaluate_does_not_depend_on_the_batch_size(digits_cnn: nn.Module, digits: Splits, batch_size: int) -> None:
    images, labels = digits.validation.images, digits.validation.labels
    loss, accuracy = evaluate(digits_cnn, images, labels, batch_size=batch_size)
    expected_loss, expected_accuracy = evaluate(digits_cnn, images, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-5)  # convolutions round differently at another batch size
    assert accuracy == expected_accuracy


def test_every_submodule_gets_its_own_mode_back(few_digits: Splits, tmp_path: Path) -> None:
    model = Net()
    model.norm.eval()  # frozen by its owner
    evaluate(model, few_digits.train.images, few_digits.train.labels)
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    model.eval()
    train(model, few_digits, QUICK, tmp_path, seed=0)
    assert not any(module.training for module in model.modules())


def test_evaluate_restores_the_mode_after_an_error(digits_cnn: nn.Module) -> None:
    digits_cnn.train()
    with pytest.raises(RuntimeError):
        evaluate(digits_cnn, torch.zeros(2, 5, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert digits_cnn.training


# Killing. A driver imports torch once and forks a process for each training. Some die of SIGKILL at the n-th file that
# they are about to rename, one by the hand of the driver at whatever it is doing then; another process goes on in the
# same folder.

DRIVER = """
import os, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from gmmcnn import config, data
from gmmcnn.models import training
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports the rest of torch, once for all the processes

N_EPOCHS, N_MANY_EPOCHS = 3, 60

def run(folder, n_epochs, kill_at=None):
    n_renamed, replace = 0, Path.replace
    def counted(path, target):
        nonlocal n_renamed
        n_renamed += 1
        if n_renamed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)
    Path.replace = counted
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(216, 10)
    )
    splits = data.load(config.Data(train_samples=100), seed=0)
    settings = config.Train(epochs=n_epochs, batch_size=25, checkpoint_epochs=[1, n_epochs])
    training.train(model, splits, settings, folder, seed=0)

def started(*arguments):
    pid = os.fork()
    if pid:
        return pid
    try:
        run(*arguments)
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)

def finished(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def completed(*arguments):
    if finished(started(*arguments)):
        sys.exit(f"failed: {arguments}")

root = Path(sys.argv[1])
completed(root / "whole", N_EPOCHS)
completed(root / "many-whole", N_MANY_EPOCHS)

kill_at = 1
while finished(started(root / f"killed-{kill_at}", N_EPOCHS, kill_at)) == -signal.SIGKILL:
    completed(root / f"killed-{kill_at}", N_EPOCHS)
    kill_at += 1

folder = root / "many-killed"
pid = started(folder, N_MANY_EPOCHS)
while not (folder / "metrics.csv").exists():
    time.sleep(0.001)
os.kill(pid, signal.SIGKILL)
if finished(pid) != -signal.SIGKILL:
    sys.exit("finished before it was killed")
(root / "metrics-when-killed.csv").write_bytes((folder / "metrics.csv").read_bytes())
completed(folder, N_MANY_EPOCHS)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of trainings that were killed and went on, beside whole ones."""
    root = tmp_path_factory.mktemp("killed")
    (root / "driver.py").write_text(DRIVER)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # the threads of a parent do not survive a fork
    run = subprocess.run(
        [sys.executable, root / "driver.py", root], env=one_thread, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr
    return root


def assert_same_training(folder: Path, expected: Path) -> None:
    """Same files, same metrics to the last digit, same weights to the last bit."""
    names = sorted(path.name for path in expected.iterdir())
    assert [path.name for path in sorted(folder.iterdir())] == names
    assert (folder / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    for name in names:
        if name.endswith(".pt"):
            ours, theirs = (torch.load(path / name, weights_only=True) for path in (folder, expected))
            ours, theirs = ours.get("model", ours), theirs.get("model", theirs)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_killed_before_any_of_its_files_training_ends_the_same(killed: Path) -> None:
    folders = list(killed.glob("killed-*"))
    n_kills = len(folders) - 1  # the last one found no further file to die at
    assert n_kills >= 3 * 2 + 2  # last.pt and metrics.csv of each epoch, and two checkpoints
    for folder in folders:
        assert_same_training(folder, killed / "whole")


def test_killed_from_outside_at_any_time_training_ends_the_same(killed: Path) -> None:
    assert 1 <= len(pd.read_csv(killed / "metrics-when-killed.csv")) < 60
    assert_same_training(killed / "many-killed", killed / "many-whole")


def test_only_kept_epochs_are_measured_where_that_is_asked_for(few_digits: Splits, tmp_path: Path) -> None:
    settings = config.Train(epochs=5, checkpoint_epochs=[2, 4], evaluate="kept")
    everywhere = replace(settings, evaluate="all")

    kept = train(Net(), few_digits, settings, tmp_path / "kept", seed=0)
    both = train(Net(), few_digits, everywhere, tmp_path / "all", seed=0)
    again = train(Net(), few_digits, settings, tmp_path / "kept", seed=0)

    assert kept.metrics["epoch"].tolist() == [2, 4]
    expected = both.metrics[both.metrics["epoch"].isin([2, 4])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.metrics, expected)
    pd.testing.assert_frame_equal(again.metrics, expected)
