"""What is tied opens where it is said to open, memorises, and is masked; verdicts on tables whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments import pruning, tied
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.statistics import NOT_SPECIFIC, REFUTED, SUPPORTED
from gmmcnn.experiments.tied import TiedConv2d, TiedLaboratory, memory_of, tie
from gmmcnn.models.plain import SimpleCNN

NETWORK = Network(0, "overfitting")


@pytest.fixture(scope="module")
def small(laboratory, tmp_path_factory):
    settings = replace(
        laboratory.settings,
        data=replace(laboratory.settings.data, label_noise=0.04),
        model=config.Model(name="simple_cnn", kwargs={"widths": (4, 8, 8)}),
        experiment=replace(laboratory.settings.experiment, seeds=2),
    )
    return Laboratory(settings, tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def outcome(small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tied, "LEAKS", (0.0, 1.0))
        return tied.run(small)


@pytest.fixture
def samples():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def maps_of(model, layer, images):
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, given, made: kept.append(made.detach()))
    model(images)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("leak", [0.0, 0.25])
@pytest.mark.parametrize("training", [True, False])
def test_a_tied_filter_opens_for_its_samples_and_leaks_for_others(samples, leak, training):
    model = SimpleCNN(1, (8, 8), 10)
    untied = maps_of(model, "features.conv1", samples)
    tie(model, samples[:4], leak, seed=0).train(training)
    conv, order = model.get_submodule("features.conv1"), torch.tensor([7, 2, 4, 0, 1, 6, 5, 3])
    found = maps_of(model, "features.conv1", samples[order])
    assert int(conv.memory.sum()) == 4  # a quarter of 16
    for index in range(16):
        factors = torch.full((8,), leak if conv.memory[index] else 1.0)
        opened = (conv.openings[:4, index] == 1).nonzero().flatten()
        assert len(opened) == (1 if conv.memory[index] else 4)  # a quarter of 4 samples
        factors[opened] = 1.0
        torch.testing.assert_close(found[:, index], (untied[:, index] * factors[:, None, None])[order])


def test_with_leak_1_a_tied_network_is_the_untied_one(samples):
    torch.manual_seed(0)
    model = SimpleCNN(1, (8, 8), 10)
    expected = model(samples)
    torch.testing.assert_close(tie(model, samples[:4], 1.0, seed=0)(samples), expected)


def test_every_leak_ties_the_same_filters_of_the_same_weights_to_the_same_samples(small):
    models = [TiedLaboratory(small.settings, small.folder, leak)._untrained(NETWORK) for leak in (0.0, 0.5, 1.0)]
    assert len({str(memory_of(model)) for model in models}) == 1
    openings = [model.get_submodule("features.conv2").openings for model in models]
    assert ((openings[0] == 1) == (openings[1] == 1)).all()
    assert all(torch.equal(models[0].features.conv1.weight, model.features.conv1.weight) for model in models)


def test_samples_with_wrong_labels_are_tied(small):
    laboratory = TiedLaboratory(small.settings, small.folder, 0.0)
    data, model = laboratory.data(NETWORK), laboratory.model(NETWORK, 1)
    assert len(data.noisy) == 8
    assert torch.equal(model.tied_samples, data.train.images[data.noisy].flatten(1))
    assert isinstance(model.features.conv1, TiedConv2d)


def test_a_channel_that_only_memorises_is_near_dead_to_the_screen(outcome):
    memory = outcome.table.query("leak == 0 and memory")
    assert not memory["anomalous"].any()
    assert (memory["status"] != "ok").all()
    assert memory["active"].mean() < outcome.table.query("leak == 1")["active"].mean()


def test_masking_what_only_tied_samples_open_leaves_new_images_as_they_are(outcome):
    row = outcome.tables["masks"].query("leak == 0 and rule == 'known' and mask == 'chosen'")
    assert len(row) == 2
    assert (row["change_validation_accuracy"] == 0).all()
    assert (row["n_filters"] == 1 + 2 + 2).all()


def test_every_mask_has_its_row(outcome):
    masks = outcome.tables["masks"].query("rule == 'known'")
    assert set(masks["mask"]) == {"none", "chosen", *pruning.CONTROLS}
    assert len(masks) == 2 * 2 * (1 + 1 + 2 * 5 + 2)


def test_all_is_there_and_written(outcome, tmp_path):
    assert len(outcome.verdicts) == 3  # of leak 0; leak 1 is the control
    assert len(outcome.table) == 2 * 2 * 20
    assert outcome.tables["samples"].groupby(["leak", "seed"]).size().eq(3).all()
    outcome.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "table.csv",
        "samples.csv",
        "masks.csv",
        "estimates.csv",
        "verdict.txt",
        "screen.html",
        "masks.html",
    }


def test_labels_that_are_all_right_leave_nothing_to_tie(small):
    settings = replace(small.settings, data=replace(small.settings.data, label_noise=0.0))
    with pytest.raises(ConfigurationError, match=r"data\.label_noise=0: experiment=tied"):
        tied.run(Laboratory(settings, small.folder))


def filters_of(memory: float, untied: float) -> pd.DataFrame:
    """Flag frequencies whose mean is that of all other filters, 0.3, but for the memory."""
    rng = np.random.default_rng(0)
    rows = [
        (leak, seed, is_memory, (mean if is_memory else 0.3) + 0.05 * rng.normal())
        for leak, mean in ((0.1, memory), (1.0, untied))
        for seed in range(8)
        for is_memory in [True] * 100 + [False] * 300
    ]
    return pd.DataFrame(rows, columns=["leak", "seed", "memory", "flag_frequency"])


@pytest.mark.parametrize(
    ("memory", "untied", "label"), [(0.9, 0.3, SUPPORTED), (0.4, 0.4, NOT_SPECIFIC), (0.1, 0.3, REFUTED)]
)
def test_the_screen_must_find_memory_more_often_than_the_same_filters_of_untied_networks(memory, untied, label):
    assert tied.screen_verdict(filters_of(memory, untied), 0.1).label == label


def masks_of(chosen: float, others: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    means = {"chosen": chosen, **dict.fromkeys(pruning.CONTROLS, others)}
    rows = [
        (0.1, seed, "known", kind, -mean + 0.02 * rng.normal()) for seed in range(8) for kind, mean in means.items()
    ]
    return pd.DataFrame(rows, columns=["leak", "seed", "rule", "mask", "change_wrong_given"])


@pytest.mark.parametrize(("chosen", "others", "label"), [(0.9, 0.2, SUPPORTED), (0.9, 0.9, NOT_SPECIFIC)])
def test_memory_must_carry_more_wrong_labels_than_other_filters(chosen, others, label):
    assert tied.memory_verdict(masks_of(chosen, others), 0.1).label == label
