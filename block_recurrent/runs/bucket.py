"""Checkpoints in a bucket of an object store, beside those in the work directory.

A bucket has objects and no folders: nothing can be renamed, but an object is there as a whole or
not at all. A checkpoint is

    <step>/parameters.safetensors, <step>/training.safetensors, <step>/checkpoint.json

or more files if several processes wrote it. It is there when `checkpoint.json` is, which is written
after the others and removed before them. Of a large file there are parts, `<name>.0`, `<name>.1`
and so on. There is no lock: `owner.json` names who began to write there last, and whoever finds
another name there writes no more.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.runs.checkpoint_folder import CONTENTS
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.system.files import reason, whole_folder

OWNER, FETCHING = "owner.json", ".fetching-"
CONFIG = "config.gin"
SCHEMES = ("gs", "s3", "file")
PART_BYTES = 1 << 30  # S3 takes no more than five times that at once
RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "5s"}  # half a minute


class BucketError(OSError, CheckpointError):
    """A bucket cannot be reached, or does not do what it is asked."""


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Errors of the store become one that names the place."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise BucketError(f"{url} cannot be used ({reason(error)})") from error


class Bucket:
    """A place in a bucket.

    Args:
      url: gs://BUCKET/PATH, s3://BUCKET/PATH or file:///PATH. An object store of one's own that
        speaks the language of S3 is at AWS_ENDPOINT_URL.

    Attributes:
      config: of the run that writes there, as `config.gin`.

    Raises:
      ConfigError: it is no such address.
      BucketError: it cannot be reached; all methods raise it.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/") + "/"
        self._store = _open(self.url)
        self.config = b""
        self._token = secrets.token_hex(8)
        self._owned = False

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, oldest first."""
        found = (re.fullmatch(rf"(0|[1-9][0-9]*)/{CONTENTS}", name) for name in self.names())
        return sorted(int(match[1]) for match in found if match)

    def names(self) -> list[str]:
        """What all objects are called."""
        with _reaching(self.url):
            return [key.decode() for key in self._store.list().result()]

    def read(self, name: str) -> bytes | None:
        """An object's content, None if there is none."""
        with _reaching(self.url):
            found = self._store.read(name).result()
        return None if found.state == "missing" else found.value

    def write(self, name: str, content: bytes) -> None:
        """Writes an object."""
        with _reaching(self.url):
            self._store.write(name, content).result()

    def own(self) -> None:
        """Takes the place over at the first call: whoever has written there will notice.

        Raises:
          BucketError: another run has taken it over since.
        """
        if not self._owned:
            self.write(OWNER, self._token.encode())
            self.write(CONFIG, self.config)
            self._owned = True
        elif self.read(OWNER) != self._token.encode():
            raise BucketError(f"another run has begun to write to {self.url}; no more is copied")

    def upload(self, step: int, folder: Path) -> None:
        """Copies a checkpoint from a folder, in place of one of that step."""
        self.remove(step)
        for path in folder.iterdir():
            if path.name != CONTENTS:
                self._upload_file(path, f"{step}/{path.name}")
        self.write(f"{step}/{CONTENTS}", (folder / CONTENTS).read_bytes())

    def _upload_file(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            content, part = file.read(PART_BYTES), 0
            while more := file.read(PART_BYTES):
                self.write(f"{name}.{part}", content)
                content, part = more, part + 1
        self.write(f"{name}.{part}" if part else name, content)

    def download(self, step: int, folder: Path) -> None:
        """Copies a checkpoint to a folder, which is there as a whole or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = folder.with_name(f"{FETCHING}{step}-{secrets.token_hex(4)}")
        parts = [re.fullmatch(rf"{step}/(.+?)(?:\.(\d+))?", name) for name in self.names()]
        wanted = sorted((part[1], int(part[2] or 0), part[0]) for part in parts if part is not None)
        if not any(file == CONTENTS for file, _, _ in wanted):
            raise BucketError(f"checkpoint {step:,} is no longer in {self.url}")
        with whole_folder(folder, building):
            for file, _, name in wanted:
                content = self.read(name)
                if content is None:
                    raise BucketError(f"{name} is no longer in {self.url}")
                with (building / file).open("ab") as joined:
                    joined.write(content)

    def remove(self, step: int) -> None:
        """Removes a checkpoint; from the first moment on it no longer looks like one."""
        self._delete(f"{step}/{CONTENTS}")
        for name in self.names():
            if name.startswith(f"{step}/"):
                self._delete(name)

    def _delete(self, name: str) -> None:
        with _reaching(self.url):
            self._store.write(name, None).result()


def bucket_of(config: ExperimentConfig) -> Bucket | None:
    """That of a run, if it has one. Raises: what `Bucket` raises."""
    return Bucket(config.training.bucket) if config.training.bucket else None


def _open(url: str) -> Any:
    import tensorstore

    names = ("s3_request_retries", "gcs_request_retries")
    context = tensorstore.Context(dict.fromkeys(names, RETRIES))
    with _reaching(url):
        return tensorstore.KvStore.open(_specification(url), context=context).result()


def _specification(url: str) -> str | dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme == "file"):
        raise ConfigError(
            f"training.bucket {url!r} is no address of a bucket: write gs://BUCKET/PATH or "
            "s3://BUCKET/PATH"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme != "s3" or not endpoint:
        return url
    path = parts.path.lstrip("/")
    region = os.environ.get("AWS_REGION", "us-east-1")
    place = {"bucket": parts.netloc, "path": path, "endpoint": endpoint, "aws_region": region}
    return {"driver": "s3", **place}
