"""The monitor: the counts of an analysis, epoch by epoch, in a training that does not notice."""

import random
import tempfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

import gmmcnn
from gmmcnn import progress as console
from gmmcnn.errors import CaptureError, ConfigurationError, DataError
from gmmcnn.monitor import COLUMNS, NOTE

QUICK = {"k_max": 4, "engine": "cpu"}


def small_network(seed: int = 0) -> nn.Sequential:
    """Two convolutions with batch normalisation and dropout, for 8 x 8 pixels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 10),
    )  # fmt: skip


class Augmented(Dataset):
    """Images and labels, changed at random by the generators of Python, NumPy and torch at every access."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(self.images.shape[1:]) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        return self.images[index] + noise, self.labels[index]


@pytest.fixture
def images(digits):
    return digits.train.images[:150]


@pytest.fixture
def network(digits):
    """A small network after an epoch, with gradients."""
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_epoch(model, optimizer, DataLoader(TensorDataset(digits.train.images[:300], digits.train.labels[:300]), 50))
    return model


def train_epoch(model, optimizer, loader):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def everything_about(model):
    """All of a model's state that a forward pass or a careless observer could change, and all random states."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "versions": {name: value._version for name, value in model.state_dict(keep_vars=True).items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "wants gradients": [p.requires_grad for p in model.parameters()],
        "gradients enabled": torch.is_grad_enabled(),
        "torch": torch.get_rng_state(),
        "numpy": (numpy_state[1].tolist(), *numpy_state[2:]),
        "python": random.getstate(),
    }


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"batches": 2, "scope": "network", "average": "mean", "dtype": "float16"}])
def test_the_counts_are_those_of_an_analysis(network, images, settings):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=75, **settings, **QUICK)
    row = monitor.step(1)
    settings = {name: value for name, value in settings.items() if name != "batches"}
    analysis = gmmcnn.analyze(network, monitor.images, samples=75, repeats=1, **settings, **QUICK)
    batches = analysis.screening.batches
    assert analysis.fits.n_batches == len(monitor.images) // 75
    for name in ("flagged", "unbalanced", "separated", "active"):
        assert row[name] == batches.groupby("batch")[name].sum().mean()
    for name, status in {"live": "ok", "near_dead": "near_dead", "dead": "dead"}.items():
        assert row[name] == (batches["status"] == status).groupby(batches["batch"]).sum().mean()
    pd.testing.assert_frame_equal(monitor.analysis.filters, analysis.filters)
    pd.testing.assert_frame_equal(monitor.analysis.outliers, analysis.outliers)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_model_and_all_random_states_come_back_exactly(network, images, enabled):
    network.train()
    network[5].eval()  # a frozen normalisation in a network that trains
    network[0].weight.requires_grad_(False)
    network[4].bias.grad = None
    with torch.set_grad_enabled(enabled):
        before = everything_about(network)
        monitor = gmmcnn.OverfittingMonitor(network, Augmented(images, images[:, 0, 0, 0]), samples=50, **QUICK)
        assert_same(everything_about(network), before)
        monitor.step(1)
        assert_same(everything_about(network), before)


def test_a_training_ends_with_the_same_weights_as_without(digits):
    data = Augmented(digits.train.images[:200], digits.train.labels[:200])

    def train(monitored):
        model = small_network()
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        loader = DataLoader(data, batch_size=50, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        monitor = gmmcnn.OverfittingMonitor(model, loader, samples=60, **QUICK) if monitored else None
        for epoch in range(3):
            train_epoch(model, optimizer, loader)
            if monitor:
                monitor.step(epoch)
        return everything_about(model)

    with_it, without = train(True), train(False)
    for state in (with_it, without):
        state["gradients"] = [gradient for _, gradient in state["gradients"]]
    assert_same(with_it, without)


def test_a_step_between_forward_and_backward_pass(network, images):
    """A frozen normalisation's buffers are kept for the backward pass, which refuses them once they were written to."""
    network.eval()
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, **QUICK)
    loss = network(images[:10]).square().sum()
    monitor.step(1)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_step_that_fails_leaves_the_model_as_it_was(network, images):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, **QUICK)
    monitor.step(1)
    with torch.no_grad():
        network[4].weight[2, 0, 0, 0] = torch.nan
    before = everything_about(network)
    with pytest.raises(CaptureError, match=r"layer '4', filter 2, sample 0.*has training diverged"):
        monitor.step(2)
    torch.testing.assert_close(everything_about(network), before, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        network[4].weight[2] = 0.1
    monitor.step(2)
    assert monitor.history["epoch"].tolist() == [1, 2]


def test_history_holds_a_row_for_each_epoch_looked_at(network, images):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, every=3, **QUICK)
    assert monitor.history.empty
    assert tuple(monitor.history.columns) == COLUMNS
    rows = [monitor.step(epoch) for epoch in range(1, 6)]
    assert [row is None for row in rows] == [False, True, True, False, True]
    assert monitor.history.to_dict("records") == [rows[0], rows[3]]
    assert monitor.history["epoch"].tolist() == [1, 4]
    assert {name: rows[0][name] for name in COLUMNS[1:]} == {name: rows[3][name] for name in COLUMNS[1:]}
    assert rows[0]["live"] + rows[0]["near_dead"] + rows[0]["dead"] <= 10
    rows[0]["flagged"] = -1
    assert (monitor.history["flagged"] >= 0).all()


