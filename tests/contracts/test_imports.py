"""Which way imports point, and what the core runs without."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_SERVICES = """
import importlib, pathlib, sys
for name in ("prefect", "mlflow", "dvc", "boto3"):
    sys.modules[name] = None
paths = sorted(pathlib.Path("sfd_core").rglob("*.py"))
assert len(paths) > 50, paths
for path in paths:
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
"""


def test_imports_point_down_and_siblings_do_not_import_one_another() -> None:
    ended = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


def test_every_module_imports_without_scheduler_tracker_versioning_and_storage() -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT_SERVICES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
