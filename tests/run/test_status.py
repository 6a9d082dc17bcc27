"""The record of how a run went, and of what its tables hold."""

import pandas as pd
import pytest

from gmmcnn.errors import StoreError
from gmmcnn.files import sha256, write_json, write_record, write_table
from gmmcnn.run import status

RECORD = {"status": "done", "task": "run", "seconds": {"fit": 1.0}}


@pytest.fixture
def folder(tmp_path):
    """A run folder with one table."""
    write_table(tmp_path / "metrics.csv", pd.DataFrame({"epoch": [1, 2], "loss": [0.5, 0.25]}))
    write_record(tmp_path / status.NAME, RECORD | {"files": {"metrics.csv": sha256(tmp_path / "metrics.csv")}})
    return tmp_path


def read(folder):
    digest = status.digests(folder).get("metrics.csv")
    return status.read_table(folder, "metrics.csv", ["epoch"], remedy="r", digest=digest, numbers=["loss"])


def test_a_table_is_read_if_it_is_the_recorded_one(folder):
    assert read(folder)["loss"].tolist() == [0.5, 0.25]
    (folder / "metrics.csv").write_text("epoch,loss\n1,0.5\n2,0.26\n")
    with pytest.raises(StoreError, match=r"metrics\.csv: damaged, its SHA-256 is not the one recorded; r"):
        read(folder)
    (folder / "metrics.csv").write_text("epoch,loss\n1,low\n")
    with pytest.raises(StoreError, match=r"metrics\.csv: damaged \(could not convert"):
        read(folder)
    (folder / "metrics.csv").unlink()
    with pytest.raises(StoreError, match=r"metrics\.csv: missing; r"):
        read(folder)


def test_of_a_record_that_says_nothing_of_tables_they_are_taken_as_they_are(folder):
    for record in (RECORD, RECORD | {"seconds": "damaged"}):
        write_json(folder / status.NAME, record)
        assert status.digests(folder) == {}
        assert len(read(folder)) == 2
    (folder / status.NAME).unlink()
    assert status.read(folder) == {}


def test_a_damaged_record_names_the_remedy(folder):
    (folder / status.NAME).write_text("{")
    with pytest.raises(StoreError, match=r"run\.json: damaged, no JSON .*; written again by: gmmcnn task=repair run="):
        status.read(folder)