def test_the_figure_shows_the_history(network, images):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, **QUICK)
    monitor.step(0), monitor.step(1)
    curves = {curve.name: curve for curve in monitor.figure().data}
    assert set(curves) == {"flagged", "unbalanced", "separated", "active", "live"}
    assert list(curves["live"].y) == monitor.history["live"].tolist()
    assert "no detector" in monitor.figure().layout.title.text


def test_the_page_of_the_last_epoch(network, images, tmp_path):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, **QUICK)
    with pytest.raises(ConfigurationError, match="no epoch has been looked at"):
        _ = monitor.analysis
    monitor.step(7)
    page = monitor.analysis.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Sequential, epoch 7" in page


def test_auto_looks_as_often_as_its_share_of_time_allows(network, images, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("gmmcnn.monitor.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, every="auto", **QUICK)
    fit = monitor._fit

    def fit_for_a_second():
        clock[0] += 1
        return fit()

    monkeypatch.setattr(monitor, "_fit", fit_for_a_second)
    looked_at = []
    for epoch in range(1, 19):
        clock[0] += 4  # seconds of training: five epochs are twenty times a step
        looked_at += [epoch] * (monitor.step(epoch) is not None)
    assert looked_at == [1, 2, 7, 12, 17]
    assert list(monitor.history["epoch"]) == looked_at


def test_every_kind_of_probe_gives_the_same_images(network, images):
    data = TensorDataset(images, torch.arange(len(images)))
    kinds = (images, images.numpy(), data, DataLoader(data, batch_size=7, shuffle=True))
    drawn = [gmmcnn.OverfittingMonitor(network, kind, samples=60, batches=2, **QUICK).images for kind in kinds]
    assert drawn[0].shape == (120, 1, 8, 8)
    assert len({tuple(image.flatten().tolist()) for image in drawn[0]}) > 110  # disjoint batches; digits hardly repeat
    for other in drawn[1:]:
        assert torch.equal(other, drawn[0])
    another = gmmcnn.OverfittingMonitor(network, images, samples=60, batches=2, random_state=1, **QUICK).images
    assert not torch.equal(another, drawn[0])


def test_of_a_loader_only_the_samples_of_its_sampler_are_drawn(network, images):
    data = TensorDataset(images, torch.arange(len(images)))
    training = DataLoader(data, batch_size=7, sampler=SubsetRandomSampler(range(40, 80)))
    drawn = gmmcnn.OverfittingMonitor(network, training, **QUICK).images
    assert sorted(drawn.flatten(1).tolist()) == sorted(images[40:80].flatten(1).tolist())


def test_the_probe_is_a_copy(network, images):
    given = images.clone()
    monitor = gmmcnn.OverfittingMonitor(network, given, samples=50, **QUICK)
    first = monitor.step(1)
    given.zero_()
    assert monitor.step(2) == first | {"epoch": 2}


def test_two_hundred_samples_are_drawn_or_all_where_there_are_fewer(network, digits):
    assert len(gmmcnn.OverfittingMonitor(network, digits.train.images, **QUICK).images) == 200
    assert len(gmmcnn.OverfittingMonitor(network, digits.train.images[:90], **QUICK).images) == 90
    assert (
        len(gmmcnn.OverfittingMonitor(network, digits.train.images[:90], samples=40, batches=9, **QUICK).images) == 80
    )


def test_nothing_is_written_to_disk(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    gmmcnn.OverfittingMonitor(network, images, samples=50, **QUICK).step(1)
    assert list(tmp_path.iterdir()) == []


def test_only_the_layers_asked_for_are_counted(network, images):
    row = gmmcnn.OverfittingMonitor(network, images, samples=50, layers=["4"], **QUICK).step(1)
    assert row["live"] + row["near_dead"] + row["dead"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probe": torch.zeros(0, 1, 8, 8)}, "probe: there are no samples"),
        ({"probe": TensorDataset(torch.zeros(0, 1, 8, 8))}, "probe: there are no samples"),
        ({"probe": iter([1])}, "probe: a list_iterator; expected a Tensor, ndarray, map-style Dataset or DataLoader"),
        ({"probe": torch.zeros(50, 8, 8)}, r"probe: shape \(50, 8, 8\) in a batch"),
        ({"probe": [{"image": 1}] * 50}, r"probe: sample \d+ is a dict; expected a tensor"),
        ({"samples": 151}, "samples=151: there are 150 images"),
        ({"samples": 10, "k_max": 10}, "a batch has 10 samples; expected more than k_max=10"),
        ({"batches": 0}, "probe.batches=0: expected a whole number >= 1, or all"),
        ({"every": 0}, "every=0: expected a whole number >= 1, or 'auto'"),
        ({"every": "always"}, "every='always': expected a whole number >= 1, or 'auto'"),
        ({"k_maxx": 3}, "k_maxx: no such setting; did you mean k_max?"),
        ({"layers": ["9"]}, "layer '9': the model has no convolution of that name"),
    ],
)
def test_wrong_arguments_are_named(network, images, arguments, message):
    with pytest.raises((ConfigurationError, CaptureError, DataError), match=message):
        gmmcnn.OverfittingMonitor(network, **{"probe": images} | arguments)


def test_a_network_without_an_activation_is_refused_with_the_reason(images):
    with pytest.raises(CaptureError, match="no layer can be analysed: 0: no activation follows"):
        gmmcnn.OverfittingMonitor(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), images, tap="post_activation")


def test_epochs_ascend(network, images):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, every=2, **QUICK)
    monitor.step(3)
    for epoch in (3, 2):
        with pytest.raises(ConfigurationError, match=f"epoch={epoch}: epoch 3 has been looked at already"):
            monitor.step(epoch)
    assert monitor.step(4) is None
    with pytest.raises(ConfigurationError, match="epoch=4: epoch 4 has been"):
        monitor.step(4)


def test_what_the_count_cannot_tell_is_said_once_and_to_people_only(network, images, capsys, monkeypatch):
    monitor = gmmcnn.OverfittingMonitor(network, images, samples=50, layers=["0"], **QUICK)
    console.note.cache_clear()
    monitor.step(1)
    assert capsys.readouterr() == ("", "")
    console.note.cache_clear()
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take any file for a terminal
    monitor.step(2), monitor.step(3)
    assert capsys.readouterr() == ("", NOTE + "\n")
    assert "do not detect overfitting" in NOTE
