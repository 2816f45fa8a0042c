"""Draw images and judge them batch by batch: any number of images in the memory of one batch and of the features of all.

A batch is a file of features with its hash, written when it is done: a run that was broken off goes on where it stood, and
several processes share the batches between them. Images are kept only where they are to be exported.
Legend: N images, D values of a layer, R side of an image.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation.judge import Judge
from sfd_core.evaluation.labels import CLASS_BALANCED
from sfd_core.evaluation.protocol import Drawn
from sfd_core.experiment.params import SamplerParams, VariantParams, fingerprint
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_path, file_digest
from sfd_core.host.processes import Processes
from sfd_core.latents.stored import SEMANTIC_LATENTS, StoredLatent
from sfd_core.sampling.artifact import Denoiser
from sfd_core.sampling.pipeline import Pipeline

IMAGES = "images"
SAMPLES = "samples"
ORACLE = "samples whose semantic latents are those of training images"

SemanticsFn = Callable[[slice], Tensor]
"""Rows of the drawn images to their normalised semantic latents (n, C, g, g)."""
Progress = Callable[[Iterable["Batch"], int], Iterable["Batch"]]
"""Given the batches of the first process and how many images they hold, yields the batches."""


@dataclass(frozen=True)
class Order:
    """What is to be drawn: image i has label i and noise i of the sampler's seed."""

    labels: Sequence[int]
    sampler: SamplerParams
    semantics: SemanticsFn | None = None
    """Real semantic latents, for an oracle; None generates them."""
    semantics_key: str = ""
    """What these latents are, for the names of the files."""
    shown: int = 0
    """So many images from the beginning are kept to be looked at."""
    keep_images: bool = False
    """Keep all of them, for `Measured.images`."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive images and the file of their features."""

    first: int
    labels: Sequence[int]
    file: Path
    kept: int
    """Images that the file holds."""


@dataclass(frozen=True)
class Measured:
    """All images of an order as the judge sees them."""

    features: Mapping[str, Tensor]
    """`<extractor>/<layer>` -> float32 (N, D), in the drawn order."""
    shown: Tensor
    """uint8 (shown, 3, R, R)"""
    labels: Tensor
    """(N,)"""
    evaluations: int
    """Network evaluations an image."""
    batches: Sequence[Batch] = field(repr=False)

    def forget(self) -> None:
        """Delete the files of all batches; call it once the numbers and images are safely written."""
        for batch in self.batches:
            batch.file.unlink(missing_ok=True)
        for folder in {batch.file.parent for batch in self.batches}:
            if not any(folder.iterdir()):
                folder.rmdir()

    def images(self) -> Iterator[Tensor]:
        """Yield all images batch by batch, uint8 (n, 3, R, R); the order must have kept them."""
        for batch in self.batches:
            yield _read(batch)[0][IMAGES]


def measure(
    pipeline: Pipeline,
    judge: Judge,
    order: Order,
    folder: Path,
    processes: Processes | None = None,
    progress: Progress = lambda batches, _: batches,
) -> Measured | None:
    """Draw and judge this process's share of `order`; the first process waits for the others and returns all, the rest None.

    Files lie in `folder`, to be deleted by the caller once the numbers are safe. A damaged file of an earlier run is named,
    deleted and made again. Raises `DataError` for one that is damaged meanwhile, and what drawing and judging raise.
    """
    processes = processes or Processes(0, 1)
    batches = _plan(pipeline, judge, order, folder)
    mine = processes.share(batches)
    _drop_damaged(mine)
    shown = progress(mine, sum(len(batch.labels) for batch in mine)) if processes.first else mine
    for batch in shown:
        if not batch.file.exists():
            _judge_batch(pipeline, judge, order, batch)
    processes.wait()
    return _merged(batches, order) if processes.first else None


def _plan(pipeline: Pipeline, judge: Judge, order: Order, folder: Path) -> list[Batch]:
    size = order.sampler.batch_size
    key = (order.sampler, pipeline.denoiser.snapshot.step, judge.keys, order.semantics_key)
    batches = []
    for first in range(0, len(order.labels), size):
        labels = [int(label) for label in order.labels[first : first + size]]
        kept = len(labels) if order.keep_images else max(0, min(len(labels), order.shown - first))
        name = f"{fingerprint(*key, labels, kept)}-{first:08d}.safetensors"
        batches.append(Batch(first, labels, folder / name, kept))
    return batches


def _drop_damaged(batches: Sequence[Batch]) -> None:
    for batch in batches:
        if batch.file.exists():
            try:
                _read(batch)
            except DataError as error:
                print(f"warning: {error}; it is drawn again now", file=sys.stderr)
                batch.file.unlink()


def _judge_batch(pipeline: Pipeline, judge: Judge, order: Order, batch: Batch) -> None:
    rows = slice(batch.first, batch.first + len(batch.labels))
    semantics = None if order.semantics is None else order.semantics(rows)
    drawn = pipeline.draw(batch.first, batch.labels, order.sampler, semantics)
    tensors = {name: values.contiguous() for name, values in judge.features(drawn.images).items()}
    tensors[IMAGES] = drawn.images[: batch.kept].contiguous()
    with atomic_path(batch.file) as temporary:
        save_file(tensors, temporary, metadata={"evaluations": str(drawn.evaluations), "sha256": _digest(tensors)})


