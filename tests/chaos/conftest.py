"""The project whose stages are killed, and the sum of all kills."""

import shutil
from pathlib import Path

import pytest
from killing import Tally
from long_stages import lay_out
from projects import Project

TALLIES = pytest.StashKey[list[Tally]]()


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which every stage ran once; to be copied, not to be changed."""
    return lay_out(tmp_path_factory.mktemp("chaos") / "whole")


@pytest.fixture
def project(laid_out: Project, tmp_path: Path) -> Project:
    """A copy of `laid_out`."""
    shutil.copytree(laid_out.path, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def tallies(request: pytest.FixtureRequest) -> list[Tally]:
    """What is summed up when all tests are done."""
    return request.config.stash.setdefault(TALLIES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what became of all kills."""
    tallies = config.stash.get(TALLIES, [])
    if not tallies:
        return
    terminalreporter.section("kills")
    for tally in tallies:
        terminalreporter.write_line(str(tally))
    kills, survived, lost, writing = (
        sum(getattr(tally, name) for tally in tallies) for name in ("kills", "survived", "lost", "writing")
    )
    terminalreporter.write_line(
        f"kills {kills}, survived {survived}, lost {lost} ({writing / max(kills, 1):.0%} in the writing of a checkpoint)"
    )
