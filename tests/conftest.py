"""Fixtures that several kinds of tests share, and the order of tests."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from projects import LEAST_COST, Project, make_project

SHARED = {
    "reproduced": "pipeline",
    "empty_store": "mlflow",
    "alone": "parallel",
    "endpoint": "s3",
    "written": "report",
    "studied": "studies",
    "stages": "stages",
    "weights": "inception",
    "avatars": "avatars",
}
"""Fixtures that take seconds to set up -> the group whose tests share one, in one process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by what they share, and start groups first: single tests then keep all processes busy to the end."""
    for item in items:
        for fixture in SHARED.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(SHARED[fixture]))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop if pytest-xdist did not mark the groups, as with versions of pytest that it does not know."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if hasattr(session.config, "workerinput") and not all("@" in item.nodeid.rpartition("]")[2] for item in grouped):
        raise pytest.UsageError("pytest-xdist lost the groups of tests: every process would build the shared worlds itself")


@pytest.fixture
def in_an_empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, below which the stages keep interrupted work."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect garbage at the end of a test that ignores its warnings, so that none comes up in another one."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A tiny project on which `dvc repro` ran once; a test that changes its parameters restores them."""
    project = make_project(
        tmp_path_factory.mktemp("projects") / "tiny", ["dit", "sfd", "repa"], values={"schedule": LEAST_COST}
    )
    project.run("dvc", "repro")
    yield project
    shutil.rmtree(project.path, ignore_errors=True)
