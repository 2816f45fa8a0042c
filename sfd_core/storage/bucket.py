"""Uploads and downloads objects of one bucket; every failure has a message that says what to do.

Large objects are transferred in parts, so memory use does not depend on their size. Every object stores the SHA-256 of its
content, which is checked after download. The parts have their own checksums, which the server checks on upload.
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

from sfd_core.host.addresses import in_a_line, public, require_s3
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.paths import atomic_path, file_digest, require_disk

T = TypeVar("T")

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 60, 3
PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 4
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between attempts of a storage with `patience`; they double and are randomised."""
DIGEST = "sha256"
"""Metadata key of an object's SHA-256."""

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_FULL_OR_BUSY = {"500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout"}
# damaged in transfer, so worth another attempt
_DAMAGED = {"BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch"}


class UnavailableError(ResourceError):
    """The storage does not answer, or is busy."""


class ConflictError(ResourceError):
    """The object does not meet the condition of a write."""


@dataclass(frozen=True)
class Content:
    """A small object at one moment."""

    data: bytes
    etag: str
    """Changes with the content; used as condition of `Storage.put`."""
    age: float
    """Seconds since it was written, by the server's clock."""


class Storage:
    """One bucket; every failure is a `ResourceError` that says what to check.

    Failed requests are repeated a few times. If the server does not answer or is busy, they are then repeated for another
    `patience` seconds, with growing waits. Rejected requests raise at once.
    Making one raises `ConfigError` if the address in the environment cannot be one, or holds a password.
    """

    def __init__(self, bucket: str, patience: float = 0.0) -> None:
        self.bucket, self.patience = bucket, patience
        require_s3()
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
                f"S3 storage cannot be set up: {in_a_line(error, '')}; check AWS_DEFAULT_REGION and AWS_PROFILE"
            ) from error
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return public(self._address)

    @property
    def _address(self) -> str:
        return str(self._client.meta.endpoint_url)

    def check(self) -> None:
        """Check with one request that the bucket exists and is accessible.

        Raises `ResourceError`, or its subclass `UnavailableError` if the storage does not answer.
        """
        with self._translate_errors("use", ""):
            self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)

    def upload(self, path: Path, key: str, digest: str | None = None) -> None:
        """Upload a file (SHA-256 `digest`, if known) to the object `key`. Raises `DataError` if there is no such file."""
        if not path.is_file():
            raise DataError(f"{path} cannot be uploaded to {self._name(key)}: it is not a file; check the path")
        extra = {"Metadata": {DIGEST: digest or file_digest(path)}}

        def attempt() -> None:
            with self._translate_errors("upload", key):
                self._client.upload_file(str(path), self.bucket, key, ExtraArgs=extra, Config=self._transfer)

        self._retry(attempt)

    def download(self, key: str, path: Path, digest: str | None = None) -> None:
        """Download the object `key` to a file atomically.

        Raises `DataError` if there is no such object, or if its SHA-256 is not `digest`, by default that of the upload.
        """
        self._retry(lambda: self._download(key, path, digest))

    def digest(self, key: str) -> str | None:
        """Return the SHA-256 stored with the object `key`; None if there is no such object, or another program uploaded it."""
        try:
            with self._translate_errors("check", key):
                found: str | None = self._client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get(DIGEST)
        except DataError:
            return None
        return found

    def put(self, key: str, data: bytes, *, absent: bool = False, etag: str | None = None) -> str:
        """Write a small object and return its etag; optionally only if it is `absent`, or still has `etag`.

        Raises `ConflictError` if the condition does not hold. The server checks it, so only one of several writers succeeds. A
        lost answer and a retry can cause a conflict with the writer itself.
        """
        condition = {"IfNoneMatch": "*"} if absent else {"IfMatch": etag} if etag is not None else {}
        metadata = {DIGEST: hashlib.sha256(data).hexdigest()}
        with self._translate_errors("write", key):
            answer = self._client.put_object(Bucket=self.bucket, Key=key, Body=data, Metadata=metadata, **condition)
        return str(answer["ETag"])

    def get(self, key: str) -> Content:
        """Read a small object. Raises `DataError` if it does not exist."""
        with self._translate_errors("read", key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            data = answer["Body"].read()
        written: datetime = answer["LastModified"]
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Content(data, str(answer["ETag"]), (now - written).total_seconds())

    def delete(self, key: str) -> None:
        """Delete the object `key` if it exists."""
        with self._translate_errors("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, sorted."""
        with self._translate_errors("list", prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                yield from (entry["Key"] for entry in page.get("Contents", []))

    def _download(self, key: str, path: Path, expected: str | None) -> None:
        with self._translate_errors("download", key):
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
                        f"{self._name(key)} is damaged: its content has another SHA-256 than expected; "
                        "delete it and upload it again"
                    )

    def _retry(self, attempt: Callable[[], T]) -> T:
        """Repeat `attempt` while the storage is unavailable, for at most `patience` seconds."""
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
    def _translate_errors(self, verb: str, key: str) -> Iterator[None]:
        from boto3.exceptions import RetriesExceededError, S3UploadFailedError
        from botocore import exceptions

        failed = f"cannot {verb} {self._name(key)} at {self.endpoint}"

        def why(error: Exception) -> str:
            return in_a_line(error, self._address)

        try:
            yield
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise ResourceError(f"{failed}: {why(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except (exceptions.ConnectionError, exceptions.HTTPClientError, RetriesExceededError) as error:
            raise UnavailableError(
                f"{failed}: it does not answer ({why(error)}); check AWS_ENDPOINT_URL and that the server runs"
            ) from error
        except S3UploadFailedError as error:
            raise self._client_error(failed, error, error.__context__) from error
        except exceptions.ClientError as error:
            raise self._client_error(failed, error, error) from error
        except RecursionError as error:  # botocore follows a redirect that is not S3's for ever
            raise ResourceError(f"{failed}: it redirects, as no S3 server does; check AWS_ENDPOINT_URL") from error
        except exceptions.BotoCoreError as error:
            raise ResourceError(f"{failed}: {why(error)}; try again") from error

    def _client_error(self, failed: str, error: Exception, cause: Any) -> DataError | ResourceError:
        code = getattr(cause, "response", {}).get("Error", {}).get("Code", "")
        if code in _FORBIDDEN:
            return ResourceError(f"{failed}: access denied ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if code in _CONFLICT:
            return ConflictError(f"{failed}: another writer was first ({code})")
        if code in _FULL_OR_BUSY | _DAMAGED:
            return UnavailableError(f"{failed}: {in_a_line(error, self._address)}; try again later")
        if code == "NoSuchBucket" or (code in _ABSENT and not self._bucket_exists()):
            return ResourceError(f"{failed}: there is no bucket {self.bucket!r}; create it or use another")
        if code in _ABSENT:
            return DataError(f"{failed}: there is no such object; check the key")
        return ResourceError(f"{failed}: {in_a_line(error, self._address)}; try again")

    def _bucket_exists(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            return error.response.get("Error", {}).get("Code") not in _ABSENT
        except BotoCoreError:
            return True
        return True
