"""SIGTERM, which a cluster sends before it takes a machine away: a checkpoint at once, and an exit code of its own."""

import re
import shutil
import signal
import time

import pytest
from long_stages import SEMANTIC_VAE, TEXTURE_VAE, TRAIN
from projects import Project
from same_outputs import differences
from stage_runs import Stage, StageServer, leftovers

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

PREEMPTED = 85
SECONDS_TO_END = 20.0
RARELY = 100_000
"""No checkpoint but those that a signal asks for."""
ENOUGH_STEPS = 3


@pytest.mark.parametrize("stage", [TEXTURE_VAE, SEMANTIC_VAE, TRAIN], ids=lambda stage: stage.name)
def test_a_training_told_to_end_goes_on_where_it_was_told(project: Project, stage: Stage) -> None:
    project.set({f"{stage.name}.optimisation.checkpoint_every": RARELY})
    whole = project.path / "whole"
    stage.run(project)
    shutil.move(project.path / stage.out, whole)
    history = project.path / stage.resume
    with StageServer(stage, project) as server:
        run = server.start()
        assert run.wait_for(
            lambda _: any(last_step(file.read_text()) >= ENOUGH_STEPS for file in history.glob("*/history.csv"))
        )
        (curve,) = history.glob("*/history.csv")
        done = last_step(curve.read_text())
        run.send(signal.SIGTERM)
        told = time.perf_counter()
        assert run.wait(SECONDS_TO_END) == PREEMPTED, run.printed
        print(f"{stage.name}: ended {time.perf_counter() - told:.1f} s after SIGTERM")
    assert not (project.path / stage.out).exists()
    found = re.search(r"resumed after step (\d+) of", stage.run(project).stderr)
    assert found is not None
    assert int(found[1]) >= done
    assert differences(whole, project.path / stage.out, stage.times) == []
    assert leftovers(project, stage) == []


def last_step(curve: str) -> int:
    """Return the last step that a training wrote into its curve, or 0."""
    lines = curve[: curve.rfind("\n") + 1].splitlines()
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0
