"""A proxy that is set for the outer world is not asked for servers on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from answering import answering

CLIENTS = {
    "requests, as MLflow": "import requests; print(requests.get(address).text)",
    "httpx, as Prefect": "import httpx; print(httpx.get(address).text)",
    "botocore": """
import boto3
from botocore.config import Config
keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=address, config=Config(retries={"max_attempts": 0}), **keys)
print(client.get_object(Bucket="b", Key="k")["Body"].read().decode())
""",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with answering(body=b"here") as address:
        yield address


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("others", ["", "example.org"])
def test_no_client_asks_the_proxy_for_this_machine(address: str, client: str, others: str) -> None:
    refusing = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | refusing
    environment |= {"NO_PROXY": others} if others else {}
    program = f"import sfd_core; address = {address!r}\n{CLIENTS[client]}"
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "here", ended.stderr
