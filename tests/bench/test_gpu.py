"""Training and sampling at the paper's sizes on a GPU: images a second, use of its matrix units, memory.

    make bench PYTEST="-m 'gpu and bench'"

The same measurements run with tiny shapes on a CPU in every test run, so that they are ready where a GPU is.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from infra.bench.speed import measure_eager, measure_encoder, measure_sampling, measure_training, training_flops
from infra.bench.workload import Workload
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.models.denoisers.factory import parameter_count

gpu = [
    pytest.mark.gpu,
    pytest.mark.bench,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # kernels that cannot be deterministic; what the compiler leaves alone
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAPER = Workload("B", batch=256, grid=16, images=512, precision="bfloat16")
GUIDE = "B"


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("size", [pytest.param(size, marks=gpu) for size in ("B", "XL", "XXL")])
def test_training(
    benchmark: BenchmarkFixture, note: Callable[..., None], tmp_path: Path, size: Literal["B", "XL", "XXL"], how: str
) -> None:
    workload = replace(PAPER, size=size, batch={"B": 256, "XL": 128, "XXL": 64}[size])
    torch.compiler.reset()
    speed = benchmark.pedantic(lambda: measure_training(workload, tmp_path, how == "compiled"))
    note(size=size, how=how, batch=workload.batch, **vars(speed))


@pytest.mark.parametrize("guidance", ["none", "autoguidance"])
@pytest.mark.parametrize("evaluations", [50, 100])
@pytest.mark.parametrize("size", [pytest.param(size, marks=gpu) for size in ("B", "XL", "XXL")])
def test_sampling(
    benchmark: BenchmarkFixture, note: Callable[..., None], size: Literal["B", "XL", "XXL"], evaluations: int, guidance: str
) -> None:
    guide = replace(PAPER, size=GUIDE) if guidance == "autoguidance" else None
    images = 64
    rate = benchmark.pedantic(lambda: measure_sampling(replace(PAPER, size=size), evaluations, guide, images))
    note(size=size, evaluations=evaluations, guidance=guidance, batch=images, images_per_second=rate)


TINY = Workload("tiny", batch=2, texture=4, semantic=2, grid=4, images=4)


def test_the_measurement_of_training_runs_anywhere(tmp_path: Path) -> None:
    speed = measure_training(TINY, tmp_path, compiled=False, steps=2)
    assert speed.images_per_second > 0
    assert 0 < speed.utilisation < 1


def test_the_measurements_of_the_baseline_and_of_an_encoder_run_anywhere(tmp_path: Path) -> None:
    assert 0 < measure_eager(TINY, tmp_path, steps=2).utilisation < 1
    assert measure_encoder("vit_tiny_patch16_224", input_size=32, grid=2, batch=2) > 0


@pytest.mark.parametrize(
    "workload", [replace(TINY, model="dit", semantic=0), replace(TINY, semantic=0), replace(TINY, token_channels=8)]
)
def test_dit_texture_alone_and_repa_are_measured_too(tmp_path: Path, workload: Workload) -> None:
    assert measure_training(workload, tmp_path, steps=2).images_per_second > 0


@pytest.mark.parametrize("guide", [None, TINY])
def test_the_measurement_of_sampling_runs_anywhere(guide: Workload | None) -> None:
    assert measure_sampling(TINY, evaluations=5, guide=guide, images=2) > 0


def test_operations_of_training_are_six_for_a_parameter_and_token_and_those_of_attention() -> None:
    workload = replace(PAPER, size="S")
    model, size, tokens = workload.network(), MODEL_SIZES["S"], workload.tokens
    once = sum(value.numel() for name, value in model.named_parameters() if "adaLN" in name or "embedder" in name)
    attention = 12 * size.depth * tokens**2 * size.width
    expected = 6 * (parameter_count(model) - once - model.pos_embed.numel()) * tokens + attention
    assert training_flops(model) == pytest.approx(expected, rel=0.02)
