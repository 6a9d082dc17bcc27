"""Seconds of a job from a short probe."""

from gmmcnn import config
from gmmcnn.run import estimate

SMALL = config.Settings(probe=config.Probe(samples=50, batches=3), gmm=config.Gmm(k_max=3))
JOB = estimate.JobSize(layers=((6, 25), (16, 9)), n_checkpoints=4, n_batches=2)


def test_a_job_is_counted():
    assert JOB.n_filters == 22
    assert JOB.n_fits == 8


def test_a_layer_takes_its_filters_times_what_one_takes():
    seconds = estimate.Seconds(mixtures=2.0, components={25: 0.5, 9: 0.25})
    assert seconds.of(6, 25) == 15.0
    assert seconds.of(16, 9) == 36.0


def test_ten_repeats_take_ten_times_as_long(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(clock)))  # every round takes a second
    once = estimate.probe(config.Settings(probe=SMALL.probe, gmm=config.Gmm(k_max=3, repeats=1)), "cpu", JOB)
    ten = estimate.probe(SMALL, "cpu", JOB)
    assert ten.mixtures == 10 * once.mixtures > 0
    assert ten.components == {25: 0.5, 9: 0.5}
