"""Training, sampling and extraction on this machine's device: images a second, use of its matrix units, memory."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from infra.bench import machine
from infra.bench.workload import CLASSES, Measured, Workload, composite, eager_steps, random_encoder, train_with_engine
from sfd_core.latents.identity import LatentIdentity
from sfd_core.models.denoisers.blocks import compile_blocks
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import build_denoiser, flops_per_image
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.sampling.artifact import Denoiser, SnapshotRecord
from sfd_core.sampling.pipeline import DEFAULT_SAMPLER, Pipeline
from sfd_core.training.parallel import training_device

Network = LightningDiT | DiT
WARM_STEPS, TIMED_STEPS = 3, 20
READERS = 8
"""Processes that read latents for the plain eager model on a GPU, as public code has them."""


@dataclass(frozen=True)
class TrainingSpeed:
    """Of one training on this device."""

    images_per_second: float
    utilisation: float
    """Share of the measured peak of matrix products that the network's own products and attention take (MFU)."""
    memory: int
    """Bytes at the peak; 0 on a CPU."""
    first_step: float
    """Seconds, with what is compiled at first use."""


def measure_training(
    workload: Workload, folder: Path, compiled: bool = False, steps: int = TIMED_STEPS, model: Network | None = None
) -> TrainingSpeed:
    """Measure the product's training. A `model` that is given is trained on, and stays compiled once it is."""
    model = (model or workload.network()).to(training_device())
    if compiled:
        compile_blocks(model)
    with _Steps(steps) as clock:
        train_with_engine(workload, folder, clock.at_step_end, model)
    return clock.speed(workload)


def measure_eager(workload: Workload, folder: Path, steps: int = TIMED_STEPS, model: Network | None = None) -> TrainingSpeed:
    """Measure the same training of `eager_baseline`, from the weights of `model`, which is moved to the CPU."""
    model = (model or workload.network()).cpu()
    with _Steps(steps) as clock, contextlib.suppress(Measured):
        trained = eager_steps(workload, folder, READERS if training_device().type == "cuda" else 0, model)
        clock.at_step_end(0)
        for done in itertools.count(1):
            next(trained)
            clock.at_step_end(done)
    return clock.speed(workload)


class _Steps:
    """Looks at the watch after the first step, at the end of the warm ones, and at the end, which it brings about."""

    def __init__(self, steps: int) -> None:
        self.steps, self.marks, self.memory, self.device = steps, list[float](), 0, training_device().type

    def __enter__(self) -> "_Steps":
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *exception: object) -> None:
        self.memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0

    def at_step_end(self, done: int) -> None:
        if done in {0, 1, WARM_STEPS, WARM_STEPS + self.steps}:
            machine.wait_for(self.device)
            self.marks.append(time.perf_counter())
        if done == WARM_STEPS + self.steps:
            raise Measured

    def speed(self, workload: Workload) -> TrainingSpeed:
        first, _, timed = (after - before for before, after in pairwise(self.marks))
        rate = self.steps * workload.batch / timed
        peak = device_peak(torch.bfloat16 if workload.precision == "bfloat16" else torch.float32)
        return TrainingSpeed(rate, training_flops(workload) * rate / peak, self.memory, first)


@cache
def device_peak(dtype: torch.dtype) -> float:
    """Return the operations a second of the fastest large matrix product on this device."""
    device = training_device().type
    return machine.matmul_peak(device, dtype, side=8192 if device == "cuda" else 512)


def training_flops(workload: Workload) -> int:
    """Return the operations of a training step for one image: three forward passes' of matrix products and attention.

    This is the usual 6 x parameters x tokens + attention, but parameters that work once an image, not once a token (adaLN,
    a third of a block), count once. They are counted in a network of their own: in one that is compiled, torch 2.11 would stop
    to use what it has compiled.
    """
    with torch.device("meta"):
        return 3 * flops_per_image(build_denoiser(workload.variant, workload.spec, CLASSES))


@contextlib.contextmanager
def kernels(path: Path) -> Iterator[None]:
    """Write a table of the kernels, or on a CPU the operations, that take most of the time inside the block."""
    with torch.profiler.profile() as profile:
        yield
        machine.wait_for(training_device().type)
    order = "self_cuda_time_total" if training_device().type == "cuda" else "self_cpu_time_total"
    path.write_text(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=80))


def profile_step(workload: Workload, folder: Path, path: Path, model: Network | None = None) -> None:
    """Write the table of `kernels` for one training step after the warm ones."""
    with contextlib.ExitStack() as stack:

        def at_step_end(done: int) -> None:
            if done == WARM_STEPS:
                machine.wait_for(training_device().type)
                stack.enter_context(kernels(path))
            elif done == WARM_STEPS + 1:
                stack.close()
                raise Measured

        train_with_engine(workload, folder, at_step_end, model)


def measure_sampling(
    workload: Workload,
    evaluations: int,
    guide: Workload | None,
    images: int,
    model: Network | None = None,
    compiled: bool = False,
) -> float:
    """Return images a second of `Pipeline`, guided by another network or not, decoding by a small VAE included."""
    shape = TextureVAEShape(channels=workload.texture, downsampling=16, width=8, depth=1)
    main, weak = denoiser(workload, model), None if guide is None else denoiser(guide)
    pipeline = Pipeline(main, TextureVAE(shape), weak, compiled)
    changes: dict[str, Any] = {"evaluations": evaluations, "batch_size": images, "precision": workload.precision}
    if guide is not None:
        weight = {"scale": 1.5, "interval": [0.0, 1.0]}
        changes |= {"guidance": "autoguidance", "guide": "guide", "texture": weight, "semantic": weight}
    labels = [index % CLASSES for index in range(images)]
    pipeline(labels, sampler=DEFAULT_SAMPLER, **changes | {"evaluations": 4})
    began = time.perf_counter()
    pipeline(labels, sampler=DEFAULT_SAMPLER, **changes)
    return images / (time.perf_counter() - began)


def denoiser(workload: Workload, model: Network | None = None) -> Denoiser:
    """Return the network of a workload, or `model`, as a trained one that can be sampled."""
    model = (model or workload.network()).eval()
    identity = LatentIdentity({"name": "t"}, {"name": "s"}, {"name": "e"}, "statistics", "latents")
    classes = [str(index) for index in range(CLASSES)]
    record = SnapshotRecord(1, 1, "snapshot")
    return Denoiser(model, workload.variant, workload.spec, composite(workload), classes, identity, record)


def measure_encoder(name: str, input_size: int, grid: int, batch: int, rounds: int = 3) -> float:
    """Return images a second, in the fastest of the rounds, of the tokens of timm's model `name`, random weights, bfloat16."""
    encoder = random_encoder(name, input_size, grid)
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8)
    return batch / machine.fastest(lambda: encoder.tokens(images), rounds, training_device().type)
