from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from measured_together import SAMPLER

from sfd_core.evaluation.rerun import Measurement
from sfd_core.host.processes import Processes
from sfd_core.studies.study import Point, Study


class Second(Processes):
    """The second of two processes, which need not meet."""

    def wait(self) -> None:
        pass


def test_two_points_that_sample_alike_are_one_for_every_process(
    measuring: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the least-cost paths of two weights; the first process may not have written the file of the first one yet."""
    points = [Point(f"weight {weight}", {"weight": weight}, SAMPLER) for weight in (0.5, 1.0)]
    drawn: list[str] = []
    monkeypatch.setattr(Measurement, "run", lambda _self, _order, what: drawn.append(what))
    study = Study("weights", lambda _: Figure(), replace(measuring, processes=Second(1, 2)), 6, tmp_path)
    assert list(study.measure(points)) == []
    assert drawn == ["point 1 of 2: weight 0.5"]
