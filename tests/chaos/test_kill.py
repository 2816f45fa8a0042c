"""A `dvc repro` that is killed with everything it started, again and again, ends in the weights of an unbroken one."""

import hashlib
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import Tally
from projects import Project, make_project
from safetensors.numpy import load_file
from stage_runs import partials

from sfd_core.workspace.shared_cache import remove_empty

pytestmark = [pytest.mark.xdist_group("pipeline"), pytest.mark.timeout(1800)]

TRAININGS = ("texture_vae", "semantic_vae", "train")
LONGER = {"steps": 60, "checkpoint_every": 3}
TRAINED = ("outputs/texture_vae", "outputs/semantic_vae", "outputs/train/sfd/snapshots")


def weights(project: Project) -> dict[str, str]:
    """Return the hash of every network's weights; their files differ, since they also tell how long the training took."""
    hashes = {}
    for folder in TRAINED:
        for file in sorted((project.path / folder).glob("*.safetensors")):
            digest = hashlib.sha256()
            for name, tensor in sorted(load_file(file).items()):
                digest.update(name.encode() + str(tensor.dtype).encode() + tensor.tobytes())
            hashes[f"{folder}/{file.name}"] = digest.hexdigest()
    assert len(hashes) >= 5
    return hashes


def resume_folders(project: Project) -> list[Path]:
    return list((project.path / ".sfd" / "resume").glob("*/*"))


@pytest.mark.chaos
def test_a_run_killed_in_a_training_continues_and_ends_in_the_weights_of_an_unbroken_one(
    reproduced: Project, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "killed", ["sfd"], cache_of=reproduced)
    # all before this training comes out of the cache
    project.set({"train.optimisation.steps": 300, "train.optimisation.checkpoint_every": 10, "studies": {}})
    running = project.start("dvc", "repro", "train@sfd")
    while not list((project.path / ".sfd" / "resume" / "train").glob("*/step-*/state-*.json")):
        assert running.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    project.kill(running)
    continued = project.run("dvc", "repro", "train@sfd")
    assert "resumed after step" in continued.stderr
    assert resume_folders(project) == []
    after_kill = weights(project)
    project.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", "train@sfd")
    assert weights(project) == after_kill


@pytest.mark.chaos
def test_a_run_killed_at_random_moments_ends_in_the_same_weights(tmp_path: Path, whole_runs: Callable[[Tally], None]) -> None:
    moments, tally = random.Random(0), Tally("pipeline")
    whole, killed = (make_project(tmp_path / name, ["sfd"]) for name in ("whole", "killed"))
    for project in (whole, killed):
        project.set({f"{stage}.optimisation.{key}": value for stage in TRAININGS for key, value in LONGER.items()})
        project.set({"studies.guided.guide_step": LONGER["steps"] // 2})
    whole.run("dvc", "repro")
    kills = 0
    while True:
        running = killed.start("dvc", "repro")
        try:
            running.wait(timeout=moments.uniform(3, 25))
        except subprocess.TimeoutExpired:
            killed.kill(running)
            kills += 1
            remove_empty(killed.path / "dvc.lock")  # `make repro` does so; DVC itself writes it in place
            continue
        break
    wrong = [] if running.returncode == 0 else [f"dvc repro ended with code {running.returncode}"]
    if not wrong:
        wrong += [f"{file} differs" for file, digest in weights(whole).items() if weights(killed).get(file) != digest]
        wrong += [f"{path} is left" for path in [*resume_folders(killed), *partials(killed.path / "outputs")]]
    tally.count(kills, wrong)
    whole_runs(tally)
    assert wrong == []
    assert kills >= 2
