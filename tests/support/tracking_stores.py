"""A project folder with an embedded MLflow store."""

import shutil
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the database once: its migrations take longer than any test."""
    from sfd_core.tracking.store import Store  # noqa: PLC0415 - only tests that use it pay for mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "template")
        Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder without a tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return tmp_path


@pytest.fixture
def embedded(project: Path, empty_store: Path) -> Path:
    """Work in a folder whose `.sfd/mlflow.db` is an empty store."""
    (project / ".sfd").mkdir()
    shutil.copyfile(empty_store, project / ".sfd" / "mlflow.db")
    return project


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any import of mlflow fail."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
