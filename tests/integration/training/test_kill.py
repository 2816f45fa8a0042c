"""A training killed by SIGKILL at random moments ends as the unbroken one.

The trainings run in forks of a fresh interpreter: real processes, without an import of torch for each.
"""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.history import read_history

PROGRAM = Path(__file__).with_name("killed_training.py")
TIMINGS = {"seconds", "images_per_second"}


def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, PROGRAM, tmp_path], check=True, timeout=280, capture_output=True, text=True)
    assert "killed 4 times" in told.stdout
    unbroken, killed = ResumeFolder(tmp_path / "unbroken"), ResumeFolder(tmp_path / "killed")
    expected, actual = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("unbroken", "killed"))
    for part in ("weights", "ema"):
        assert expected[part].keys() == actual[part].keys()
        assert all(torch.equal(value, actual[part][name]) for name, value in expected[part].items()), part
    curves = [
        [{name: value for name, value in row.items() if name not in TIMINGS} for row in read_history(folder.history_path)]
        for folder in (unbroken, killed)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 60
    for one, other in zip(unbroken.snapshots(), killed.snapshots(), strict=True):
        assert one.step == other.step
        first, second = load_file(one.path), load_file(other.path)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
