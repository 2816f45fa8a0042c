"""One bucket: objects and folders up and down, each failure as one message that says what to do.

Large objects travel in parts, so that memory stays small whatever the object. Every object carries the SHA-256 of its content
and is compared with it when it comes back; the parts carry checksums of their own, which the server checks as they arrive.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.paths import atomic_path, file_digest, require_disk

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 60, 3
PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 4
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between attempts of a patient storage; they double and are drawn apart."""
DIGEST = "sha256"
"""Name of the metadata that holds an object's SHA-256."""

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_FULL_OR_BUSY = {"500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout"}
# damaged on the way: worth another attempt
_DAMAGED = {"BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch"}


class UnavailableError(ResourceError):
    """The storage does not answer, or asks to come back later."""


class ConflictError(ResourceError):
    """The object is not as the condition of a write demanded."""


@dataclass(frozen=True)
class StoredObject:
    """One object of a bucket."""

    key: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Content:
    """A small object as it was at one moment."""

    data: bytes
    etag: str
    """Changes with the content; the condition of `Storage.put`."""
    age: float
    """Seconds since it was written, both times by the server's clock."""


class Storage:
    """One bucket; every failure is a `ResourceError` that says what to look at.

    Requests that fail on the way are repeated a few times. A storage with `patience` goes on trying for as many seconds after
    that, with growing waits, as long as the server does not answer or is busy; what it refuses is told at once.
    """

    def __init__(self, bucket: str, patience: float = 0.0, threads: bool = True) -> None:
        self.bucket, self.patience = bucket, patience
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        )
        try:
            self._client: Any = boto3.Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise ResourceError(
                f"S3 storage cannot be set up: {error}; check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and AWS_PROFILE"
            ) from error
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE, use_threads=threads
        )

    @property
    def endpoint(self) -> str:
        """The address requests go to."""
        return str(self._client.meta.endpoint_url)

    def check(self) -> None:
        """Find out with one request whether the bucket is there and lets this user in: before hours of work, not after.

        Raises `ResourceError`, of the kind `UnavailableError` if the storage does not answer, which may pass.
        """
        with self._explained("use", ""):
            self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)

    def upload(self, path: Path, key: str, digest: str | None = None) -> None:
        """Stream a file, whose SHA-256 may be known, into the object `key`; raises `DataError` if there is no such file."""
        if not path.is_file():
            raise DataError(f"{path} cannot be uploaded to {self._name(key)}: it is no file; check the path")
        extra = {"Metadata": {DIGEST: digest or file_digest(path)}}

        def attempt() -> None:
            with self._explained("upload", key):
                self._client.upload_file(str(path), self.bucket, key, ExtraArgs=extra, Config=self._transfer)

        self._patiently(attempt)

    def download(self, key: str, path: Path, digest: str | None = None) -> None:
        """Stream the object `key` into a file, whole or not at all.

        Raises `DataError` if there is no such object or its content is not what was uploaded, or not of the SHA-256 `digest`.
        """
        self._patiently(lambda: self._download(key, path, digest))

    def digest(self, key: str) -> str | None:
        """Return the SHA-256 with which the object `key` was uploaded, None if by something else."""
        with self._explained("look at", key):
            found: str | None = self._client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get(DIGEST)
        return found

    def put(self, key: str, data: bytes, *, absent: bool = False, etag: str | None = None) -> str:
        """Write a small object and return its etag; with a condition only if it is `absent`, or still the one of `etag`.

        Raises `ConflictError` if the condition does not hold. The server decides, so of several who try only one succeeds; an
        answer that was lost and repeated may bring a conflict with oneself.
        """
        condition = {"IfNoneMatch": "*"} if absent else {"IfMatch": etag} if etag is not None else {}
        metadata = {DIGEST: hashlib.sha256(data).hexdigest()}
        with self._explained("write", key):
            answer = self._client.put_object(Bucket=self.bucket, Key=key, Body=data, Metadata=metadata, **condition)
        return str(answer["ETag"])

    def get(self, key: str) -> Content:
        """Read a small object; raises `DataError` if there is none."""
        with self._explained("read", key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            data = answer["Body"].read()
        written: datetime = answer["LastModified"]
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Content(data, str(answer["ETag"]), (now - written).total_seconds())

    def delete(self, key: str) -> None:
        """Delete the object `key`, if there is one."""
        with self._explained("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def exists(self, key: str) -> bool:
        """Whether there is an object `key`."""
        try:
            with self._explained("look for", key):
                self._client.head_object(Bucket=self.bucket, Key=key)
        except DataError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with `prefix`, by key."""
        with self._explained("list", prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield StoredObject(entry["Key"], entry["Size"])

    def _download(self, key: str, path: Path, expected: str | None) -> None:
        with self._explained("download", key):
            head = self._client.head_object(Bucket=self.bucket, Key=key)
            size, digest = head["ContentLength"], expected or head["Metadata"].get(DIGEST)
            require_disk(path, size, f"downloading {self._name(key)}")
            with atomic_path(path) as temporary:
                self._client.download_file(self.bucket, key, str(temporary), Config=self._transfer)
                received = temporary.stat().st_size
                if received != size:
                    raise UnavailableError(f"{self._name(key)} has {size} bytes, but {received} arrived; download it again")
                if digest is not None and file_digest(temporary) != digest:
                    raise DataError(
                        f"{self._name(key)} is damaged: its content does not have the SHA-256 that it should; "
                        "delete it and upload it again"
                    )

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Repeat `attempt` while the storage is unavailable and there is patience left."""
        deadline, wait = time.monotonic() + self.patience, FIRST_WAIT
        while True:
            try:
                return attempt()
            except UnavailableError:
                pause = wait * random.uniform(0.5, 1.0)
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT)

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        from boto3.exceptions import RetriesExceededError, S3UploadFailedError
        from botocore import exceptions

        failed = f"cannot {verb} {self._name(key)} at {self.endpoint}"
        try:
            yield
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise ResourceError(f"{failed}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except (exceptions.ConnectionError, exceptions.HTTPClientError, RetriesExceededError) as error:
            raise UnavailableError(
                f"{failed}: it does not answer ({error}); check AWS_ENDPOINT_URL and that it runs"
            ) from error
        except S3UploadFailedError as error:
            raise self._refusal(failed, error, error.__context__) from error
        except exceptions.ClientError as error:
            raise self._refusal(failed, error, error) from error
        except exceptions.BotoCoreError as error:
            raise ResourceError(f"{failed}: {error}; try again") from error

    def _refusal(self, failed: str, error: Exception, cause: Any) -> DataError | ResourceError:
        code = getattr(cause, "response", {}).get("Error", {}).get("Code", "")
        if code in _FORBIDDEN:
            return ResourceError(f"{failed}: access denied ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if code in _CONFLICT:
            return ConflictError(f"{failed}: another one wrote it first ({code})")
        if code in _FULL_OR_BUSY | _DAMAGED:
            return UnavailableError(f"{failed}: {error}; try again later")
        if code == "NoSuchBucket" or (code in _ABSENT and not self._bucket_exists()):
            return ResourceError(f"{failed}: there is no bucket {self.bucket!r}; create it or name another")
        if code in _ABSENT:
            return DataError(f"{failed}: there is no such object; check the key")
        return ResourceError(f"{failed}: {error}; try again")

    def _bucket_exists(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            return error.response.get("Error", {}).get("Code") not in _ABSENT
        except BotoCoreError:
            return True
        return True
