"""How fast the engine is on this device, at the paper's sizes: what the claims need comes first, because time may end."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from infra.bench import machine
from infra.bench.speed import (
    Network,
    device_peak,
    measure_eager,
    measure_encoder,
    measure_sampling,
    measure_training,
    profile_step,
)
from infra.bench.workload import Workload, train_with_engine
from infra.gpu.record import Record
from sfd_core.experiment.sizes import SizeName
from sfd_core.training.parallel import training_device

How = Literal["plain", "engine", "compiled"]
EVERY: tuple[How, ...] = ("plain", "engine", "compiled")
XL = Workload("XL", batch=64, grid=16, images=512, precision="bfloat16")
B = replace(XL, size="B", batch=256)
XXL = replace(XL, size="XXL")
DIT = replace(XL, model="dit", texture=4, semantic=0, grid=32, patch=2)
"""DiT-XL/2 on the f8d4 latents of 256 x 256 images."""
ENCODER = ("vit_base_patch14_reg4_dinov2.lvd142m", 224)
REPA = replace(XL, token_channels=768, images=256, encoder=ENCODER)
"""Aligned with the tokens of DINOv2-B, computed in every step as the presets for ImageNet do."""
TINY = Workload("tiny", batch=4, texture=4, semantic=2, grid=4, images=8, precision="bfloat16")
TINY_ENCODER = ("vit_tiny_patch16_224", 64)


@dataclass(frozen=True)
class Case:
    """One training: the plain eager model, the engine, or the engine compiled."""

    name: str
    workload: Workload
    how: How


def cases(tiny: bool) -> Iterator[Case]:
    """Yield what is trained, the most wanted first; a network that is compiled stays so, so its other cases precede."""
    if tiny:
        repa = replace(TINY, token_channels=192, encoder=TINY_ENCODER)
        small = {"tiny": TINY, "dit": replace(TINY, model="dit", semantic=0), "repa": repa}
        yield from (Case(name, workload, "engine") for name, workload in small.items())
        yield Case("tiny", TINY, "plain")
        yield Case("tiny", TINY, "compiled")
        return
    for how in EVERY:
        yield Case("XL", XL, how)
    for batch in (128, 32, 256):
        yield Case("XL", replace(XL, batch=batch), "compiled")
    for how in EVERY:
        yield Case("B", B, how)
    for name, workload in {"DiT-XL/2": DIT, "XL with REPA": REPA, "XXL": XXL}.items():
        yield Case(name, workload, "engine")
        yield Case(name, workload, "compiled")
    for batch in (32, 128, 256):
        yield Case("XXL", replace(XXL, batch=batch), "compiled")
    for batch in (32, 128, 256):
        yield Case("XL", replace(XL, batch=batch), "engine")


def bench(record: Record, tiny: bool, out: Path) -> None:
    """Run all measurements."""
    main, steps = (TINY, 2) if tiny else (XL, 10)
    record.measure("machine", lambda _: _peaks())
    chosen = list(cases(tiny))
    for case in chosen[:3]:
        _train(record, case, steps)
    record.measure("profile of a step", lambda folder: _profile(main, folder, out / "kernels.txt"))
    _others(record, main, tiny)
    for case in chosen[3:]:
        _train(record, case, steps)


def _train(record: Record, case: Case, steps: int) -> None:
    def measured(folder: Path) -> dict[str, Any]:
        network = _network(replace(case.workload, batch=1, images=1))
        if case.how == "plain":
            return asdict(measure_eager(case.workload, folder, steps, network))
        return asdict(measure_training(case.workload, folder, case.how == "compiled", steps, network))

    record.measure(f"{case.name}, batch {case.workload.batch}, {case.how}", measured)


@lru_cache(maxsize=1)
def _network(workload: Workload) -> Network:
    """Return the network of a workload; only the last is kept, because large ones fill the memory."""
    torch.compiler.reset()  # the compiler serves few shapes of one kind of block
    with training_device():
        return workload.network()


def _others(record: Record, main: Workload, tiny: bool) -> None:
    """Measure sampling, extraction and how long training waits for data."""
    evaluations, images = (5, 2) if tiny else (50, 128)
    guide = replace(main, size="tiny" if tiny else "B")
    for name, weak in {"none": None, "autoguidance": guide}.items():
        record.measure(f"sampling, guidance {name}, compiled", partial(_sample, main, weak, evaluations, images))
    encoder = (*TINY_ENCODER, TINY.grid, 2) if tiny else (*ENCODER, 16, 256)
    record.measure("tokens of the encoder", lambda _: {"encoder": encoder, "images_per_second": measure_encoder(*encoder)})
    sizes: tuple[SizeName, ...] = ("tiny",) if tiny else ("S", "B")
    for size in sizes:
        fed = replace(main, size=size, batch=main.batch if tiny else 256, steps=4 if tiny else 60, images=8 if tiny else 2048)
        record.measure(f"waiting for data, {size}", partial(_waiting, fed))


def _sample(main: Workload, weak: Workload | None, evaluations: int, images: int, _: Path) -> dict[str, Any]:
    network = _network(replace(main, batch=1, images=1))
    return {
        "images_per_second": measure_sampling(main, evaluations, weak, images, network, compiled=True),
        "evaluations": evaluations,
    }


def _waiting(workload: Workload, folder: Path) -> dict[str, Any]:
    result = train_with_engine(workload, folder, lambda _: None)
    if result is None:
        raise RuntimeError("the training did not end")
    return {"data_wait": result.data_wait, "images_per_second": result.images_per_second}


def _peaks() -> dict[str, Any]:
    device = training_device().type
    return {
        "bfloat16_flops_per_second": device_peak(torch.bfloat16),
        "float32_flops_per_second": device_peak(torch.float32),
        "copy_bytes_per_second": machine.copy_bandwidth(device, 1024 if device == "cuda" else 16),
    }


def _profile(workload: Workload, folder: Path, path: Path) -> dict[str, Any]:
    profile_step(workload, folder, path, _network(replace(workload, batch=1, images=1)))
    return {"table": path.name}
