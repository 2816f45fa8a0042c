"""Choices about the laboratory: wrong ones are told before anything starts."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from infra.lab.settings import Settings
from sfd_core.host.errors import ConfigError


def settings(environment: dict[str, str]) -> Settings:
    with patch.dict(os.environ, environment, clear=True):
        return Settings.read()


def test_without_any_choice_servers_listen_on_loopback_without_passwords() -> None:
    made = settings({})
    assert made.host == made.name == "127.0.0.1"
    assert not made.authentication
    assert not made.is_exposed
    assert made.folder == Path(".sfd/lab").absolute()
    assert (made.s3_port, made.mlflow_port, made.prefect_port) == (8333, 5000, 4200)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "lab.example"])
def test_beyond_loopback_passwords_are_on_and_cannot_be_switched_off(host: str) -> None:
    assert settings({"SFD_LAB_HOST": host}).authentication
    assert settings({"SFD_LAB_HOST": host}).is_exposed
    with pytest.raises(ConfigError, match=f"SFD_LAB_HOST is {host}.*SFD_LAB_AUTH is off"):
        settings({"SFD_LAB_HOST": host, "SFD_LAB_AUTH": "off"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_is_recognised(host: str) -> None:
    assert not settings({"SFD_LAB_HOST": host}).is_exposed
    assert settings({"SFD_LAB_HOST": host, "SFD_LAB_AUTH": "on"}).authentication


def test_addresses_name_the_machine_as_others_do() -> None:
    assert settings({"SFD_LAB_HOST": "0.0.0.0", "SFD_LAB_NAME": "node7"}).address(5000) == "http://node7:5000"
    assert settings({"SFD_LAB_HOST": "::1"}).address(5000) == "http://[::1]:5000"
    assert "0.0.0.0" not in settings({"SFD_LAB_HOST": "0.0.0.0"}).address(5000)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"SFD_LAB_MLFLOW_PORT": "web"}, "SFD_LAB_MLFLOW_PORT is 'web'"),
        ({"SFD_LAB_S3_PORT": "70000"}, "a port from 1 to 65535"),
        ({"SFD_LAB_MLFLOW_PORT": "4200"}, "cannot share a port"),
        ({"SFD_LAB_AUTH": "yes"}, "must be on or off"),
        ({"SFD_LAB_WORKER": "python 'open"}, "no command line"),
        ({"SFD_DATABASE_URL": "mysql://user:hidden-word@host/name"}, "no PostgreSQL address"),
        ({"SFD_DATABASE_URL": "postgresql://user:hidden-word@host:port/name"}, "no PostgreSQL address"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_without_its_password(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        settings(environment)
    assert "hidden-word" not in str(caught.value)


def test_the_worker_serves_the_deployments_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings({}).worker == ()
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "deployments.py").touch()
    assert settings({}).worker[1:] == ("-m", "flows.deployments")
    assert settings({"SFD_LAB_WORKER": ""}).worker == ()
    assert settings({"SFD_LAB_WORKER": "prefect worker start --pool 'my pool'"}).worker[-1] == "my pool"


def test_other_settings_have_another_fingerprint_that_gives_nothing_away() -> None:
    one, other = (settings({"SFD_DATABASE_URL": f"postgresql://u:{word}@h/n"}) for word in ("first", "second"))
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == settings({"SFD_DATABASE_URL": "postgresql://u:first@h/n"}).fingerprint
    assert len(one.fingerprint) == 16
