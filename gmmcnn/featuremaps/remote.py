"""Zarr arrays at a URL: in S3, Google Cloud Storage, Azure, or behind a web server, by obstore.

Credentials, regions and endpoints are those of the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on).
"""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from zarr.abc.store import Store

from gmmcnn.errors import StoreError, StoreNotFoundError, one_line

R = TypeVar("R")
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")
_PATIENCE = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
METADATA = ("zarr.json", ".zarray", ".zgroup")


def is_remote(source: str) -> bool:
    """Whether a source of feature maps is a URL."""
    return "://" in source


class Remote:
    """A folder at a URL.

    Parameters
    ----------
    url : str

    Raises
    ------
    StoreError
        obstore is not installed, or the URL is of no kind that it reads.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise StoreError(f"{url}: expected a path, or a URL that begins with one of {', '.join(SCHEMES)}")
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise StoreError(f"{url}: reading from there needs obstore: pip install 'gmmcnn[remote]'") from error
        options = {"allow_http": True} if scheme != "https" else {}
        opened: Any = from_url  # whose types have a form for each service
        self._folder = self._told(lambda: opened(url, retry_config=_PATIENCE, client_options=options))

    def store(self) -> Store:
        """What Zarr reads from."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._folder, read_only=True)

    def metadata(self) -> dict[str, Any]:
        """Metadata of the Zarr array or group there.

        Raises
        ------
        StoreNotFoundError
            There is neither.
        StoreError
            They are damaged, or cannot be read.
        """
        for name in METADATA:
            content = self._read(name)
            if content is not None:
                try:
                    return dict(json.loads(content)) if name != ".zgroup" else {"node_type": "group"}
                except (ValueError, TypeError, RecursionError) as error:
                    raise StoreError(f"{self.url}: {name} is damaged ({one_line(error)})") from error
        raise StoreNotFoundError(f"{self.url}: there is no Zarr array")

    def n_bytes(self) -> int:
        """Bytes of all that lies there; where a server lists nothing, as of the web, none is known: 0."""
        import obstore

        try:
            return self._told(lambda: sum(one["size"] for part in obstore.list(self._folder) for one in part))
        except StoreError:
            return 0

    def _read(self, name: str) -> bytes | None:
        """Content of a file, of a megabyte at most; None where there is none."""
        import obstore

        def read() -> bytes | None:
            try:
                return bytes(obstore.get_range(self._folder, name, start=0, length=_LONGEST).to_bytes())
            except FileNotFoundError:
                return None

        return self._told(read)

    def _told(self, read: Callable[[], R]) -> R:
        """What a call returns; StoreError, with the URL, for whatever the service or the network answers."""
        try:
            return read()
        except Exception as error:  # obstore raises classes of its own, and Python's
            raise StoreError(
                f"{self.url}: cannot be read ({_first_line(error)}); credentials, region and endpoint are those of the "
                "environment, such as AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT_URL"
            ) from error


_LONGEST = 1 << 20


def _first_line(error: Exception) -> str:
    return one_line(error).partition(" Debug source:")[0]
