"""A checkpoint whose content changed on the disk is named, the one before it is used, and the result is the same."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from long_stages import SEMANTIC_VAE, TRAIN
from projects import Project
from same_outputs import differences
from stage_runs import Run, Stage, StageServer, leftovers

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def checkpoints(run: Run) -> list[Path]:
    """Return the checkpoints that are whole, oldest first."""
    return sorted((run.project.path / run.stage.resume).glob("*/step-*"))


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("stage", "damage"),
    [(SEMANTIC_VAE, flip_byte), (SEMANTIC_VAE, truncate), (SEMANTIC_VAE, remove), (TRAIN, flip_byte)],
    ids=lambda value: value.name if isinstance(value, Stage) else value.__name__,
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    project: Project, stage: Stage, damage: Callable[[Path], None]
) -> None:
    whole = project.path / "whole"
    shutil.move(project.path / stage.out, whole)
    with StageServer(stage, project) as server:
        run = server.start()
        assert run.wait_for(lambda run: len(checkpoints(run)) >= 2)
        assert run.kill()
    before, newest = checkpoints(run)[-2:]
    damage(max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size))
    continued = stage.run(project).stderr
    assert re.search(rf"{newest.name}\b.*damaged", continued)
    assert f"resumed after step {int(before.name.removeprefix('step-'))} of" in continued
    assert differences(whole, project.path / stage.out, stage.times) == []
    assert leftovers(project, stage) == []
