"""Copies of the checkpoints in a bucket of an object store.

A bucket has objects and no folders, and nothing can be renamed. An object is complete or not there.
The files of a checkpoint are <step>/parameters/..., <step>/training/... and so on. The checkpoint
exists when its seal does, which is written last and removed first. There is no lock: `owner.json`
names the run that began last to write there, and any other run stops copying.
"""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from block_recurrent.config import ConfigError, ExperimentConfig
from block_recurrent.gin_files import to_gin
from block_recurrent.runs.errors import CheckpointError
from block_recurrent.runs.seal import SEAL
from block_recurrent.runs.workdir import CONFIG
from block_recurrent.system.files import reason, whole_folder

OWNER, FETCHING = "owner.json", ".fetching-"
SCHEMES = ("gs", "s3", "file")
RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "5s"}  # half a minute


class BucketError(OSError, CheckpointError):
    """A bucket cannot be reached, or does not do what it is asked."""


class Bucket:
    """A path in a bucket.

    Args:
      url: gs://BUCKET/PATH, s3://BUCKET/PATH or file:///PATH. AWS_ENDPOINT_URL is the address of
        another object store with the interface of S3.
      config: the text of `config.gin` of the run that writes there.

    Raises:
      ConfigError: `url` is not such an address.
      BucketError: the bucket cannot be reached; all methods raise it.
    """

    def __init__(self, url: str, config: str = ""):
        import tensorstore

        self.url = url.rstrip("/") + "/"
        place, retried = _specification(self.url), ("s3_request_retries", "gcs_request_retries")
        context = tensorstore.Context(dict.fromkeys(retried, RETRIES))
        self._store = self._result(lambda: tensorstore.KvStore.open(place, context=context))
        self._config = config
        self._token = secrets.token_hex(8)
        self._owned = False

    def _result(self, begin: Callable[[], Any]) -> Any:
        """The result of what the store begins to do; its errors become one that names the URL."""
        try:
            return begin().result()
        except ValueError as error:
            raise BucketError(f"{self.url} cannot be used ({reason(error)})") from error

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        found = (re.fullmatch(rf"(0|[1-9][0-9]*)/{SEAL}", name) for name in self.names())
        return sorted(int(match[1]) for match in found if match)

    def names(self) -> list[str]:
        """The names of all objects."""
        return [key.decode() for key in self._result(self._store.list)]

    def read(self, name: str) -> bytes | None:
        """An object's content, None if there is none."""
        found = self._result(lambda: self._store.read(name))
        return None if found.state == "missing" else found.value

    def write(self, name: str, content: bytes | None) -> None:
        """Writes an object; None removes it."""
        self._result(lambda: self._store.write(name, content))

    def own(self) -> None:
        """Takes the path over at the first call: a run that wrote there before will notice.

        Raises:
          BucketError: another run has taken it over since.
        """
        if not self._owned:
            self.write(OWNER, self._token.encode())
            self.write(CONFIG, self._config.encode())
            self._owned = True
        elif self.read(OWNER) != self._token.encode():
            raise BucketError(f"another run has begun to write to {self.url}; no more is copied")

    def upload(self, step: int, folder: Path) -> None:
        """Copies a checkpoint from a folder, and replaces an earlier copy."""
        self.remove(step)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name == SEAL):  # the seal last
            self.write(f"{step}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def download(self, step: int, folder: Path) -> None:
        """Copies a checkpoint to a folder, which appears when it is complete."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = folder.with_name(f"{FETCHING}{step}-{secrets.token_hex(4)}")
        names = [name for name in self.names() if name.startswith(f"{step}/")]
        with whole_folder(folder, building):
            for name in {f"{step}/{SEAL}", *names}:
                path, content = building / name.removeprefix(f"{step}/"), self.read(name)
                if content is None:
                    raise BucketError(f"{name} is no longer in {self.url}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def remove(self, step: int) -> None:
        """Removes a checkpoint. Its seal is removed first, so that the rest is no checkpoint."""
        self.write(f"{step}/{SEAL}", None)
        for name in self.names():
            if name.startswith(f"{step}/"):
                self.write(name, None)


def bucket_of(config: ExperimentConfig) -> Bucket | None:
    """The bucket of a run, None if it has none. Raises: what `Bucket` raises."""
    url = config.training.bucket
    return Bucket(url, to_gin(config)) if url else None


def _specification(url: str) -> str | dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme == "file"):
        raise ConfigError(
            f"training.bucket {url!r} is not the address of a bucket: write gs://BUCKET/PATH or "
            "s3://BUCKET/PATH"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme != "s3" or not endpoint:
        return url
    return {
        "driver": "s3",
        "bucket": parts.netloc,
        "path": parts.path.lstrip("/"),
        "endpoint": endpoint,
        "aws_region": os.environ.get("AWS_REGION", "us-east-1"),
    }
