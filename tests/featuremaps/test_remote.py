"""Feature maps in a real S3 service on this machine, behind a web server, and at URLs where there is nothing."""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import numpy as np
import pandas as pd
import pytest
import zarr
from moto.server import ThreadedMotoServer
from obstore.store import from_url
from zarr.storage import ObjectStore

from gmmcnn import cli
from gmmcnn.errors import DataWarning, StoreError, StoreNotFoundError
from gmmcnn.featuremaps import foreign
from gmmcnn.featuremaps.foreign import open_maps
from gmmcnn.featuremaps.remote import Remote, is_remote

MAPS = np.random.default_rng(0).gamma(0.5, size=(60, 4, 5, 5)).astype(np.float32)
URL = "s3://bucket/some/maps.zarr"


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """An S3 service with one bucket, which the environment names."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        named = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "ENDPOINT_URL": address}
        for name, value in named.items():
            patch.setenv(f"AWS_{name}", value)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        yield address
    server.stop()


@pytest.fixture(scope="module")
def bucket(service) -> str:
    store = ObjectStore(from_url(URL, client_options={"allow_http": True}))
    array = zarr.create_array(store, shape=MAPS.shape, chunks=(20, 4, 5, 5), dtype="f4")
    array[:] = MAPS
    return URL


def put(name: str, content: bytes) -> None:

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.put_object(Bucket="bucket", Key=name, Body=content)


def test_maps_in_a_bucket_are_read(bucket):
    found = open_maps(bucket)
    assert (found.name, found.shape, found.dtype) == (bucket, MAPS.shape, np.float32)
    np.testing.assert_array_equal(found.read(slice(10, 50)), MAPS[10:50])


@pytest.mark.slow
def test_a_run_of_maps_in_a_bucket_is_that_of_the_same_maps_here(bucket, tmp_path):
    np.save(tmp_path / "maps.npy", MAPS)
    small = ["probe.samples=20", "gmm.k_max=3", "gmm.repeats=1", "engine.threads=1"]
    for name, source in (("there", bucket), ("here", tmp_path / "maps.npy")):
        assert cli._command_line([*small, f"extract.source={source}", f"run={tmp_path / name}"]) == 0
    tables = [pd.read_csv(tmp_path / name / "filters.csv") for name in ("there", "here")]
    pd.testing.assert_frame_equal(*tables)
    assert cli._command_line(["task=screen", "screen.ch_ratio=1", f"run={tmp_path / 'there'}"]) == 0
    assert json.loads((tmp_path / "there" / "run.json").read_text())["status"] == "done"


class Web:
    """A web server of a folder, which gives no ranges of files and no lists of them."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        web = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *given: object) -> None:
                super().__init__(*given, directory=str(folder))  # type: ignore[arg-type]

            def log_message(self, *_: object) -> None:
                web.asked[self.command, self.path] += 1

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/maps.zarr"
        Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(tmp_path) -> Iterator[Web]:
    zarr.create_array(tmp_path / "maps.zarr", shape=MAPS.shape, chunks=(20, 4, 5, 5), dtype="f4")[:] = MAPS
    server = Web(tmp_path)
    yield server
    server.stop()


def test_maps_behind_a_web_server_are_read_and_each_chunk_once(web):
    found = open_maps(web.url)
    np.testing.assert_array_equal(found.read(slice(0, 60)), MAPS)
    chunks = {f"/maps.zarr/c/{n}/0/0/0" for n in range(3)}
    fetched = {path: n for (how, path), n in web.asked.items() if how == "GET" and path in chunks}
    assert fetched == dict.fromkeys(chunks, 1)


def test_chunks_that_a_web_server_lacks_are_counted(web, tmp_path, monkeypatch):
    (tmp_path / "maps.zarr/c/1/0/0/0").unlink()
    with pytest.warns(DataWarning, match="1 of 3 chunks are not stored"):
        open_maps(web.url)
    shutil.rmtree(tmp_path / "maps.zarr/c")
    with pytest.raises(StoreError, match="none of its 3 chunks is stored"):
        open_maps(web.url)
    monkeypatch.setattr(foreign, "MOST_ASKED_FOR", 2)
    with pytest.raises(StoreError, match=r"has 3 chunks, and nothing there lists which of them are stored .*copy it"):
        open_maps(web.url)


def test_a_server_that_goes_away_is_not_taken_for_damage(web, tmp_path):
    found = open_maps(web.url)
    chunk = tmp_path / "maps.zarr/c/0/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(StoreError, match="samples 0 to 9 cannot be read, their part of the file is damaged"):
        found.read(slice(0, 10))
    web.stop()
    with pytest.raises(StoreError, match=rf"^{web.url}: cannot be read \(.*\)$") as told:
        found.read(slice(40, 50))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("url", ["s3://bucket/nothing", "s3://no-such-bucket/maps.zarr"])
def test_where_there_is_nothing_is_said(service, url):
    with pytest.raises(StoreNotFoundError, match=f"{url}: there is no Zarr array"):
        open_maps(url)


def test_a_service_that_does_not_answer_is_told_in_one_line(service, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        StoreError, match=r"^s3://bucket/x: cannot be read \(.*\); credentials, .* AWS_ENDPOINT_URL$"
    ) as told:
        open_maps("s3://bucket/x")
    assert "\n" not in str(told.value)


def test_what_is_damaged_or_hostile_there_is_refused(bucket):
    about = Remote(bucket).metadata()
    put("damaged.zarr/zarr.json", b"{")
    with pytest.raises(StoreError, match=r"zarr\.json is damaged"):
        open_maps("s3://bucket/damaged.zarr")
    put("codec.zarr/zarr.json", json.dumps(about | {"codecs": [{"name": "numcodecs.pickle"}]}).encode())
    with pytest.raises(StoreError, match=r"is encoded by .numcodecs\.pickle., which is not read"):
        open_maps("s3://bucket/codec.zarr")
    huge = {"name": "regular", "configuration": {"chunk_shape": [4, 10**5, 10**4, 10]}}
    put("huge.zarr/zarr.json", json.dumps(about | {"shape": [4, 10**5, 10**4, 10], "chunk_grid": huge}).encode())
    with pytest.raises(StoreError, match="a chunk or sample of it would take"):
        open_maps("s3://bucket/huge.zarr")


def test_other_urls_and_a_missing_package_are_named(monkeypatch):
    assert is_remote("s3://a/b")
    assert not is_remote("C:/a/b")
    with pytest.raises(StoreError, match="ftp://a/b: expected a path, or a URL that begins with one of s3, "):
        open_maps("ftp://a/b")
    for url in ("https://", "http://[::1", "s3://a b/c"):
        with pytest.raises(StoreError, match=r": is no URL \("):
            open_maps(url)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"s3://a/b: reading from there needs obstore: pip install 'gmmcnn\[remote\]'"):
        open_maps("s3://a/b")
