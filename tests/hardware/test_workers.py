"""Work that is shared out is done by whoever comes, in any order and more than once, to the same end."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from gmmcnn import config
from gmmcnn.featuremaps import import_activations
from gmmcnn.filters import fitting
from gmmcnn.hardware.workers import Workers

SETTINGS = config.Settings(gmm=config.Gmm(k_max=3, n_init=1, repeats=2), engine=config.Engine(threads=1))


class Backwards:
    """Does what it gets as another process would, twice, and the last first."""

    n_done = 0

    def do(self, calls: Sequence[Callable[[], object]]) -> Iterator[tuple[int, object]]:
        for number in reversed(range(len(calls))):
            sent = pickle.loads(pickle.dumps(calls[number]))
            sent()
            self.n_done += 1
            yield number, sent()


def test_fits_are_the_same_whoever_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "BYTES_PER_BLOCK", 6_000)
    np.save(tmp_path / "maps.npy", np.random.default_rng(0).gamma(0.5, size=(60, 7, 4, 5)).astype(np.float32))
    store = import_activations(tmp_path / "maps.npy", tmp_path / "maps.zarr", probe_samples=20)
    workers, counted = Backwards(), []
    shared: Workers = workers
    fitting.fit_store(store, tmp_path / "here", n_samples=20, settings=SETTINGS)
    more = replace(SETTINGS, cluster=config.Cluster(threads=2))
    fitting.fit_store(store, tmp_path / "there", n_samples=20, settings=more, advance=counted.append, workers=shared)
    files = sorted((tmp_path / "here").rglob("*.npz"))
    assert workers.n_done == len(files) > 3
    assert sum(counted) == 21
    for path in files:
        assert (tmp_path / "there" / path.relative_to(tmp_path / "here")).read_bytes() == path.read_bytes()
    fitting.fit_store(store, tmp_path / "there", n_samples=20, settings=more, workers=shared)
    assert workers.n_done == len(files)
