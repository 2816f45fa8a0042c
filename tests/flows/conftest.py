"""One Prefect server for all tests of flows."""

from collections.abc import Iterator

import pytest
from laboratory import Laboratory, free_port


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
