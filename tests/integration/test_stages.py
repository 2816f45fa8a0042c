"""Every stage for itself: it needs no more than dvc.yaml says, imports no more than its code, and repeats its result."""

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from projects import Project, copy_pipeline
from same_outputs import bytes_below
from stage_results import results

from sfd_core.experiment.code import stage_code

pytestmark = pytest.mark.timeout(900)

PROGRAM = Path(__file__).parents[1] / "support" / "imported_modules.py"
STAGES = (
    "code", "inputs", "prepare", "texture_vae", "features", "semantic_vae", "encode", "reference", "schedule", "train@sfd",
    "train@repa", "train@dit", "evaluate@sfd", "studies@sfd", "report",
)  # fmt: skip
QUICK = ("code", "inputs", "encode", "train@sfd", "evaluate@sfd", "studies@sfd", "report")
"""Run in the quick tests; the others with the slow ones."""
CHECKED_WITH = {"sfd_core.experiment.sizes", "sfd_core.experiment.snapshots", "sfd_core.host.files"}
"""Count where a network is built, trained, and where images are listed; every stage imports them to check its parameters and
inputs.
"""
IDENTITIES = ("outputs/code/", "outputs/inputs/")
"""DVC compares them."""
READ_BY_SOME = {
    "train": ("outputs/prepare", "outputs/features", "outputs/semantic_vae", "outputs/schedule"),
    "studies": ("outputs/encode",),
    "report": ("outputs/schedule",),
}
"""One list of inputs serves all variants and studies, and only some are aligned with tokens, take a path, or measure errors."""


def locked(project: Project, stage: str) -> dict[str, Any]:
    """What dvc.lock says of a stage."""
    entry: dict[str, Any] = yaml.safe_load((project.path / "dvc.lock").read_text())["stages"][stage]
    return entry


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=[] if stage in QUICK else [pytest.mark.slow]) for stage in STAGES])
def test_a_stage_repeats_its_result_from_its_declared_inputs_alone(reproduced: Project, tmp_path: Path, stage: str) -> None:
    fresh = copy_pipeline(tmp_path / "fresh")
    shutil.copy2(reproduced.path / "params.yaml", fresh.path)
    if stage in {"inputs", "prepare"}:
        shutil.copytree(reproduced.path / "images", fresh.path / "images")
    for path in [entry["path"] for entry in locked(reproduced, stage).get("deps", []) if entry["path"].startswith("outputs/")]:
        (fresh.path / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (reproduced.path / path).is_dir() else shutil.copy2)(reproduced.path / path, fresh.path / path)
    _, _, module, *arguments = shlex.split(locked(reproduced, stage)["cmd"])
    fresh.run(sys.executable, str(PROGRAM), "modules.json", module, *arguments)
    for out in results(stage):
        assert bytes_below(fresh.path / out), out
        assert bytes_below(fresh.path / out) == bytes_below(reproduced.path / out), out
    code = stage_code(module.rpartition(".")[2], fresh.path / "sfd_core").modules
    for name in json.loads((fresh.path / "modules.json").read_text()):
        known = name in code or name in CHECKED_WITH or not shapes_results(name)
        assert known, f"{name} is imported by {stage} but is no part of its code"


def shapes_results(name: str) -> bool:
    """What a module, or else the nearest package above it that says anything, says of itself."""
    while name:
        said = getattr(importlib.import_module(name), "SHAPES_RESULTS", None)
        if said is not None:
            return bool(said)
        name = name.rpartition(".")[0]
    return True


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_reads_each_of_its_inputs(reproduced: Project, tmp_path: Path, stage: str) -> None:
    entry = locked(reproduced, stage)
    for path in [dep["path"] for dep in entry["deps"] if dep["path"].startswith("outputs/")]:
        if path.startswith((*IDENTITIES, *READ_BY_SOME.get(stage.partition("@")[0], ()))):
            continue
        fresh = tmp_path / path.replace("/", "-")
        shutil.copytree(reproduced.path, fresh, ignore=shutil.ignore_patterns(".git", ".sfd", "cache"))
        shutil.rmtree(fresh / path) if (fresh / path).is_dir() else (fresh / path).unlink()
        ended = subprocess.run(
            shlex.split(entry["cmd"]), cwd=fresh, env=reproduced.environment, capture_output=True, check=False
        )
        said = f"{stage} does not need {path}: {ended.stderr.decode()}"
        if stage == "report" and ended.returncode == 0:  # it leaves out what is not there
            page = "report/index.html"
            assert (fresh / page).read_bytes() != (reproduced.path / page).read_bytes(), said
        else:
            assert ended.returncode == 2, said
