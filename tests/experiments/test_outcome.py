"""What an experiment leaves in its folder, and says."""

import pandas as pd
import plotly.graph_objects as go
import pytest

from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import judge, over_seeds

VERDICTS = tuple(
    judge(claim, [over_seeds(f"effect of {claim}", values)], [over_seeds("check", [0.4, 0.5, 0.6])])
    for claim, values in (("the first claim", [1.0, 1.1, 0.9]), ("the second claim", [0.1, -0.1, 0.0]))
)
TABLE = pd.DataFrame({"seed": [0, 1], "count": [2.5, 3.0]})


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(
        table=TABLE, verdicts=VERDICTS, remarks=("A remark.",), figures={"curve": go.Figure()},
        tables={"by_seed": TABLE.assign(more=1)},
    )  # fmt: skip


def test_tables_are_what_was_measured_and_what_was_made_of_it(outcome, tmp_path):
    outcome.write(tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table.csv"), TABLE)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "by_seed.csv"), TABLE.assign(more=1))


def test_estimates_stand_with_their_claim_and_its_verdict(outcome, tmp_path):
    outcome.write(tmp_path)
    estimates = pd.read_csv(tmp_path / "estimates.csv")
    assert estimates["claim"].tolist() == ["the first claim"] * 2 + ["the second claim"] * 2
    assert estimates["verdict"].tolist() == [v.label for v in VERDICTS for _ in range(2)]
    assert estimates["role"].tolist() == ["effect", "check"] * 2
    assert estimates["value"].tolist() == pytest.approx([1.0, 0.5, 0.0, 0.5], abs=1e-12)


def test_what_is_written_in_words_is_said_too(outcome, tmp_path, capsys):
    outcome.write(tmp_path)
    lines = (tmp_path / "verdict.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == [*map(str, VERDICTS)]
    assert lines[2].startswith("2 claims were judged")
    assert lines[3:] == ["A remark."]
    said = " ".join(capsys.readouterr().out.split())
    for line in (*lines, f"Tables and figures: {tmp_path}"):
        assert " ".join(line.split()) in said


def test_figures_open_without_a_network(outcome, tmp_path):
    outcome.write(tmp_path)
    assert (tmp_path / "curve.html").exists()
    assert (tmp_path / "plotly.min.js").exists()
    assert "https://cdn" not in (tmp_path / "curve.html").read_text(encoding="utf-8")


def test_an_experiment_that_claims_nothing_has_no_estimates(tmp_path):
    Outcome(TABLE, (), ("It takes two seconds.",), {}).write(tmp_path)
    assert not (tmp_path / "estimates.csv").exists()
    assert (tmp_path / "verdict.txt").read_text() == "It takes two seconds.\n"


def test_a_second_outcome_takes_the_place_of_the_first(outcome, tmp_path):
    outcome.write(tmp_path)
    Outcome(TABLE.assign(count=9), VERDICTS, (), {}).write(tmp_path)
    assert pd.read_csv(tmp_path / "table.csv")["count"].tolist() == [9, 9]
    assert not list(tmp_path.glob("*.partial"))
