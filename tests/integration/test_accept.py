"""`make accept STAGE=...`: is a stage's result still the one of the code that dvc.lock was written with?

Both codes run the pipeline up to the stage on a small project. Bytes that other stages read have to be equal.
"""

import json
import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from projects import ROOT, Project, make_project
from same_outputs import bytes_below
from stage_results import results

from sfd_core.experiment.code import stage_code

pytestmark = [pytest.mark.accept, pytest.mark.timeout(1800)]
VARIANTS = ["sfd", "redi", "repa", "dit"]


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The tracked files of the commit that wrote dvc.lock."""
    commit = git("log", "-1", "--format=%H", "--", "dvc.lock").decode().strip()
    with tarfile.open(fileobj=BytesIO(git("archive", commit))) as archive:
        archive.extractall(tmp_path / "committed", filter="data")
    return tmp_path / "committed"


def test_the_result_of_a_stage_is_that_of_the_committed_code(tmp_path: Path, committed: Path) -> None:
    stage = os.environ["SFD_ACCEPT"]
    names = [f"{stage}@{variant}" for variant in VARIANTS] if stage in {"train", "evaluate"} else [stage]
    old = make_project(tmp_path / "old", VARIANTS, root=committed)
    new = make_project(tmp_path / "new", VARIANTS)
    for project in (old, new):
        project.run("dvc", "repro", *names)
    for name in names:
        for out in results(name):
            assert _differing(old, new, out) == [], f"{out} is another one than before"


def test_nothing_but_the_code_of_the_stage_changed() -> None:
    stage = os.environ["SFD_ACCEPT"]
    variants = yaml.safe_load((ROOT / "params.yaml").read_text())["active"]
    names = [f"{stage}@{variant}" for variant in variants] if stage in {"train", "evaluate"} else [stage]
    dvc = Project(ROOT).run("dvc", "status", "--json", *names)
    for name, reasons in json.loads(dvc.stdout).items():
        changed = {path for reason in reasons for paths in dict(reason).values() for path in paths}
        assert name not in names or changed <= {f"outputs/code/{stage}.json"}, f"{name}: {changed} changed, too"
    (recorded,) = (
        dep["md5"]
        for dep in yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"][names[0]]["deps"]
        if dep["path"] == f"outputs/code/{stage}.json"
    )
    cache = Path(Project(ROOT).run("dvc", "cache", "dir").stdout.strip())
    before = json.loads((cache / "files" / "md5" / recorded[:2] / recorded[2:]).read_text())
    assert before["libraries"] == dict(stage_code(stage).libraries), "other libraries may compute other numbers; run the stage"


def _differing(old: Project, new: Project, out: str) -> list[str]:
    before, after = bytes_below(old.path / out), bytes_below(new.path / out)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
