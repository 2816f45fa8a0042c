"""One Prefect server for all tests of flows."""

import shutil
from collections.abc import Iterator

import pytest
from laboratory import Laboratory, flow_project, prefect_variables
from projects import Project
from seaweed import free_ports


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A Prefect server; its address is in the environment of the tests, too."""
    made = Laboratory(tmp_path_factory.mktemp("laboratory"), free_ports(1)[0])
    with prefect_variables(made.environment):
        try:
            made.start_server()
            yield made
        finally:
            made.stop_all()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A tiny project with the flows and nothing computed yet."""
    made = flow_project(tmp_path_factory.mktemp("flows") / "project", ["sfd"])
    yield made
    shutil.rmtree(made.path, ignore_errors=True)


@pytest.fixture
def project(laboratory: Laboratory, tiny: Project) -> Project:
    """The tiny project, served by a worker called `one`."""
    if not laboratory.serves(tiny):
        laboratory.start_worker(tiny, "one")
    return tiny
