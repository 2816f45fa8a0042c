"""What a point of a sweep costs beside its training, in counts that no load of the machine changes."""

import os
import re
from pathlib import Path

import pytest
from counted_points import counted_laboratory
from laboratory import NEEDS_S3, WITH_SERVERS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), NEEDS_S3, *WITH_SERVERS]

MOST_PROCESSES, MOST_REQUESTS = 15, 240
"""Half of 31 and much less than half of 642, which a point once took."""


def test_a_point_starts_few_processes_and_asks_the_servers_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_laboratory(tmp_path / "project") as counted:
        monkeypatch.chdir(tmp_path / "project")
        counted.run(counted.point(0.1))
        commands, requests = counted.run(counted.point(0.2))
    told = "\n".join([*commands, *(f"{name} {line}" for name, lines in requests.items() for line in lines)])
    print({"processes": len(commands), **{name: len(lines) for name, lines in requests.items()}}, os.getloadavg())
    assert [stage for command in commands for stage in re.findall(r"sfd_core\.stages\.(\w+)", command)] == [
        "inputs",
        "train",
        "evaluate",
    ], told
    assert len(commands) <= MOST_PROCESSES, told
    assert sum(map(len, requests.values())) <= MOST_REQUESTS, told
    assert not [line for line in requests["MLFLOW"] if "/code/sfd_core/" in line]
    assert len([line for line in requests["S3"] if line.startswith("PUT /dvc/runs/")]) == 2, told
