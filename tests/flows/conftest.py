"""One Prefect server for all tests of flows."""

import shutil
from collections.abc import Iterator

import pytest
from laboratory import Laboratory, flow_project, free_port
from projects import Project


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A Prefect server; its address is in the environment of the tests, too."""
    made = Laboratory(tmp_path_factory.mktemp("laboratory"), free_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        try:
            made.start_server()
            yield made
        finally:
            made.stop_all()


@pytest.fixture(scope="session")
def project(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A tiny project that a worker serves, called `one`, with nothing computed yet."""
    made = flow_project(tmp_path_factory.mktemp("flows") / "project", ["sfd"])
    laboratory.start_worker(made, "one")
    yield made
    shutil.rmtree(made.path, ignore_errors=True)
