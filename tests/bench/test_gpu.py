"""Training and sampling at the paper's sizes on a GPU: images a second, use of its matrix units, memory.

    make bench PYTEST="-m 'gpu and bench'"

The same measurements run with tiny shapes on a CPU in every test run, so that they are ready where a GPU is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from bench import machine
from bench.workload import CLASSES, Measured, Workload, composite, train_with_engine
from pytest_benchmark.fixture import BenchmarkFixture

from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.latents.identity import LatentIdentity
from sfd_core.models.denoisers.blocks import compile_blocks
from sfd_core.models.denoisers.factory import LatentSpec, flops_per_image, parameter_count
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.sampling.artifact import Denoiser, SnapshotRecord
from sfd_core.sampling.pipeline import DEFAULT_SAMPLER, Pipeline
from sfd_core.training.loop import training_device

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
WARM_STEPS, TIMED_STEPS = 3, 20


@dataclass(frozen=True)
class TrainingSpeed:
    """Of the engine on this device."""

    images_per_second: float
    utilisation: float
    """Share of the measured peak of matrix products that the network's own products and attention take (MFU)."""
    memory: int
    """Bytes at the peak; 0 on a CPU."""
    first_step: float
    """Seconds, with what is compiled at first use."""


def measure_training(workload: Workload, folder: Path, compiled: bool, steps: int = TIMED_STEPS) -> TrainingSpeed:
    """Measure the product's training on this machine's training device."""
    device = training_device().type
    model = workload.network()
    if compiled:
        compile_blocks(model)
    marks: list[float] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def at_step_end(done: int) -> None:
        if done in {0, 1, WARM_STEPS, WARM_STEPS + steps}:
            machine.wait_for(device)
            marks.append(time.perf_counter())
        if done == WARM_STEPS + steps:
            raise Measured

    train_with_engine(workload, folder, at_step_end, model)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    first, _, timed = (after - before for before, after in pairwise(marks))
    rate = steps * workload.batch / timed
    dtype = torch.bfloat16 if workload.precision == "bfloat16" else torch.float32
    peak = machine.matmul_peak(device, dtype, side=8192 if device == "cuda" else 512)
    return TrainingSpeed(rate, training_flops(model) * rate / peak, memory, first)


def training_flops(model: LightningDiT) -> int:
    """Return the operations of a training step for one image: three forward passes' of matrix products and attention.

    This is the usual 6 x parameters x tokens + attention, but parameters that work once an image, not once a token (adaLN,
    a third of a block), count once.
    """
    return 3 * flops_per_image(model)


def measure_sampling(workload: Workload, evaluations: int, guide: Workload | None, images: int) -> float:
    """Return images a second of `Pipeline`, guided by another network or not, decoding by a small VAE included."""
    shape = TextureVAEShape(channels=workload.texture, downsampling=16, width=8, depth=1)
    pipeline = Pipeline(_denoiser(workload), TextureVAE(shape), None if guide is None else _denoiser(guide))
    changes: dict[str, object] = {"evaluations": evaluations, "batch_size": images}
    if guide is not None:
        weight = {"scale": 1.5, "interval": [0.0, 1.0]}
        changes |= {"guidance": "autoguidance", "guide": "guide", "texture": weight, "semantic": weight}
    labels = [index % CLASSES for index in range(images)]
    pipeline(labels, sampler=DEFAULT_SAMPLER, **changes | {"evaluations": 4})
    began = time.perf_counter()
    pipeline(labels, sampler=DEFAULT_SAMPLER, **changes)
    return images / (time.perf_counter() - began)


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


def _denoiser(workload: Workload) -> Denoiser:
    spec = LatentSpec(workload.texture, workload.semantic, workload.grid, token_channels=0)
    model = workload.network().eval()
    identity = LatentIdentity({"name": "t"}, {"name": "s"}, {"name": "e"}, "statistics", "latents")
    classes = [str(index) for index in range(CLASSES)]
    record = SnapshotRecord(1, 1, "snapshot")
    return Denoiser(model, workload.variant, spec, composite(workload), classes, identity, record, flops_per_image(model))
