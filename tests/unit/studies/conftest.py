"""A small trained denoiser, and what measures it in an empty folder."""

from pathlib import Path

import pytest
from measured_together import lay_out, measurement

from sfd_core.evaluation.rerun import Measurement
from sfd_core.host.processes import ALONE


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studied")
    lay_out(path)
    return path


@pytest.fixture
def measuring(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    monkeypatch.chdir(tmp_path)
    return measurement(studied, ALONE)
