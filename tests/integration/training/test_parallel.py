"""Trainings in several real processes that meet over gloo, against the same training in one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_stages import lay_out_compressed
from torch._dynamo.testing import CompileCounter

from sfd_core.experiment.sizes import ModelSize
from sfd_core.host.errors import PREEMPTED_EXIT_CODE
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.sampling.artifact import load_denoiser
from sfd_core.training.history import read_history

PROGRAM, VARIANT = (Path(__file__).with_name(name) for name in ("spread_training.py", "spread_variant.py"))
ROOT = Path(__file__).parents[3]


def run(program: Path, processes: int, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    alone = [sys.executable, str(program)]
    many = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--no-python"]
    many += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost", *alone]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": paths}
    command = [*(alone if processes == 1 else many), *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def train(folder: Path, processes: int, *more: str, **engine: Any) -> subprocess.CompletedProcess[str]:
    return run(PROGRAM, processes, str(folder), json.dumps(engine), *more)


def trained(folder: Path, processes: int, **engine: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    ended = train(folder, processes, **engine)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return result(folder)


def result(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return [row["loss"] for row in read_history(folder / "history.csv")], load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    return trained(tmp_path_factory.mktemp("alone"), 1)


def assert_same(found: tuple[list[float], dict[str, torch.Tensor]], expected: tuple[list[float], Any]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("processes", "engine"),
    [
        (1, {"micro_batch": 3, "activation_checkpointing": True}),
        pytest.param(2, {}, marks=pytest.mark.slow),
        (2, {"sharding": "fsdp", "micro_batch": 2, "activation_checkpointing": True}),
        pytest.param(4, {}, marks=pytest.mark.slow),
        pytest.param(2, {"micro_batch": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"sharding": "fsdp"}, marks=pytest.mark.slow),
    ],
)
def test_every_way_to_compute_a_training_follows_the_plain_one(
    tmp_path: Path, alone: tuple[list[float], Any], processes: int, engine: dict[str, Any]
) -> None:
    assert_same(trained(tmp_path, processes, **engine), alone)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param((1, "none"), (2, "none"), marks=pytest.mark.slow),
        pytest.param((2, "none"), (1, "none"), marks=pytest.mark.slow),
        ((2, "fsdp"), (1, "none")),
        pytest.param((1, "none"), (2, "fsdp"), marks=pytest.mark.slow),
    ],
)
def test_a_training_asked_to_stop_goes_on_in_another_number_of_processes(
    tmp_path: Path, alone: tuple[list[float], Any], first: tuple[int, str], then: tuple[int, str]
) -> None:
    stopped = train(tmp_path, first[0], "7", sharding=first[1])
    # torchrun itself ends with 1 and tells the code of its processes
    assert stopped.returncode == (PREEMPTED_EXIT_CODE if first[0] == 1 else 1)
    assert f"exitcode  : {PREEMPTED_EXIT_CODE}" in stopped.stderr or first[0] == 1
    assert "a checkpoint of step" in stopped.stderr
    assert not (tmp_path / "weights.safetensors").exists()
    ended = train(tmp_path, then[0], sharding=then[1])
    assert "resumed after step" in ended.stderr
    assert_same(result(tmp_path), alone)


@pytest.mark.slow
def test_a_resumed_training_in_four_processes_is_the_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    """Of two, the order in which they add up does not matter."""
    unbroken = trained(tmp_path / "unbroken", 4)
    train(tmp_path / "broken", 4, "7")
    resumed = trained(tmp_path / "broken", 4)
    assert resumed[0] == unbroken[0]
    assert [name for name, value in unbroken[1].items() if not torch.equal(value, resumed[1][name])] == []


@pytest.mark.slow
def test_a_sharded_checkpoint_is_one_file_a_process(tmp_path: Path) -> None:
    train(tmp_path, 2, "7", sharding="fsdp")
    newest = max(tmp_path.glob("step-*"))
    names = sorted(file.name for file in newest.glob("*.safetensors"))
    assert names == ["state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"]
    whole_size = sum(parameter.numel() for parameter in LightningDiT(ModelSize(2, 32, 2), 4, 4, 1, 3, 1).parameters())
    sizes = [sum(value.numel() for value in load_file(newest / name).values()) for name in names]
    assert max(sizes) < 0.75 * sum(sizes)
    assert sum(sizes) > 4 * 0.9 * whole_size  # weights, average and two moments


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    ended = train(tmp_path, 3)
    assert "batch_size 8 cannot be shared equally by 3 processes" in ended.stderr


def test_a_variant_in_shards_becomes_the_artifact_of_one_process(tmp_path: Path) -> None:
    encode = lay_out_compressed(tmp_path).encode().encode
    for name, processes, engine in (("alone", 1, {}), ("shards", 2, {"sharding": "fsdp"})):
        (tmp_path / name).mkdir()
        ended = run(VARIANT, processes, str(encode), "out", json.dumps(engine), cwd=tmp_path / name)
        assert ended.returncode == 0, ended.stderr[-3000:]
    alone, shards = (json.loads((tmp_path / name / "out" / "model.json").read_text()) for name in ("alone", "shards"))
    assert alone.pop("files").keys() == shards.pop("files").keys()
    assert shards == alone
    whole, joined = (load_denoiser(tmp_path / name / "out").model.state_dict() for name in ("alone", "shards"))
    for name, value in whole.items():
        torch.testing.assert_close(joined[name], value, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_blocks_are_compiled_once_for_all_steps() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = LightningDiT(ModelSize(depth=3, width=32, heads=2), 4, 4, 1, 3, 1)
    compiled = CompileCounter()
    for block in model.blocks:
        block.compile(backend=compiled, dynamic=False)
    x, labels = torch.randn(2, 4, 4, 4), torch.tensor([0, 1])
    for _ in range(2):
        model(x, torch.rand(2), torch.rand(2), labels).prediction.sum().backward()
    warm = compiled.frame_count
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            model(torch.randn_like(x), torch.rand(2), torch.rand(2), labels.flip(0)).prediction.sum().backward()
    assert compiled.frame_count == warm > 0