def _merged(batches: Sequence[Batch], order: Order) -> Measured:
    features: dict[str, Tensor] = {}
    shown: list[Tensor] = []
    evaluations = 0
    for batch in batches:
        tensors, taken = _read(batch)
        shown.append(tensors.pop(IMAGES)[: max(0, order.shown - batch.first)])
        for name, values in tensors.items():
            # filled in place: joining a list of parts would hold everything twice
            if name not in features:
                features[name] = torch.empty(len(order.labels), values.shape[1])
            features[name][batch.first : batch.first + len(values)] = values
        evaluations = max(evaluations, taken)
    return Measured(features, torch.cat(shown), torch.tensor([int(label) for label in order.labels]), evaluations, batches)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(batch: Batch) -> tuple[dict[str, Tensor], int]:
    try:
        with safe_open(batch.file, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118, it is no mapping
            evaluations, digest = int(handle.metadata()["evaluations"]), handle.metadata()["sha256"]
        kept = len(tensors[IMAGES])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{batch.file} is no batch of judged samples ({error})") from error
    wrong = [name for name, values in tensors.items() if name != IMAGES and len(values) != len(batch.labels)]
    if wrong or kept != batch.kept:
        raise DataError(f"{batch.file} does not hold {len(batch.labels)} judged samples")
    if _digest(tensors) != digest:
        raise DataError(f"{batch.file} is damaged: its content does not match its hash")
    return tensors, evaluations


def semantic_latents(denoiser: Denoiser, latents: ShardReader, rows: NDArray[np.int64]) -> Tensor | None:
    """Return normalised semantic latents (N, C, g, g) of training images, or None for a texture-only denoiser.

    `latents` is the train shard of stage `encode`.
    """
    name, statistics = SEMANTIC_LATENTS[denoiser.variant.semantic], denoiser.composite.statistics.semantic
    if name is None or statistics is None:
        return None
    return statistics.normalise(StoredLatent(latents, name).frozen(rows, torch.zeros(len(rows), dtype=torch.bool)))


def oracle_order(denoiser: Denoiser, labels: Sequence[int], sampler: SamplerParams, latents: ShardReader) -> Order:
    """Order images whose semantics are those of training images of the same classes: per class the first, the second, ..."""
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(np.asarray(latents["label"][:]).tolist()):
        by_class.setdefault(label, []).append(row)
    taken = dict.fromkeys(by_class, 0)
    rows = []
    for label in labels:
        rows.append(by_class[label][taken[label] % len(by_class[label])])
        taken[label] += 1
    chosen = np.array(rows)
    if semantic_latents(denoiser, latents, chosen[:1]) is None:
        raise ConfigError("a texture-only denoiser has no oracle: it draws no semantics; set evaluate.oracle to false")

    def semantics(part: slice) -> Tensor:
        return cast(Tensor, semantic_latents(denoiser, latents, chosen[part]))

    return Order(labels, sampler, semantics, latents.digest)


def recipe(artifact: Path, pipeline: Pipeline, sampler: SamplerParams, oracle: bool = False) -> dict[str, Any]:
    """Return all that is needed to draw these images again, as plain values for a protocol.

    `artifact` is the folder of the pipeline's denoiser; weights are named by their sha256.
    """
    guide = None if sampler.guide is None or pipeline.guide is None else Path(sampler.guide) / pipeline.guide.snapshot.file
    return {
        "artifact": str(artifact),
        "step": pipeline.denoiser.snapshot.step,
        "weights": file_digest(artifact / pipeline.denoiser.snapshot.file),
        "guide_weights": None if guide is None else file_digest(guide),
        "texture_vae": pipeline.denoiser.identity.texture_vae["weights"],
        "semantics": "training images" if oracle else "generated",
        "sampler": sampler.model_dump(mode="json"),
    }


def drawn_with(
    sampler: SamplerParams,
    variant: VariantParams,
    evaluations: int,
    images: str = SAMPLES,
    drawn_by: Mapping[str, Any] | None = None,
) -> Drawn:
    """Return how class-balanced `images` of `variant` were drawn by `sampler`, for the protocol of their numbers."""
    gaussian = variant.family == "gaussian"
    solver = sampler.gaussian_solver if gaussian else sampler.solver
    shift = "" if gaussian or sampler.shift == 1 else f", shift {sampler.shift}"
    return Drawn(images, CLASS_BALANCED, sampler.seed, f"{solver}{shift}", evaluations, _guidance(sampler), drawn_by)


def _guidance(sampler: SamplerParams) -> str:
    if sampler.guidance == "none":
        return "none"
    parts = ", ".join(
        f"{name} {part.scale} in {part.interval}"
        for name, part in (("texture", sampler.texture), ("semantic", sampler.semantic))
    )
    return f"{sampler.guidance}: {parts}" + (f", guide {sampler.guide}" if sampler.guide else "")
