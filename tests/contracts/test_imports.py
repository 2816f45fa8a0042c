"""Which way imports point, and what the core runs without."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import importlib, pathlib, sys
blocked, rooms = (words.split(",") for words in sys.argv[1:])
for name in blocked:
    sys.modules[name] = None
for room in rooms:
    paths = sorted(pathlib.Path(room).rglob("*.py"))
    assert paths, room
    for path in paths:
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
"""


def require_imports_without(blocked: str, rooms: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, blocked, rooms], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_imports_point_down_and_siblings_do_not_import_one_another() -> None:
    ended = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


def test_every_module_imports_without_scheduler_tracker_versioning_and_storage() -> None:
    require_imports_without("prefect,mlflow,dvc,boto3", "sfd_core")


def test_training_and_sampling_import_on_a_machine_that_has_little_more_than_torch() -> None:
    rooms = ",".join(f"sfd_core/{room}" for room in ("diffusion", "models", "training", "sampling"))
    require_imports_without("boto3,prefect,mlflow,dvc,diffusers,torch_fidelity,torchdiffeq", rooms)


def test_the_room_host_imports_no_pydantic() -> None:
    program = "import sys, sfd_core.host, sfd_core.host.paths, sfd_core.host.errors; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_results_are_printed_without_torch() -> None:
    program = "import sys, sfd_core.reporting.lines, sfd_core.reporting.tables; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
