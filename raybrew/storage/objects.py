"""A store below a prefix of an object store: s3:// and gs:// by pyarrow's file systems.

An object appears when its upload is completed, never in part. What fails in passing is tried again with growing pauses;
after that one StoreError says what the service said. Credentials and regions come from the environment or the machine's
role, as the AWS and Google tools find them; AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) names another S3 service.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import xxhash

from raybrew.data.arrow import ShardInfo
from raybrew.errors import DataError, StoreError, StoreUnreachable
from raybrew.secrets import scrub
from raybrew.storage.lease import await_lease, holder_of, leased
from raybrew.storage.staging import cache_root, stage

__all__ = ["RETRY_PAUSES", "ObjectFolder"]

log = logging.getLogger("raybrew.store")

#: Seconds between the tries of one operation, half a minute in all; each a quarter longer or shorter by chance.
RETRY_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
#: Tries of each request by the client library itself, which sees to single parts of large files.
CLIENT_ATTEMPTS = 3
_CONNECT_SECONDS, _REQUEST_SECONDS = 5.0, 30.0
_READERS = 16
_BLOCK_BYTES = 1 << 22
#: Parts of messages of services that no second try will mend.
_FINAL = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "MISSING_AUTHENTICATION_TOKEN",
    "NO_SUCH_BUCKET",
    "PERMANENT_REDIRECT",
    "PERMISSION_DENIED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNAUTHENTICATED",
    "bucket does not exist",
)

Result = TypeVar("Result")


class ObjectFolder:
    """The objects below `scheme://bucket/prefix`. `cache` is the folder of copies; None: the user's cache folder.

    What fails is tried again if `patient`.
    """

    def __init__(self, url: str, cache: str | None = None, patient: bool = True) -> None:
        self.location = url.rstrip("/")
        self.cache = cache
        self.patient = patient
        parts = urlsplit(self.location)
        shown = scrub(self.location)
        if parts.scheme not in ("s3", "gs") or not parts.netloc or shown != self.location or parts.query:
            raise StoreError(f"{shown}: no URL of an object store; s3://bucket/prefix or gs://bucket/prefix")
        self._root = f"{parts.netloc}{parts.path}".rstrip("/")

    def __reduce__(self) -> tuple[type[ObjectFolder], tuple[str, str | None, bool]]:
        return ObjectFolder, (self.location, self.cache, self.patient)

    def hasty(self) -> ObjectFolder:
        return ObjectFolder(self.location, self.cache, patient=False)

    @property
    def path(self) -> Path:
        return cache_root(self.cache) / self._root.rpartition("/")[2]

    def exists(self) -> bool:
        return bool(self._list(self._root, recursive=False))

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted."""
        found = self._list(self._root, recursive=False)
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory)

    def files(self, below: str = "") -> dict[str, int]:
        found = self._list(f"{self._root}/{below}".rstrip("/"), recursive=True)
        start = len(self._root) + 1
        return {info.path[start:]: info.size for info in found if info.type == pyarrow.fs.FileType.File}

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        paths = [f"{self._root}/{name}" for name in names]
        infos = self._try("looked for", "", lambda: self._system.get_file_info(paths)) if paths else []
        return {
            name: info.size for name, info in zip(names, infos, strict=True) if info.type == pyarrow.fs.FileType.File
        }

    def read(self, name: str) -> bytes:
        def read() -> bytes:
            found = self._content(f"{self._root}/{name}")
            if found is None:
                raise FileNotFoundError(f"{self.location}/{name}")
            return found

        return self._try("read", name, read)

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        def read(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(_READERS, "read") as pool:
            found = pool.map(read, names)
            return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    def write(self, name: str, data: bytes) -> None:
        target = f"{self._root}/{name}"
        with tempfile.TemporaryDirectory(prefix="raybrew-") as folder:
            path = Path(folder) / "data"
            path.write_bytes(data)

            def write() -> None:
                self._copy_up(path, name)
                if self._content(target) != data:
                    raise OSError("it is not there afterwards")

            self._try("written", name, write)

    def put(self, path: Path, name: str) -> None:
        size, target = path.stat().st_size, f"{self._root}/{name}"

        def upload() -> None:
            if self._system.get_file_info(target).type == pyarrow.fs.FileType.File:
                self._system.delete_file(target)  # so that what is found afterwards is new
            self._copy_up(path, name)
            found = self._system.get_file_info(target)
            if found.size != size:
                raise OSError(f"{found.size} of {size} bytes have arrived")

        self._try("uploaded", name, upload)
        path.unlink()

    def delete(self, names: Collection[str]) -> None:
        def delete(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._try("deleted", name, lambda: self._system.delete_file(f"{self._root}/{name}"))

        with ThreadPoolExecutor(_READERS, "delete") as pool:
            list(pool.map(delete, names))

    def hash_of(self, name: str) -> str:
        def read() -> str:
            digest = xxhash.xxh3_128()
            with self._system.open_input_stream(f"{self._root}/{name}", compression=None) as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
            return digest.hexdigest()

        return self._try("read", name, read)

    def known_hashes(self, folder: str, files: Collection[str]) -> dict[str, str] | None:
        return None  # all of it would have to be read

    def schema_of(self, name: str) -> pa.Schema:
        def read() -> pa.Schema:
            with self._system.open_input_file(f"{self._root}/{name}") as stream:
                return pa.ipc.open_stream(stream).schema

        return self._try("read", name, read)

    def table_of(self, name: str) -> pa.Table:
        try:
            return pa.ipc.open_stream(pa.py_buffer(self.read(name))).read_all()
        except (FileNotFoundError, pa.ArrowException) as error:
            raise DataError(f"{self.location}/{name}: no readable Arrow stream ({error})") from None

    def staged(self, folder: str, shards: Sequence[ShardInfo]) -> tuple[Path, tuple[str, ...]]:
        here = self.path / folder

        def download(name: str, path: Path) -> None:
            self._try(
                "read",
                name,
                lambda: pyarrow.fs.copy_files(
                    f"{self._root}/{name}", str(path), self._system, pyarrow.fs.LocalFileSystem()
                ),
            )

        wanted = {f"{folder}/{shard.file}": shard for shard in shards}
        return here, stage(here, wanted, download, self.location)

    def claim(
        self, waiting: Callable[[str], None] | None = None, writes: bool = True
    ) -> contextlib.AbstractContextManager[str]:
        return leased(self, waiting)

    def await_end(self, waiting: Callable[[str], None]) -> None:
        await_lease(self, waiting)

    def holder(self) -> str | None:
        found = holder_of(self)
        return None if found is None or found.gone else str(found)

    def reading(self) -> object:
        return None  # readers have copies

    def is_read(self) -> bool:
        return False

    def holds(self, token: str) -> bool:
        found = holder_of(self)
        return found is not None and found.token == token

    @contextlib.contextmanager
    def scratch(self, token: str) -> Iterator[Path]:
        root = cache_root(self.cache)
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".put-{token[:8]}-", dir=root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _system(self) -> Any:
        parts, settings = urlsplit(self.location), os.environ.get
        endpoint = settings("AWS_ENDPOINT_URL_S3") or settings("AWS_ENDPOINT_URL")
        region = settings("AWS_REGION") or settings("AWS_DEFAULT_REGION")
        return _file_system(parts.scheme, parts.netloc, endpoint, region, os.getpid())

    def _content(self, path: str) -> bytes | None:
        try:
            with self._system.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def _copy_up(self, path: Path, name: str) -> None:
        # In parts where it is large; checksums of the parts are the service's to check. Whether it has arrived is the
        # caller's: copy_files does not report an error of the last request. (A Python stream would, but after an error
        # `with` completes the object as it is, and dropping one waits for the network with the interpreter locked.)
        pyarrow.fs.copy_files(str(path), f"{self._root}/{name}", pyarrow.fs.LocalFileSystem(), self._system)

    def _list(self, path: str, recursive: bool) -> list[Any]:
        selector = pyarrow.fs.FileSelector(path, recursive=recursive, allow_not_found=True)
        return list(self._try("listed", "", lambda: self._system.get_file_info(selector)))

    def _try(self, verb: str, name: str, work: Callable[[], Result]) -> Result:
        """Do `work`, again after errors that may pass; StoreError when they do not."""
        what = f"{self.location}/{name}".rstrip("/")
        pauses = RETRY_PAUSES if self.patient else ()
        for pause in (*pauses, None):
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # pyarrow puts the key and what it was doing first.
                told = " ".join(str(error).rpartition("AWS Error ")[2].split())[:300]
                if isinstance(error, PermissionError) or any(word in told for word in _FINAL):
                    raise StoreUnreachable(f"{what}: cannot be {verb}: {told}") from error
                if pause is None:
                    raise StoreUnreachable(
                        f"{what}: cannot be {verb} after {len(pauses) + 1} tries in {sum(pauses):.0f} s ({told}); "
                        "what is committed is kept: run the same command again when the service answers"
                    ) from error
                log.warning(
                    "%s: cannot be %s (%s); trying again in %.1f s", what, verb, told.split(" during ")[0][:80], pause
                )
                time.sleep(pause * random.uniform(0.75, 1.25))
        raise AssertionError("the last try returns or raises")


@functools.lru_cache(maxsize=64)
def _file_system(scheme: str, bucket: str, endpoint: str | None, region: str | None, process: int) -> Any:
    """pyarrow's file system for a bucket, one per process: connections do not survive a fork."""
    if scheme == "gs":
        # By itself it tries for a quarter of an hour.
        return pyarrow.fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=_REQUEST_SECONDS))
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or (None if endpoint else pyarrow.fs.resolve_s3_region(bucket)),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        # An upload begins with a request of its own, by which missing rights or a missing bucket are told.
        allow_delayed_open=False,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=CLIENT_ATTEMPTS),
    )
