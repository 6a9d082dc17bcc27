"""Zarr arrays at a URL: in S3, Google Cloud Storage, Azure, or behind a web server, by obstore.

Credentials, regions and endpoints are those of the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on).
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from zarr.abc.store import Store

from gmmcnn.errors import StoreError, StoreNotFoundError, one_line

R = TypeVar("R")
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")
_PATIENCE = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_AT_ONCE = 16
"""Files that a server is asked about at the same time."""
METADATA = ("zarr.json", ".zarray", ".zgroup")
_NAMED_IN = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "a": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Variables of the environment, by how a scheme begins; a web server has none."""


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
        try:
            scheme = urlsplit(url).scheme
        except ValueError as error:
            raise StoreError(f"{url}: is no URL ({one_line(error)})") from error
        if scheme not in SCHEMES:
            raise StoreError(f"{url}: expected a path, or a URL that begins with one of {', '.join(SCHEMES)}")
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise StoreError(f"{url}: reading from there needs obstore: pip install 'gmmcnn[remote]'") from error
        options = {"allow_http": True} if scheme != "https" else {}
        opened: Any = from_url  # whose types have a form for each service
        try:
            self._folder = self.told(lambda: opened(url, retry_config=_PATIENCE, client_options=options))
        except ValueError as error:
            raise StoreError(f"{url}: is no URL ({one_line(error)})") from error

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

    def files(self) -> dict[str, int]:
        """Name → bytes of all that lies there. StoreError where a server lists nothing, as those of the web."""
        import obstore

        return self.told(lambda: {one["path"]: one["size"] for part in obstore.list(self._folder) for one in part})

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Name → bytes of those files that are there, each of which is asked for."""
        import obstore

        def size(name: str) -> tuple[str, int | None]:
            return name, self._where_it_is(lambda: obstore.head(self._folder, name)["size"])

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return {name: found for name, found in threads.map(size, names) if found is not None}

    def told(self, read: Callable[[], R]) -> R:
        """What a call returns; StoreError, with the URL, for whatever the service or the network answers.

        Errors of a codec are left as they are: it is what was read that is damaged then.
        """
        from obstore.exceptions import BaseError

        try:
            return read()
        except (BaseError, FileNotFoundError) as error:
            raise StoreError(f"{self.url}: cannot be read ({_first_line(error)}){self._remedy()}") from error

    def _read(self, name: str) -> bytes | None:
        """Content of a file, of a megabyte at most; None where there is none."""
        import obstore

        def read() -> bytes:
            found = obstore.get(self._folder, name)  # a range of it is more than some web servers give
            if found.meta["size"] > _LONGEST:
                raise StoreError(f"{self.url}: {name} has {found.meta['size']} bytes; expected at most {_LONGEST}")
            return bytes(found.bytes())

        return self._where_it_is(read)

    def _where_it_is(self, read: Callable[[], R]) -> R | None:
        """What a call returns, or None where the file is not there."""

        def found() -> R | None:
            try:
                return read()
            except FileNotFoundError:
                return None

        return self.told(found)

    def _remedy(self) -> str:
        scheme = urlsplit(self.url).scheme
        for beginning, variables in _NAMED_IN.items():
            if scheme.startswith(beginning):
                return f"; credentials, region and endpoint are those of the environment, such as {variables}"
        return ""


_LONGEST = 1 << 20


def _first_line(error: Exception) -> str:
    return one_line(error).partition(" Debug source:")[0]
