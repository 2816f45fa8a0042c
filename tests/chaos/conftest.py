"""The project whose stages are killed, and the sum of all kills."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path

import pytest
from killing import Tally
from long_stages import lay_out
from projects import Project

AT_RANDOM, AT_A_CHANGE, REPRO = "stages at random moments", "stages between two changes of files", "dvc repro at random moments"
TALLY = "kills of "
"""Begins the name of a test's property that holds a tally; properties reach the summary from every pytest process."""


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which every stage ran once; to be copied, not to be changed."""
    return lay_out(tmp_path_factory.mktemp("chaos") / "whole")


@pytest.fixture
def project(laid_out: Project, tmp_path: Path) -> Project:
    """A copy of `laid_out`."""
    shutil.copytree(laid_out.path, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def random_kills(record_property: Callable[[str, object], None]) -> Callable[[Tally], None]:
    """Takes what became of a stage that was killed at random moments."""
    return lambda tally: record_property(TALLY + AT_RANDOM, asdict(tally))


@pytest.fixture
def single_changes(record_property: Callable[[str, object], None]) -> Callable[[Tally], None]:
    """Takes what became of a stage that was killed before every change of files."""
    return lambda tally: record_property(TALLY + AT_A_CHANGE, asdict(tally))


@pytest.fixture
def whole_runs(record_property: Callable[[str, object], None]) -> Callable[[Tally], None]:
    """Takes what became of a `dvc repro` that was killed at random moments."""
    return lambda tally: record_property(TALLY + REPRO, asdict(tally))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what became of all kills."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    properties = [item for report in reports if report.when == "call" for item in report.user_properties]
    for what in (REPRO, AT_A_CHANGE, AT_RANDOM):
        tallies = [Tally(**values) for name, values in properties if name == TALLY + what]
        if tallies:
            terminalreporter.section(f"kills: {what}")
            for tally in (*tallies, reduce(add, tallies, Tally(""))):
                terminalreporter.write_line(str(tally))
