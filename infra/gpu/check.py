"""Is the engine right on this device: compared with the CPU, with itself in bfloat16, compiled, resumed and in other batches.

Differences are |a - b| / |b| over all values. Networks have random weights, none of them zero.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.bench.speed import Network, denoiser
from infra.bench.workload import CLASSES, PARAMS, Clock, Measured, Workload, all_random, task_of, train_with_engine
from infra.gpu.record import Record
from sfd_core.experiment.params import IndependentTimes, InnerParams, Optimisation
from sfd_core.host.seeding import generator
from sfd_core.models.denoisers.blocks import compile_blocks
from sfd_core.models.denoisers.factory import build_denoiser
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape, texture_vae_loss
from sfd_core.sampling.artifact import Denoiser
from sfd_core.sampling.pipeline import DEFAULT_SAMPLER, Pipeline
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.ema import EMA
from sfd_core.training.loop import TrainingPlan, run
from sfd_core.training.optim import WeightOptimizer
from sfd_core.training.parallel import training_device
from sfd_core.training.tasks.denoising import FlowTask, GaussianTask

FULL = Workload("S", batch=8, grid=16, images=64)
TINY = Workload("tiny", batch=4, texture=4, semantic=2, grid=4, images=8)
CPU = torch.device("cpu")
FLOAT32, BF16_OUTPUT, BF16_GRADIENT, TF32, ADAPTIVE, ORTHOGONAL = 1e-4, 3e-2, 1e-1, 2e-3, 1e-2, 2e-2
"""Bounds. cuDNN multiplies in TF32 where nothing is said; dopri5 may choose other steps; Muon orthogonalises in bfloat16."""
GUIDED = {"scale": 1.5, "interval": [0.0, 1.0]}
PLAIN = {"scale": 1.0, "interval": [0.0, 1.0]}


def check(record: Record, tiny: bool, _: Path) -> None:
    """Run all comparisons, those of the device with itself first: they need no CPU."""
    flow = TINY if tiny else FULL
    dit = replace(flow, model="dit", semantic=0, patch=2)
    repa = replace(flow, token_channels=8)
    computed = replace(flow, token_channels=192, encoder=("vit_tiny_patch16_224", 16 * flow.grid))
    for name, workload in {"flow": flow, "repa": repa, "repa, tokens computed": computed, "dit": dit}.items():
        record.measure(f"{name}: steps without waiting for the device", partial(_unwaited, workload))
    for chosen in (flow, replace(flow, precision="bfloat16")):
        record.measure(f"resume, {chosen.precision}", partial(_resume, chosen))
    record.measure("compiled against not", partial(_compiled, flow))
    record.measure("image VAE: cuDNN as by default", partial(_vae, flow, TF32))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        record.measure("image VAE", partial(_vae, flow, FLOAT32))
        for name, workload in {"flow": flow, "texture alone": replace(flow, semantic=0), "repa": repa, "dit": dit}.items():
            record.measure(f"{name}: device against CPU", partial(_devices, workload, FLOAT32))
            record.measure(f"{name}: bfloat16 against float32", partial(_precisions, workload))
        record.measure("fused layers against plain ones", partial(_fused, flow))
        record.measure("EMA", partial(_ema, flow))
        for optimizer, bound in {"adamw": FLOAT32, "muon": ORTHOGONAL}.items():
            record.measure(f"optimizer {optimizer}", partial(_optimizer, flow, optimizer, bound))
        for name, (load, changes, bound) in _samplings(flow, dit).items():
            if changes.get("solver") == "dopri5" and find_spec("torchdiffeq") is None:
                record.add(f"sampling, {name}", {"left_out": "torchdiffeq is not installed"})
                continue
            record.measure(f"sampling, {name}", partial(_sampling, load, changes, bound))
        for precision, bound in {"float32": FLOAT32, "bfloat16": BF16_OUTPUT}.items():
            record.measure(f"image i in a batch and alone, {precision}", partial(_alone, flow, precision, bound))


def difference(ours: Tensor, reference: Tensor) -> float:
    """Return |ours - reference| / |reference| over all values, infinite if one is not finite."""
    ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
    found = float((ours - reference).norm() / reference.norm().clamp_min(1e-30))
    return found if found == found else float("inf")  # noqa: PLR0124 - NaN is no pass


def _judged(bound: float | Mapping[str, float], **differences: float) -> dict[str, Any]:
    bounds = dict.fromkeys(differences, bound) if isinstance(bound, float) else dict(bound)
    passed = all(value <= bounds[name] for name, value in differences.items())
    return {**differences, "bounds": bounds, "passed": passed}


def _losses(
    task: FlowTask | GaussianTask, model: Network, device: torch.device, half: bool = False, compiled: bool = False
) -> dict[str, Tensor]:
    """Return the loss of the first batch on a device, and its gradient as one vector."""
    task.model = model = copy.deepcopy(model).to(device).train()
    if compiled:
        compile_blocks(model)
    batch = {name: value.to(device) for name, value in task.batch(0, slice(0, task.batches.order.batch_size)).items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss = task.loss(batch)["loss"]
    torch.autograd.backward(loss)
    return {"loss": loss, "gradient": _flat(value.grad for value in model.parameters() if value.grad is not None)}


def _flat(values: Any) -> Tensor:
    return torch.cat([value.detach().float().cpu().flatten() for value in values])


def _compared(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: difference(ours[name], reference[name]) for name in reference}


def _devices(workload: Workload, bound: float, folder: Path) -> dict[str, Any]:
    model = workload.network()
    task = task_of(workload, folder, model)
    return _judged(bound, **_compared(_losses(task, model, training_device()), _losses(task, model, CPU)))


def _precisions(workload: Workload, folder: Path) -> dict[str, Any]:
    model, device = workload.network(), training_device()
    task = task_of(workload, folder, model)
    found = _compared(_losses(task, model, device, half=True), _losses(task, model, device))
    return _judged({"loss": BF16_OUTPUT, "gradient": BF16_GRADIENT}, **found)


def _compiled(workload: Workload, folder: Path) -> dict[str, Any]:
    model, device = workload.network(), training_device()
    task = task_of(workload, folder, model)
    return _judged(FLOAT32, **_compared(_losses(task, model, device, compiled=True), _losses(task, model, device)))


def _inputs(workload: Workload, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, n = generator(0, "inputs"), workload.batch
    x = torch.randn(n, workload.channels, workload.grid, workload.grid, generator=source)
    t_tex, t_sem = torch.rand(2, n, generator=source)
    return x.to(device), t_tex.to(device), t_sem.to(device), (torch.arange(n) % CLASSES).to(device)


def _fused(workload: Workload, _: Path) -> dict[str, Any]:
    """Compare the network, whose gradients are written by hand, with the plain one, whose gradients autograd derives."""
    device = training_device()
    ours = workload.network()
    plain = workload.eager_network(ours)
    ours = ours.to(device).train()
    x, t_tex, t_sem, labels = _inputs(workload, device)
    outputs = [ours(x, t_tex, t_sem, labels).prediction, plain(x, t_tex, t_sem, labels)]
    for output in outputs:
        (output * x).mean().backward()
    names = [name for name, value in plain.named_parameters() if value.grad is not None]
    gradients = [_flat(dict(model.named_parameters())[name].grad for name in names) for model in (ours, plain)]
    return _judged(FLOAT32, output=difference(*outputs), gradient=difference(*gradients))


def _each_device(work: Callable[[torch.device], Tensor], bound: float) -> dict[str, Any]:
    return _judged(bound, difference=difference(work(training_device()), work(CPU)))


def _moved(model: nn.Module, source: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source).to(parameter.device), alpha=0.01)


def _ema(workload: Workload, _: Path) -> dict[str, Any]:
    def averaged(device: torch.device) -> Tensor:
        model, source = workload.network().to(device), generator(0, "moves")
        ema = EMA(model, 0.9, warmup=True)
        for _ in range(3):
            _moved(model, source)
            ema.update(model)
        return _flat(ema.weights().values())

    return _each_device(averaged, FLOAT32)


def _optimizer(workload: Workload, name: str, bound: float, _: Path) -> dict[str, Any]:
    def stepped(device: torch.device) -> Tensor:
        model, source = workload.network().to(device), generator(0, "gradients")
        optimisation = PARAMS.train.optimisation.model_copy(update={"optimizer": name})
        optimizer = WeightOptimizer(dict(model.named_parameters()), 1e-2, optimisation)
        before = _flat(model.parameters())
        for _ in range(2):
            for parameter in optimizer.named.values():
                parameter.grad = torch.randn(parameter.shape, generator=source).to(device)
            optimizer.step(torch.tensor(True, device=device))
        return _flat(model.parameters()) - before

    return _each_device(stepped, bound)


Sampled = tuple[Callable[[], tuple[Denoiser, Denoiser | None]], dict[str, Any], float]


def _samplings(flow: Workload, dit: Workload) -> dict[str, Sampled]:
    """Return every solver and every kind of guidance."""

    def plain() -> tuple[Denoiser, None]:
        return denoiser(flow), None

    def gaussian() -> tuple[Denoiser, None]:
        return denoiser(dit), None

    def changed(**changes: Any) -> Callable[[], tuple[Denoiser, None]]:
        variant = flow.variant.model_copy(update={"mask_clamped": False, **changes})
        model = all_random(build_denoiser(variant, flow.spec, CLASSES))
        return lambda: (replace(denoiser(flow, model), variant=variant), None)

    both = {"solver": "euler", "texture": GUIDED, "semantic": GUIDED}
    absent = changed(times=IndependentTimes(kind="independent", absent=0.1))
    solvers: dict[str, Sampled] = {name: (plain, {"solver": name}, FLOAT32) for name in ("euler", "heun", "ab2")}
    return solvers | {
        "ddim": (gaussian, {"gaussian_solver": "ddim"}, FLOAT32),
        "ddpm": (gaussian, {"gaussian_solver": "ddpm"}, FLOAT32),
        "cfg": (plain, both | {"guidance": "cfg"}, FLOAT32),
        "autoguidance": (
            lambda: (denoiser(flow), denoiser(replace(flow, size="tiny"))),
            both | {"guidance": "autoguidance", "guide": "guide"},
            FLOAT32,
        ),
        "internal": (changed(inner=InnerParams(block=1, weight=1.0)), both | {"guidance": "internal"}, FLOAT32),
        "semantic": (absent, both | {"guidance": "semantic", "semantic": PLAIN}, FLOAT32),
        "dopri5": (plain, {"solver": "dopri5"}, ADAPTIVE),  # last, as it takes seconds: each image alone
    }


def _pipeline(main: Denoiser, guide: Denoiser | None, device: torch.device) -> Pipeline:
    shape = TextureVAEShape(main.latent.texture_channels, downsampling=4, width=8, depth=1)
    torch.manual_seed(0)
    pipeline = Pipeline(main, TextureVAE(shape), guide)
    pipeline.device = device
    for network in (main.model, pipeline.vae, *([] if guide is None else [guide.model])):
        network.to(device)
    return pipeline


def _sampling(
    load: Callable[[], tuple[Denoiser, Denoiser | None]], changes: dict[str, Any], bound: float, _: Path
) -> dict[str, Any]:
    def drawn(device: torch.device) -> Tensor:
        main, guide = load()
        sampler = DEFAULT_SAMPLER.model_validate(DEFAULT_SAMPLER.model_dump() | {"evaluations": 10} | changes)
        return _pipeline(main, guide, device).latents(0, [0, 1, 2, 3], sampler).x

    return _each_device(drawn, bound)


def _vae(workload: Workload, bound: float, _: Path) -> dict[str, Any]:
    """Compare what the image VAE makes of images, and the gradients of its loss."""
    shape = TextureVAEShape(workload.texture, downsampling=4, width=8, depth=1)
    images = torch.rand(4, 3, 4 * workload.grid, 4 * workload.grid, generator=generator(0, "images"))

    def trained(device: torch.device) -> dict[str, Tensor]:
        torch.manual_seed(0)
        vae, pixels = TextureVAE(shape).to(device).train(), images.to(device)
        posterior = vae.encode(pixels)
        decoded = vae.decode(posterior.mean)
        torch.autograd.backward(texture_vae_loss(pixels, posterior, decoded, 1e-3)["loss"])
        return {"decoded": decoded, "gradient": _flat(value.grad for value in vae.parameters() if value.grad is not None)}

    return _judged(bound, **_compared(trained(training_device()), trained(CPU)))


def _alone(workload: Workload, precision: str, bound: float, _: Path) -> dict[str, Any]:
    """Compare every image of a batch with the same image drawn alone; the largest difference counts."""
    pipeline = _pipeline(denoiser(workload), None, training_device())
    changes = {"evaluations": 10, "precision": precision}
    sampler = DEFAULT_SAMPLER.model_validate(DEFAULT_SAMPLER.model_dump() | changes)
    labels = [index % CLASSES for index in range(8)]
    together = pipeline.latents(0, labels, sampler).x
    alone = [pipeline.latents(index, [label], sampler).x[0] for index, label in enumerate(labels)]
    return _judged(bound, largest=max(difference(*pair) for pair in zip(alone, together, strict=True)))


def _unwaited(workload: Workload, folder: Path) -> dict[str, Any]:
    """Train some steps in which it is an error if the host waits for the device, after those that copy what stays there."""
    if training_device().type == "cpu":
        return {"left_out": "the host is the device"}

    def at_step_end(done: int) -> None:
        if done == 3:
            torch.cuda.set_sync_debug_mode("error")
        elif done == 6:
            raise Measured

    try:
        train_with_engine(workload, folder, at_step_end)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"passed": True}


def _resume(workload: Workload, folder: Path) -> dict[str, Any]:
    """Compare, bit for bit, a training of six steps with one that ends after the fifth and resumes from the fourth."""
    few = {"steps": 6, "checkpoint_every": 2, "warmup_steps": 0, "decay_steps": 0}

    def trained(name: str, stop_at: int | None) -> dict[str, Tensor]:
        def stop(done: int) -> None:
            if done == stop_at:
                raise Measured

        model = workload.network().to(training_device())
        optimisation = Optimisation.model_validate(workload.params.optimisation.model_dump() | few)
        task = task_of(workload, folder / f"{name}-{stop_at}", model)
        plan = TrainingPlan(name, optimisation, 1e-3, snapshot_steps=(6,))
        clock = Clock(model, workload.params, stop)
        return load_file(run(task, plan, ResumeFolder(folder / "resume" / name), clock).snapshots[-1].path)

    whole = trained("whole", None)
    try:
        trained("resumed", 5)
    except Measured:
        resumed = trained("resumed", None)
    differing = [name for name, value in whole.items() if not torch.equal(value, resumed[name])]
    return {"tensors": len(whole), "differing": differing[:10], "passed": not differing}
