"""The DVC remote of the laboratory is set where none is chosen, for this clone only."""

import subprocess
import sys
from pathlib import Path

from infra.lab.remote import set_remote


def dvc(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_project_without_a_remote_gets_the_laboratory_and_keeps_what_else_its_config_says(tmp_path: Path) -> None:
    dvc(tmp_path, "init", "--no-scm")
    dvc(tmp_path, "config", "--local", "cache.type", "copy")
    assert set_remote(tmp_path)
    assert dvc(tmp_path, "config", "core.remote") == "laboratory"
    assert dvc(tmp_path, "config", "remote.laboratory.url") == "s3://dvc"
    assert dvc(tmp_path, "config", "cache.type") == "copy"
    assert set_remote(tmp_path)
    assert "laboratory" not in (tmp_path / ".dvc" / "config").read_text()


def test_a_remote_that_was_chosen_stays(tmp_path: Path) -> None:
    dvc(tmp_path, "init", "--no-scm")
    dvc(tmp_path, "remote", "add", "--default", "store", "s3://elsewhere")
    assert not set_remote(tmp_path)
    assert dvc(tmp_path, "config", "core.remote") == "store"


def test_a_folder_that_is_no_project_is_left_alone(tmp_path: Path) -> None:
    assert not set_remote(tmp_path)
    assert list(tmp_path.iterdir()) == []
