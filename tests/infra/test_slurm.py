"""The job scripts with the real shell; only `scontrol` is a stand-in that notes what it was asked."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from waiting import wait_until

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "infra" / "slurm"
STAGE = """trap 'sleep 2; echo saved > saved; exit 85' TERM
touch started
while :; do sleep 0.05; done
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    stand_in = tmp_path / "bin" / "scontrol"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    """A project in which a training can begin."""
    for file in ("encode/identity.json", "schedule/path.json"):
        (tmp_path / "outputs" / file).parent.mkdir(parents=True)
        (tmp_path / "outputs" / file).touch()
    return tmp_path


def test_a_job_whose_time_is_up_saves_and_is_put_back(tmp_path: Path, environment: dict[str, str]) -> None:
    """A stage and its supervisor in sessions of their own, whose caller dies at once, as `sfd` does."""
    (tmp_path / "stage").write_text(STAGE)
    stage = f"cd {tmp_path}; setsid python -P {ROOT}/sfd_core/host/supervisor.py $$ - $SFD_GRACE_SECONDS bash stage; true"
    job = subprocess.Popen(["bash", SLURM / "job.sbatch", "bash", "-c", stage], env=environment)
    wait_until((tmp_path / "started").exists, "the start of the stage", 20)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 0
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_ends_as_its_command_does_and_is_not_put_back(tmp_path: Path, environment: dict[str, str], code: int) -> None:
    ended = subprocess.run(["bash", SLURM / "job.sbatch", "bash", "-c", f"exit {code}"], env=environment, check=False)
    assert ended.returncode == code
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("script", ["job.sbatch", "train.sbatch"])
def test_a_script_without_its_argument_says_what_to_give(environment: dict[str, str], script: str) -> None:
    ended = subprocess.run(["bash", SLURM / script], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"sbatch infra/slurm/{script}" in ended.stderr or "sbatch --nodes" in ended.stderr or "train.sbatch" in ended.stderr


@pytest.mark.parametrize("missing", ["encode/identity.json", "schedule/path.json"])
def test_a_training_whose_result_dvc_could_not_record_does_not_begin(
    encoded: Path, environment: dict[str, str], missing: str
) -> None:
    (encoded / "outputs" / missing).unlink()
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b", "SLURM_SUBMIT_DIR": str(encoded)}
    ended = subprocess.run(
        ["bash", SLURM / "train.sbatch", "sfd"], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.strip()) == (
        2, f"error: outputs/{missing} is missing; dvc repro encode schedule makes it",
    )  # fmt: skip


def test_a_training_over_machines_is_started_once_a_machine_and_its_outputs_are_recorded(
    tmp_path: Path, encoded: Path, environment: dict[str, str]
) -> None:
    for name in ("srun", "dvc"):
        stand_in = tmp_path / "bin" / name
        stand_in.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/ran\n')
        stand_in.chmod(0o755)
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b", "SLURM_SUBMIT_DIR": str(encoded)}
    subprocess.run(["bash", SLURM / "train.sbatch", "sfd"], env=environment, check=True)
    training, recorded = (tmp_path / "ran").read_text().splitlines()
    assert "torchrun --nnodes=2 --nproc-per-node=gpu --shutdown-timeout=110" in training
    assert "--rdzv-id=7 --rdzv-backend=c10d --rdzv-endpoint=:20007 " in training
    assert training.endswith("-m sfd_core.stages.train --variant sfd")
    assert recorded == "dvc --wait-for-lock commit --force train@sfd"


@pytest.mark.parametrize(("code", "then"), [(0, "dvc --wait-for-lock commit --force train@sfd"), (1, "scontrol requeue 7")])
def test_a_training_that_ends_as_its_time_is_up_is_put_back_only_if_it_is_not_done(
    tmp_path: Path, encoded: Path, environment: dict[str, str], code: int, then: str
) -> None:
    stand_ins = {
        "srun": f"trap 'sleep 1; exit {code}' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done",
        "scancel": f"kill -TERM $(cat {tmp_path}/pid)",
        "scontrol": f'[ "$1" = show ] || echo scontrol "$@" >> {tmp_path}/ran',
        "dvc": f'echo dvc "$@" >> {tmp_path}/ran',
    }
    for name, text in stand_ins.items():
        stand_in = tmp_path / "bin" / name
        stand_in.write_text(f"#!/bin/sh\n{text}\n")
        stand_in.chmod(0o755)
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b", "SLURM_SUBMIT_DIR": str(encoded)}
    job = subprocess.Popen(["bash", SLURM / "train.sbatch", "sfd"], env=environment)
    wait_until((tmp_path / "pid").exists, "the start of the training", 20)
    time.sleep(0.5)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 0
    assert (tmp_path / "ran").read_text().splitlines() == [then]
