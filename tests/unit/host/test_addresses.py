import pytest

from sfd_core.host.addresses import in_a_line, public, require_s3, why_no_server
from sfd_core.host.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:p%40ss@host:1/path", "http://host:1/path"),
        ("http://token@host", "http://host"),
        ("http://user:pass/word@host:1", "http://host:1"),
        ("http://user:p@ss/word@host:1", "http://host:1"),
        ("user:password@host:1", "host:1"),
        ("postgresql://host/runs?password=word&sslmode=require", "postgresql://host/runs?password=***&sslmode=require"),
        ("postgresql+psycopg://user:p@ss@host/runs", "postgresql+psycopg://host/runs"),
    ],
)
def test_an_address_is_shown_without_its_secrets(uri: str, shown: str) -> None:
    assert public(uri) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////srv/.sfd/mlflow.db", "http://host:5000/path", "http://host:5000/team@home", "http://[::1]:5000/",
        "s3://bucket/key@home", "./folder",
    ],
)  # fmt: skip
def test_an_address_without_a_secret_is_shown_as_it_is(uri: str) -> None:
    assert public(uri) == uri


def test_what_a_server_answers_is_shown_in_a_line_without_its_password() -> None:
    error = RuntimeError("request to http://user:p%40ss@host:1/api failed: p@ss by http://other:word@proxy\nTraceback")
    assert in_a_line(error, "http://user:p%40ss@host:1") == "request to http://host:1/api failed: *** by http://proxy"
    assert in_a_line(RuntimeError("mail me@home"), "http://host") == "mail me@home"
    assert in_a_line(TimeoutError(), "http://host") == "TimeoutError"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://host:1/api", ""),
        ("https://[::1]:1", ""),
        ("http://user:password@host", ""),
        ("ftp://host", "http:// or https://"),
        ("host:1", "http:// or https://"),
        ("http//host", "http:// or https://"),
        ("http://[::1", "http:// or https://"),
        ("/api", "http:// or https://"),
        ("http://host:many", "its port"),
        ("http://host:99999", "its port"),
        ("http://host:-1", "its port"),
        ("http://host:0", "its port"),
        ("http://", "names no host"),
        ("http://:80", "names no host"),
        ("http://a host", "names no host"),
    ],
)
def test_an_address_that_can_be_no_server_is_told_without_asking_it(uri: str, reason: str) -> None:
    said = why_no_server(uri)
    assert reason in said
    assert bool(reason) == bool(said)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://user:hidden@host:many", "its port is no number"),
        ("user:hidden@host:1", "does not begin with http://"),
        ("http://user:hidden@host:1", r"set it to http://host:1, and AWS_ACCESS_KEY_ID"),
        ("http://user:hid/den@host:1", r"its port is no number"),
    ],
)
def test_a_bad_address_of_s3_is_told_with_its_variable_and_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, uri: str, said: str
) -> None:
    monkeypatch.setenv(variable, uri)
    with pytest.raises(ConfigError, match=f"^{variable} .*{said}") as caught:
        require_s3()
    assert "hid" not in str(caught.value)
