"""Measuring in several processes gives the numbers of one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_together import LABELS, SAMPLER

from sfd_core.evaluation.measurement import Order
from sfd_core.evaluation.rerun import Measurement


def measured_by_two(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Measure in two new processes over gloo; return the numbers and the batches that each drew."""
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2] / 'support'}{os.pathsep}{Path(__file__).parents[3]}"}
    script = Path(__file__).parents[2] / "support" / "measured_together.py"
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(folder)],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    drawn = [(folder / f"drawn-{rank}.txt").read_text() for rank in range(2)]
    return json.loads((folder / "numbers.json").read_text()), drawn


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as each of several processes has: sums in other parts round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
def test_two_processes_measure_what_one_does(measuring: Measurement, studied: Path) -> None:
    together, drawn = measured_by_two(studied)
    alone = measuring.run(Order(LABELS, SAMPLER), "samples")
    assert alone is not None
    assert together == {"final": {name: asdict(number) for name, number in alone[0].items()}}
    assert drawn == ["0 6", "3 9"]
    assert not list((studied / ".sfd").rglob("*.safetensors"))
