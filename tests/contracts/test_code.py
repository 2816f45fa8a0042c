"""Which stages run again when a function of a package changes: the table of what depends on what."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfd_core.experiment.code import _DATA as DATA
from sfd_core.experiment.code import PACKAGE, SOURCES, stage_code, stage_names
from sfd_core.host.errors import USER_ERROR_EXIT_CODE

DENOISERS = {"schedule", "train"}
TRAININGS = {"texture_vae", "semantic_vae", *DENOISERS}
DRAWINGS = {"evaluate", "studies"}
LATENTS = {"features", "semantic_vae", "encode", *DENOISERS, *DRAWINGS}
SHARDS = {"prepare", "texture_vae", "reference", *LATENTS}
DEPENDS: dict[str, set[str]] = {
    "cli/main.py:main": set(),
    "data/sources/tar.py:tar_images": {"prepare"},
    "data/store/shards.py:ShardReader": SHARDS,
    "data/store/verified.py:verify_files": set(),
    "diffusion/error_field.py:least_cost_path": {"schedule", "studies", "report"},
    "diffusion/loss.py:flow_loss": {*DENOISERS, "studies"},
    "diffusion/schedule.py:Schedule": {*DENOISERS, *DRAWINGS, "report"},
    "diffusion/solver.py:integrate": DRAWINGS,
    "evaluation/convergence.py:speed_up": {"report"},
    "evaluation/measurement.py:measure": DRAWINGS,
    "evaluation/reference.py:write_reference": {"reference", *DRAWINGS},
    "experiment/params.py:load_params": set(),
    "host/paths.py:file_digest": set(),
    "host/seeding.py:derive_seed": SHARDS - {"features"},
    "latents/composite.py:StreamingMoments": LATENTS,
    "latents/encoder.py:LatentEncoder": {"encode"},
    "models/denoisers/lightningdit.py:LightningDiT": {*DENOISERS, *DRAWINGS},
    "models/encoders/encoder.py:load_encoder": {"features", "semantic_vae", "encode", *DENOISERS, "reference", *DRAWINGS},
    "models/public/ldm.py:to_diffusers": {"texture_vae"},
    "models/vaes/texture_vae.py:TextureVAE": {"texture_vae", "encode", "reference", *DRAWINGS},
    "reporting/tables.py:result_table": {"report"},
    "sampling/pipeline.py:Pipeline": DRAWINGS,
    "stages/extraction.py:run_all": {"features", "encode"},
    "stages/training.py:run_training": TRAININGS,
    "storage/bucket.py:Storage": set(),
    "studies/study.py:Study": {"studies"},
    "tracking/store.py:sync_run": set(),
    "training/loop.py:run": TRAININGS,
    "training/progress.py:Progress": set(),
    "training/tasks/texture.py:TextureVAETask": {"texture_vae"},
    "workspace/git.py:worktree": set(),
}
"""File and name of a function or class -> the stages whose result it can change."""


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return {stage: stage_code(stage).hash for stage in stage_names()}


@pytest.mark.parametrize("place", DEPENDS)
def test_a_changed_function_concerns_just_the_stages_that_run_it(tmp_path: Path, before: dict[str, str], place: str) -> None:
    file, name = place.split(":")
    copy = tmp_path / PACKAGE
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    tree = ast.parse((copy / file).read_text())
    (changed,) = (node for node in tree.body if getattr(node, "name", None) == name)
    assert isinstance(changed, ast.FunctionDef | ast.ClassDef)
    changed.body.append(ast.parse("changed = 1").body[0])
    (copy / file).write_text(ast.unparse(tree))
    assert {stage for stage, code in before.items() if stage_code(stage, copy).hash != code} == DEPENDS[place]


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.relative_to(SOURCES) for path in SOURCES.rglob("*.py") if path.name != "__init__.py"}
    assert packages == {Path(place.split(":")[0]).parent for place in DEPENDS}


def test_the_stage_imports_no_torch() -> None:
    program = "import sys, sfd_core.stages.code; print(sorted({'torch', 'pandas', 'mlflow', 'pydantic'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=SOURCES.parent, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_python_without_the_libraries_records_nothing(tmp_path: Path) -> None:
    without_packages = [sys.executable, "-S", "-m", "sfd_core.stages.code"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES.parent)}
    ended = subprocess.run(without_packages, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "numpy" in ended.stderr
    assert "put .venv/bin first in PATH" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["my_research.py", "my_research/loss.py"])
def test_code_beside_the_package_is_refused_because_it_is_not_tracked(tmp_path: Path, file: str) -> None:
    shutil.copytree(SOURCES, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / PACKAGE / "stages" / "train.py").open("a") as stage:
        stage.write("\nfrom my_research import loss\n")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    ended = subprocess.run(
        [sys.executable, "-m", "sfd_core.stages.code"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == USER_ERROR_EXIT_CODE
    assert "imports my_research from beside sfd_core" in ended.stderr
    assert "import sfd_core.my_research" in ended.stderr
    assert not (tmp_path / "outputs").exists()


def test_every_file_beside_code_is_of_a_kind_that_counts() -> None:
    files = [path for path in SOURCES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} == DATA | {".py", ".typed"}
