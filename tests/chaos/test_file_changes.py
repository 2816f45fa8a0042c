"""A stage that has done its work is killed before every change of files that is left: of its output and of its own traces."""

import itertools
import shutil
import signal
from collections.abc import Callable

import pytest
from killing import Tally, clear, trouble
from long_stages import ENCODE, EVALUATE, SEMANTIC_VAE, TRAIN
from projects import Project
from stage_runs import Stage, StageServer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("stage", "every"),
    [(SEMANTIC_VAE, 1), (TRAIN, 2), (ENCODE, 2), (EVALUATE, 6)],
    ids=lambda value: value.name if isinstance(value, Stage) else f"every {value}",
)
def test_a_kill_between_any_two_file_changes_at_the_end_is_survived(
    project: Project, single_changes: Callable[[Tally], None], stage: Stage, every: int
) -> None:
    whole, almost_done = project.path / "whole", project.path / "almost_done"
    shutil.move(project.path / stage.out, whole)
    tally = Tally(stage.name)
    with StageServer(stage, project) as server:
        assert server.start(killed_at=0).wait() == -signal.SIGKILL
        shutil.copytree(project.path / stage.resume, almost_done)
        for change in itertools.count(1, every):
            shutil.copytree(almost_done, project.path / stage.resume, dirs_exist_ok=True)
            run = server.start(killed_at=change)
            if run.wait() == -signal.SIGKILL:
                again = server.start()
                tally.count(1, trouble(again, whole))
                clear(again)
            else:
                assert not (wrong := trouble(run, whole)), wrong
                break
    single_changes(tally)
    assert tally.lost == 0, "\n".join(tally.troubles)
    assert tally.survived > 10 / every
