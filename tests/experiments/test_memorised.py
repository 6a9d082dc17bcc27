"""The experiment at its smallest, and its tables on samples whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmmcnn import config
from gmmcnn.errors import ConfigurationError
from gmmcnn.experiments import memorised
from gmmcnn.experiments.laboratory import Laboratory, Network
from gmmcnn.experiments.memorised import SCORES, TRAINED, TWIN, PlantedLaboratory, aucs, by_layer, summarise
from gmmcnn.experiments.plants import CONTROL, KINDS
from gmmcnn.filters.samples import PROFILE


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    settings = config.Settings(
        task="experiment",
        data=config.Data(name="digits"),
        model=config.Model(name="lenet5"),
        train=config.Train(learning_rate=3e-3),
        gmm=config.Gmm(n_init=1, repeats=2),
        engine=config.Engine(threads=1),
        experiment=config.Experiment(name="memorised", size="smoke", seeds=1, rounds=4, factor=8),
    )
    return Laboratory(settings, tmp_path_factory.mktemp("memorised"))


@pytest.fixture(scope="module")
def outcome(small):
    return memorised.run(small)


def samples_of(scores: dict[str, list[float]], kinds: list[str], memorised: list[bool]) -> pd.DataFrame:
    known = {"seed": 0, "sample": range(len(kinds)), "kind": kinds, "memorised": memorised, "fitted": True}
    return pd.DataFrame(known | scores)


def test_every_training_sample_is_scored_in_every_way(outcome):
    samples = outcome.tables["samples"]
    assert len(samples) == 200
    made = [name for name in SCORES if name in samples]
    assert set(SCORES) - set(made) <= {"cleanlab, last maps"}
    assert np.isfinite(samples[made].to_numpy()).all()
    assert not samples.loc[samples["kind"].isin(["", CONTROL]), "memorised"].any()
    assert samples.loc[samples["memorised"], "fitted"].all()


def test_wrong_labels_are_found_on_digits(outcome):
    wrong = outcome.table[outcome.table["kind"].str.startswith("wrong label")]
    assert wrong.loc[wrong["score"] == "memorisation rank", "auc"].mean() > 0.85


def test_there_is_a_row_for_every_score_kind_and_seed(outcome):
    assert len(outcome.table) == len(outcome.tables["summary"]) * len(KINDS)
    assert outcome.table["planted"].eq(2).all()


def test_the_twin_has_not_seen_what_was_planted(small):
    planted = PlantedLaboratory(small.settings, small.folder / "planted")
    trained, twin = Network(0, TRAINED), Network(0, TWIN)
    assert len(planted.data(trained).train) == 200
    assert len(planted.data(twin).train) == 200 - 2 * len(KINDS)
    assert planted.settings_of(trained) == planted.settings_of(twin)
    assert planted.trained(trained).folder != planted.trained(twin).folder


def test_a_second_run_reads_what_the_first_made(small, outcome, monkeypatch):
    monkeypatch.setattr(memorised.rivals, "scores", None)  # would fail if it were called
    again = memorised.run(Laboratory(small.settings, small.folder))
    pd.testing.assert_frame_equal(again.table, outcome.table)


def test_everything_is_written(outcome, tmp_path):
    outcome.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"table.csv", "summary.csv", "profile.csv", "masking.csv", "samples.csv", "scores.html"}
    assert "memorisation rank (clusterings)" in (tmp_path / "verdict.txt").read_text()


def test_auc_is_against_samples_that_nothing_is_wrong_with():
    kinds = ["wrong label"] * 4 + [CONTROL] + [""] * 3
    samples = samples_of(
        {"label surprise": [9, 8, 7, 0, 2, 1, 3, 4]}, kinds, [True, True, True, False, False, False, False, False]
    )
    row = aucs(samples).query("kind == 'wrong label'").iloc[0]
    assert row["planted"] == 4
    assert row["memorised"] == 3
    assert row["auc"] == pytest.approx(12 / 16)
    assert row["auc_memorised"] == 1
    assert np.isnan(aucs(samples).query("kind == 'noise'")["auc"].iloc[0])
    control = aucs(samples).query("kind == @CONTROL").iloc[0]
    assert control["auc"] == pytest.approx(1 / 3)


def test_too_few_memorised_samples_have_no_auc_of_their_own():
    samples = samples_of({"label surprise": [9, 8, 1]}, ["noise", "noise", ""], [True, True, False])
    assert np.isnan(aucs(samples).query("kind == 'noise'")["auc_memorised"].iloc[0])


def test_the_control_kind_is_in_no_mean():
    kinds = ["noise"] * 3 + [CONTROL] + [""] * 4
    samples = samples_of({"label surprise": [9, 8, 7, 0, 1, 2, 3, 4]}, kinds, [True] * 3 + [False] * 5)
    row = summarise(aucs(samples), samples).iloc[0]
    assert row["auc"] == row["auc_planted"] == row["precision"] == 1


def test_ties_at_the_cut_count_by_their_share():
    samples = samples_of({"paper's rule": [1, 0, 0, 0]}, ["noise", "noise", "", ""], [False] * 4)
    row = summarise(aucs(samples), samples).iloc[0]
    assert row["precision"] == pytest.approx((1 + 1 / 3) / 2)


def test_profile_has_an_auc_for_each_layer():
    surprise = {f"{PROFILE}early": [9, 8, 7, 1, 2], f"{PROFILE}late": [0, 0, 0, 1, 2]}
    samples = samples_of(surprise, ["noise"] * 3 + ["", ""], [True] * 3 + [False] * 2)
    profile = by_layer(samples).set_index("layer")["auc"]
    assert dict(profile) == {"early": 1, "late": 0}


def test_epochs_follow_the_size_unless_they_are_given(small):
    given = small.settings
    open_ = replace(given, experiment=replace(given.experiment, rounds=None, factor=None))
    assert PlantedLaboratory(open_, small.folder).size.rounds == memorised.EPOCHS["smoke"][0]
    assert PlantedLaboratory(given, small.folder).size.rounds == 4
    assert PlantedLaboratory(given, small.folder).settings.probe.samples == 200


@pytest.mark.parametrize("setting", [{"label_noise": 0.2}, {"plant_wrong_labels": 4}, {"plant_foreign": 4}])
def test_a_data_set_with_odd_samples_of_its_own_is_refused(small, setting):
    odd = replace(small.settings, data=replace(small.settings.data, **setting))
    ((key, value),) = setting.items()
    with pytest.raises(ConfigurationError, match=rf"data.{key}={value}: experiment=memorised plants samples"):
        memorised.run(Laboratory(odd, small.folder))
