"""Secrets: made once, readable by their owner only, and never shown."""

import os
from pathlib import Path

import pytest

from infra.lab.credentials import VARIABLES, Credentials, write_private
from sfd_core.host.errors import ConfigError, DataError


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_credentials_are_made_once_and_are_different_everywhere(tmp_path: Path) -> None:
    first = Credentials.of(tmp_path, {})
    assert Credentials.of(tmp_path, {}) == first
    (tmp_path / "other").mkdir()
    other = Credentials.of(tmp_path / "other", {})
    assert not set(first.values()) & set(other.values())
    assert all(len(secret) >= 12 for secret in first.values())


def test_the_file_is_its_owners_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        Credentials.of(tmp_path, {})
        write_private(tmp_path / "env", "export A=b\n")
    finally:
        os.umask(mask)
    assert mode(tmp_path / "credentials.json") == mode(tmp_path / "env") == 0o600


def test_what_the_environment_gives_is_used_and_not_written_down(tmp_path: Path) -> None:
    given = {variable: f"lab:given-in-the-environment-{name}" for name, variable in VARIABLES.items()}
    credentials = Credentials.of(tmp_path, given)
    assert set(credentials.values()) == set(given.values())
    assert "given-in-the-environment" not in (tmp_path / "credentials.json").read_text()


def test_credentials_do_not_show_themselves(tmp_path: Path) -> None:
    credentials = Credentials.of(tmp_path, {})
    assert not any(secret in repr(credentials) + str(credentials) for secret in credentials.values())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mlflow_password": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "credentials.json").write_text(text)
    with pytest.raises(DataError, match=r"credentials\.json is damaged"):
        Credentials.of(tmp_path, {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SFD_LAB_MLFLOW_PASSWORD", "hunter2"), ("PREFECT_SERVER_API_AUTH_STRING", "no-separator-in-this-one")],
)
def test_a_weak_password_is_refused_without_showing_it(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        Credentials.of(tmp_path, {variable: value})
    assert value not in str(caught.value)
