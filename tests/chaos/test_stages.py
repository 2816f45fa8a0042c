"""Every stage that works for long, killed twenty times at random moments, ends in what an unbroken run writes, bit for bit."""

import shutil
from collections.abc import Callable

import pytest
from killing import AIMS, Tally, kill_again_and_again
from long_stages import ENCODE, EVALUATE, SEMANTIC_VAE, TEXTURE_VAE, TRAIN, give_many_images
from projects import Project
from stage_runs import Stage, StageServer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

RESUMED = "resumed after step"
KEPT = "rows of an interrupted run"


@pytest.mark.parametrize(
    ("stage", "continues"),
    [(TEXTURE_VAE, RESUMED), (SEMANTIC_VAE, RESUMED), (ENCODE, KEPT), (TRAIN, RESUMED), (EVALUATE, "")],
    ids=lambda value: value.name if isinstance(value, Stage) else "",
)
def test_a_stage_killed_at_random_moments_ends_as_an_unbroken_one(
    project: Project, random_kills: Callable[[Tally], None], stage: Stage, continues: str
) -> None:
    if stage is ENCODE:
        give_many_images(project)
        stage.run(project)
    whole = project.path / "whole"
    shutil.move(project.path / stage.out, whole)
    with StageServer(stage, project) as server:
        tally = kill_again_and_again(server, whole, seed=0, continues=continues)
    random_kills(tally)
    assert tally.lost == 0, "\n".join(tally.troubles)
    assert tally.survived == len(AIMS)
    assert tally.writing > 0, "no kill fell into the writing of a checkpoint"
    assert tally.continued > 0 or not continues, "no start went on where a killed run stood"
