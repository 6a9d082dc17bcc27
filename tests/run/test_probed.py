"""What is known of the probe samples, kept in a run folder without the data set."""

import numpy as np
import pandas as pd
import pytest
from handmade_fits import ONE_OF_EACH, N, batches_of, fits_of

from gmmcnn import config
from gmmcnn.data.probe import ProbeSet, draw_probe, thumbnails
from gmmcnn.errors import StoreError, StoreNotFoundError
from gmmcnn.run import probed


@pytest.fixture(scope="module")
def probe(digits) -> ProbeSet:
    return draw_probe(digits, config.Probe(samples=20, batches=2, plant=2), seed=0)


def test_what_is_kept_is_read(probe, tmp_path):
    probed.keep(tmp_path, probe, ("zero", "one"))
    found = probed.read(tmp_path, probe.fingerprint)
    pd.testing.assert_frame_equal(found.known, probe.samples, check_dtype=False)
    np.testing.assert_array_equal(found.thumbnails, thumbnails(probe.images))
    assert found.class_names == ("zero", "one")
    names = sorted(path.name for path in (tmp_path / "probe").iterdir())
    assert names == sorted([f"{probe.fingerprint}.npz", "digests.json"])


def test_what_lies_there_already_is_left_alone(probe, tmp_path):
    probed.keep(tmp_path, probe, ("zero",))
    probed.keep(tmp_path, probe, ("other",))
    assert probed.read(tmp_path, probe.fingerprint).class_names == ("zero",)


def test_another_probe_set_lies_beside_it(probe, digits, tmp_path):
    other = draw_probe(digits, config.Probe(samples=20, batches=2), seed=1)
    probed.keep(tmp_path, probe, ("zero",))
    probed.keep(tmp_path, other, ("zero",))
    pd.testing.assert_frame_equal(probed.read(tmp_path, other.fingerprint).known, other.samples, check_dtype=False)


def test_what_is_missing_or_damaged_is_told_with_the_task_that_writes_it(probe, tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"\.npz: missing; write it: gmmcnn task=extract run="):
        probed.read(tmp_path, probe.fingerprint)
    probed.keep(tmp_path, probe, ("zero",))
    path = probed.path_of(tmp_path, probe.fingerprint)
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(StoreError, match=r"SHA-256 is not the one recorded; made again by: gmmcnn task=repair run="):
        probed.read(tmp_path, probe.fingerprint)
    (tmp_path / "probe" / "digests.json").unlink()  # of an earlier version
    with pytest.raises(StoreError, match=r"delete it and write it again: gmmcnn task=extract run="):
        probed.read(tmp_path, probe.fingerprint)


def test_a_digest_that_is_missing_is_written_again(probe, tmp_path):
    probed.keep(tmp_path, probe, ("zero",))
    assert probed.is_recorded(tmp_path, probe.fingerprint)
    (tmp_path / "probe" / "digests.json").unlink()
    assert not probed.is_recorded(tmp_path, probe.fingerprint)
    probed.keep(tmp_path, probe, ("zero",))
    assert probed.is_recorded(tmp_path, probe.fingerprint)


def test_a_bit_that_no_reader_of_archives_looks_at_is_noticed_and_the_file_written_again(probe, tmp_path):
    probed.keep(tmp_path, probe, ("zero",))
    path = probed.path_of(tmp_path, probe.fingerprint)
    whole = path.read_bytes()
    path.write_bytes(whole[:10] + bytes([whole[10] ^ 4]) + whole[11:])  # when the first member was changed
    with np.load(path) as arrays:
        assert set(arrays) == {"about", "thumbnails"}
    with pytest.raises(StoreError, match="SHA-256 is not the one recorded"):
        probed.read(tmp_path, probe.fingerprint)
    probed.keep(tmp_path, probe, ("zero",))
    assert path.read_bytes() == whole
    probed.read(tmp_path, probe.fingerprint)


def test_of_imported_maps_only_the_batch_is_known():
    found = probed.unknown(fits_of(batches_of(ONE_OF_EACH, ONE_OF_EACH)))
    assert found.known["batch"].tolist() == [0] * N + [1] * N
    assert found.known["label"].isna().all()
    assert len(found.thumbnails) == 0
    assert found.class_names is None
