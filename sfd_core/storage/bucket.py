"""One bucket: objects up, down and listed, each failure as one message that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_core.errors import DataError, ResourceError
from sfd_core.paths import atomic_path, require_disk

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 60, 3
PART_BYTES = 16 * 2**20
"""Larger objects travel in parts of this size, so that memory stays small whatever the object."""

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_FORBIDDEN = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


@dataclass(frozen=True)
class StoredObject:
    """One object of a bucket."""

    key: str
    size: int
    """Bytes."""


class Storage:
    """One bucket; every failure is a `ResourceError` that says what to look at."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": ATTEMPTS})
        try:
            self._client: Any = boto3.Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise ResourceError(
                f"S3 storage cannot be set up: {error}; check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and AWS_PROFILE"
            ) from error
        self._transfer = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)

    @property
    def endpoint(self) -> str:
        """The address requests go to."""
        return str(self._client.meta.endpoint_url)

    def upload(self, path: Path, key: str) -> None:
        """Stream a file into the object `key`; raises `DataError` if there is no such file."""
        if not path.is_file():
            raise DataError(f"{path} cannot be uploaded to {self._name(key)}: it is no file; check the path")
        with self._explained("upload", key):
            self._client.upload_file(str(path), self.bucket, key, Config=self._transfer)

    def download(self, key: str, path: Path) -> None:
        """Stream the object `key` into a file, whole or not at all; raises `DataError` if there is no such object."""
        with self._explained("download", key):
            size = self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
            require_disk(path, size, f"downloading {self._name(key)}")
            with atomic_path(path) as temporary:
                self._client.download_file(self.bucket, key, str(temporary), Config=self._transfer)
                received = temporary.stat().st_size
                if received != size:
                    raise ResourceError(f"{self._name(key)} has {size} bytes, but {received} arrived; download it again")

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

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions

        failed = f"cannot {verb} {self._name(key)} at {self.endpoint}"
        try:
            yield
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise ResourceError(f"{failed}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            raise ResourceError(f"{failed}: it does not answer ({error}); check AWS_ENDPOINT_URL and that it runs") from error
        except S3UploadFailedError as error:
            raise self._refusal(failed, error, error.__context__) from error
        except exceptions.ClientError as error:
            raise self._refusal(failed, error, error) from error
        except exceptions.BotoCoreError as error:
            raise ResourceError(f"{failed}: {error}; try again") from error

    def _refusal(self, failed: str, error: Exception, cause: Any) -> DataError | ResourceError:
        code = getattr(cause, "response", {}).get("Error", {}).get("Code", "")
        if code == "NoSuchBucket" or (code in _ABSENT and not self._bucket_exists()):
            return ResourceError(f"{failed}: there is no bucket {self.bucket!r}; create it or name another")
        if code in _ABSENT:
            return DataError(f"{failed}: there is no such object; check the key")
        if code in _FORBIDDEN:
            return ResourceError(f"{failed}: access denied ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return ResourceError(f"{failed}: {error}; try again")

    def _bucket_exists(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError:
            return False
        return True
