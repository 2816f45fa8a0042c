"""One S3 server for all tests of storage."""

from collections.abc import Callable, Iterator

import pytest
from faulty_proxy import FaultyProxy
from seaweed import CREDENTIALS, WEED, SeaweedFS

from sfd_core.storage import bucket
from sfd_core.storage.bucket import Storage


def set_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set endpoint, and keys other than the right ones, in the environment."""

    def set_(endpoint: str, key: str = CREDENTIALS[0], secret: str = CREDENTIALS[1]) -> None:
        set_environment(monkeypatch, endpoint, key, secret)

    return set_


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the bucket `lab`."""
    if WEED is None:
        pytest.skip("the SeaweedFS binary is not installed")
    server = SeaweedFS(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server.endpoint
    server.kill()


@pytest.fixture(scope="session")
def client(endpoint: str) -> Storage:
    """Made once: setting boto3 up takes longer than most requests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_environment(monkeypatch, endpoint, *CREDENTIALS)
        return Storage("lab")


@pytest.fixture
def storage(endpoint: str, client: Storage, credentials: Callable[..., None]) -> Storage:
    credentials(endpoint)
    return client


@pytest.fixture
def proxy(endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy before the server that misbehaves when told."""
    proxy = FaultyProxy(int(endpoint.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits and small parts in the code under test."""
    monkeypatch.setattr(bucket, "PART_BYTES", 2**18)
    monkeypatch.setattr(bucket, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(bucket, "LONGEST_WAIT", 0.3)
    monkeypatch.setattr(bucket, "READ_SECONDS", 1)
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
