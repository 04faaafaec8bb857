"""A local copy of the published PG-19, from its public bucket, file by file."""

import base64
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from block_recurrent.data.errors import DataError
from block_recurrent.lab.corpora.shards import writing

SERVER = "https://storage.googleapis.com"
BUCKET = "deepmind-gutenberg"
_WANTED = re.compile(r"(train|validation|test)/[0-9]+\.txt|metadata\.csv")
_PREFIXES = ("metadata.csv", "test/", "validation/", "train/")
_ATTEMPTS = 3
_PAUSE = 1.0
_TIMEOUT = 30


class _Object(NamedTuple):
    """A file of the bucket; `md5`, in base64, may be empty."""

    name: str
    size: int
    md5: str


def download(
    directory: str | os.PathLike[str],
    *,
    server: str = SERVER,
    workers: int = 8,
    report: Callable[[int, int], object] = lambda done, total: None,
    stop: Callable[[], object] = lambda: False,
) -> bool:
    """Downloads what is not there yet: 28,752 books and their metadata, about 11 GB.

    A file has its name only when its size and MD5 are those of the bucket's listing.

    Args:
      directory: gets `train/`, `validation/`, `test/` and `metadata.csv`.
      server: address of the server that has the bucket.
      workers: how many files are downloaded at a time.
      report: called with the number of files that are there and the number of all files.
      stop: asked after every file; if it says so, what is on its way is finished first.

    Returns:
      Whether all files are there now.

    Raises:
      DataError: the server cannot be reached or a file cannot be written; the same call goes on.
    """
    root = Path(directory)
    objects = [found for prefix in _PREFIXES for found in _list(server, prefix)]
    missing = [found for found in objects if not _is_there(root, found)]
    for folder in {(root / found.name).parent for found in missing}:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    done = len(objects) - len(missing)
    report(done, len(objects))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_fetch, server, found, root) for found in missing]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                report(done, len(objects))
                if stop():
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    return done == len(objects)


def _list(server: str, prefix: str) -> Iterator[_Object]:
    token = ""
    while True:
        query = urllib.parse.urlencode({"prefix": prefix, "pageToken": token})
        url = f"{server}/storage/v1/b/{BUCKET}/o?{query}"
        page = _parse_page(url, _get(url))
        for item in page.get("items", ()):
            if _WANTED.fullmatch(item["name"]):
                yield _Object(item["name"], int(item["size"]), item.get("md5Hash", ""))
        token = page.get("nextPageToken", "")
        if not token:
            return


def _parse_page(url: str, data: bytes) -> dict[str, Any]:
    try:
        page = json.loads(data)
        return {**page, "items": [item for item in page.get("items", ()) if item["size"]]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{url} gives no listing ({error!r}): try again later.") from error


def _is_there(root: Path, found: _Object) -> bool:
    file = root / found.name
    return file.is_file() and file.stat().st_size == found.size


def _fetch(server: str, found: _Object, root: Path) -> None:
    def problem(data: bytes) -> str:
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        if len(data) == found.size and found.md5 in ("", md5):
            return ""
        return f"{len(data):,} bytes came that are not the {found.size:,} of the listing"

    file = root / found.name
    part = file.with_name(f".{file.name}.part")
    data = _get(f"{server}/{BUCKET}/{found.name}", problem)
    with writing(part):
        part.write_bytes(data)
        part.rename(file)


def _get(url: str, problem: Callable[[bytes], str] = lambda data: "") -> bytes:
    """The content of an address; errors that may pass are tried again."""
    reason = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt * _PAUSE)
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            reason = str(error)
            error.close()
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
        else:
            reason = problem(data)
            if not reason:
                return data
    raise DataError(f"{url} cannot be had ({reason}): check the network; the same command goes on.")
