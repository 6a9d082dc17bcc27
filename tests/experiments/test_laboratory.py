"""The networks under comparison: as many updates on the same images, trained and analysed no more than once."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from gmmcnn import config
from gmmcnn.experiments import conditions
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.models import training

OVERFITTING, CONTROL = Network(1, "overfitting"), Network(1, "control")


def work_done(laboratory: Laboratory) -> int:
    return len(pd.read_csv(laboratory.folder / "log.csv"))


def test_both_make_as_many_updates_and_start_alike(laboratory):
    updates = []
    for network in (OVERFITTING, CONTROL):
        settings, splits = laboratory.settings_of(network).train, laboratory.data(network)
        a_round = settings.kept_epochs[0]
        assert settings.kept_epochs == [a_round * number for number in laboratory.rounds]
        updates.append(a_round * len(splits.train))
    assert updates[0] == updates[1]
    states = [laboratory._untrained(network).state_dict() for network in (OVERFITTING, CONTROL)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_probe_images_are_training_images_of_both(laboratory):
    probe = laboratory.probe(OVERFITTING)
    assert torch.equal(probe.images, laboratory.probe(CONTROL).images)
    for network in (OVERFITTING, CONTROL):
        trained_on = set(laboratory.data(network).train_indices.tolist())
        assert set(probe.samples["dataset_index"]) <= trained_on


def test_held_out_probe_images_are_those_that_no_network_saw(laboratory):
    held_out = laboratory.data(OVERFITTING).validation.images
    probe = laboratory.probe(OVERFITTING, "held_out")
    found = {image.numpy().tobytes() for image in probe.images}
    assert found <= {image.numpy().tobytes() for image in held_out}
    assert not found & {image.numpy().tobytes() for image in laboratory.data(CONTROL).train.images}
    assert not probe.samples["noisy_label"].any()


def test_held_out_images_are_drawn_anew_for_each_seed(tmp_path, smoke_settings):
    drawn = Laboratory(smoke_settings(validation_samples=100), tmp_path)
    whole = Laboratory(smoke_settings(validation_samples=10_000), tmp_path)
    ours, all_of_them = (made.data(OVERFITTING).validation for made in (drawn, whole))
    assert len(ours) == 100 < len(all_of_them)
    order = {image.numpy().tobytes(): place for place, image in enumerate(all_of_them.images)}
    places = [order[image.numpy().tobytes()] for image in ours.images]
    assert len(set(places)) == 100
    assert sorted(places) != list(range(100))
    assert torch.equal(ours.labels, all_of_them.labels[places])
    assert torch.equal(
        ours.images, drawn.data(CONTROL).validation.images
    )  # both networks of a seed are held against them


def test_the_overfitting_network_overfits_more_than_its_control(laboratory):
    gaps = [laboratory.metrics(network)["gap"].iloc[-1] for network in (OVERFITTING, CONTROL)]
    assert gaps[0] > gaps[1]


def test_a_model_has_the_weights_of_its_round(laboratory):
    splits, metrics = laboratory.data(CONTROL), laboratory.metrics(CONTROL)
    for number in (1, laboratory.size.rounds):
        _, accuracy = training.evaluate(laboratory.model(CONTROL, number), *vars(splits.validation).values())
        assert accuracy == metrics["validation_accuracy"].iloc[number - 1]


def test_nothing_is_done_twice(laboratory):
    first = laboratory.analysis(OVERFITTING, 2)
    before = work_done(laboratory)
    again = Laboratory(laboratory.settings, laboratory.folder)
    pd.testing.assert_frame_equal(again.analysis(OVERFITTING, 2).filters, first.filters)
    again.metrics(OVERFITTING)
    assert work_done(again) == before


def test_what_an_interruption_lost_is_done_again_and_comes_out_the_same(laboratory):
    first = laboratory.analysis(OVERFITTING, 1)
    before = work_done(laboratory)
    for stored in laboratory.folder.glob("networks/overfitting-1-*/fits-*/training-001.npz"):
        stored.unlink()
    pd.testing.assert_frame_equal(laboratory.analysis(OVERFITTING, 1).filters, first.filters)
    assert work_done(laboratory) == before + 1


def test_other_thresholds_use_the_same_fits_and_other_fits_lie_elsewhere(laboratory, smoke_settings):
    laboratory.analysis(OVERFITTING, 1)
    before = work_done(laboratory)
    settings = smoke_settings()
    settings.screen.ch_ratio = 0.0
    looser = Laboratory(settings, laboratory.folder)
    assert looser.analysis(OVERFITTING, 1).filters["separated"].sum() >= 6
    assert work_done(laboratory) == before
    settings.gmm.k_max = 3
    other = Laboratory(settings, laboratory.folder)
    assert other.analysis(OVERFITTING, 1).fits.k_max == 3
    assert work_done(laboratory) == before + 1


def test_a_control_of_two_experiments_is_clustered_on_the_probe_images_of_each(tmp_path, smoke_settings):
    """Twice as many samples with half the factor: the same control, and another set of images to draw from."""
    one, other = (
        Laboratory(smoke_settings(train_samples=samples, factor=factor, rounds=1), tmp_path)
        for samples, factor in ((200, 4), (400, 2))
    )
    assert one._folder(CONTROL) == other._folder(CONTROL)
    for made in (one, other):
        analysed = made.analysis(CONTROL, 1).samples
        assert analysed["dataset_index"].tolist() == made.probe(CONTROL).samples["dataset_index"].tolist()


@pytest.mark.parametrize(("given", "expected"), [({}, 3), ({"seeds": 2}, 2)])
def test_what_is_given_overrides_the_size(tmp_path, smoke_settings, given, expected):
    made = Laboratory(smoke_settings(**given), tmp_path)
    assert made.seeds == list(range(expected))
    assert len(list(made.networks())) == 2 * expected


def test_every_network_is_observed_after_every_round_and_stands_beside_its_metrics(laboratory):
    table = laboratory.over_training(lambda network, number: {"seen": 100 * network.seed + number})
    assert table["seen"].tolist() == (100 * table["seed"] + table["round"]).tolist()
    assert table[["seed", "condition"]].drop_duplicates().values.tolist() == [
        [network.seed, network.condition] for network in laboratory.networks()
    ]
    own = table[(table["seed"] == 1) & (table["condition"] == "control")].reset_index(drop=True)
    pd.testing.assert_frame_equal(own.drop(columns="seen"), laboratory.metrics(CONTROL))


def test_checkpoints_can_be_those_of_some_rounds(laboratory):
    places = list(laboratory.checkpoints([2, 4]))
    assert len(places) == 2 * 3 * 2
    assert {number for _, number in places} == {2, 4}


def test_what_decides_no_result_renames_nothing(laboratory):
    settings = laboratory.settings
    others = replace(
        settings, debug=True, task="run", estimate=True,
        engine=config.Engine(name="reference", threads=2), extract=replace(settings.extract, forward_samples=17),
    )  # fmt: skip
    one, other = laboratory, Laboratory(others, laboratory.folder)
    for network in one.networks():
        assert one._folder(network) == other._folder(network)
        assert one._fits_name(one.settings_of(network)) == other._fits_name(other.settings_of(network))
    assert one.behind(one.settings) == other.behind(other.settings)
    assert conditions._name(one) == conditions._name(other)
    renamed = Laboratory(replace(settings, screen=config.Screen(ch_ratio=2)), laboratory.folder)
    assert conditions._name(one) != conditions._name(renamed)
