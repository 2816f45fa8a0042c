"""Draw images and extract their features batch by batch, in the memory of one batch and of the features of all.

A batch is a file of features with its hash, written when it is done: an interrupted run resumes, and several processes share
the batches. Images are kept only where they are to be exported.
Legend: N images, D values of a layer, R side of an image.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.diffusion.schedule import Schedule
from sfd_core.evaluation.evaluator import Evaluator
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import SamplerParams, VariantParams, fingerprint
from sfd_core.host.errors import DataError
from sfd_core.host.paths import atomic_path
from sfd_core.host.processes import ALONE, Processes
from sfd_core.host.progress import with_progress
from sfd_core.host.resume import LOCK, RECORD, held, settle
from sfd_core.latents.stored import SEMANTIC_LATENTS, StoredLatent
from sfd_core.sampling.artifact import Denoiser, snapshot_digest
from sfd_core.sampling.pipeline import Pipeline

IMAGES = "images"
CLASS_BALANCED = "class-balanced"
"""How `class_balanced_labels` chooses classes, for protocols: against random labels it alone is worth 0.1 FID."""
UNLABELLED = "none"
"""The same for denoisers without labels."""
SemanticsFn = Callable[[slice], Tensor]
"""Rows of the drawn images to their normalised semantic latents (n, C, g, g)."""


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

    @property
    def oracle(self) -> bool:
        """Whether the semantics are those of real images."""
        return self.semantics is not None


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
    """The features of all images of an order."""

    order: Order
    features: Mapping[str, Tensor]
    """`<extractor>/<layer>` -> float32 (N, D), in the drawn order."""
    shown: Tensor
    """uint8 (shown, 3, R, R)"""
    evaluations: int
    """Network evaluations an image."""
    batches: Sequence[Batch] = field(repr=False)

    @property
    def labels(self) -> Tensor:
        """Labels (N,) in the drawn order."""
        return torch.tensor(self.order.labels)

    def forget(self) -> None:
        """Delete the files of all batches; call it once the numbers and images are safely written."""
        for batch in self.batches:
            batch.file.unlink(missing_ok=True)
        for folder in {batch.file.parent for batch in self.batches}:
            if {path.name for path in folder.iterdir()} <= {RECORD, LOCK}:
                shutil.rmtree(folder)

    def images(self) -> Iterator[Tensor]:
        """Yield all images batch by batch, uint8 (n, 3, R, R); the order must have kept them."""
        for batch in self.batches:
            yield _read(batch)[0][IMAGES]


def measure(
    pipeline: Pipeline, evaluator: Evaluator, order: Order, folder: Path, processes: Processes = ALONE, what: str = "samples"
) -> Measured | None:
    """Draw this process's share of `order` and extract features; the first process waits for the others and returns all.

    The other processes return None. Shows progress, of `what`. Files lie in `folder`, to be deleted by the caller once the
    numbers are safe. A damaged file of an earlier run is reported, deleted and made again. Raises `DataError` for one that is
    damaged meanwhile, `BusyError` if another process measures in `folder`, and what `settle` raises.
    """
    batches = _plan(pipeline, evaluator, order, folder)
    mine = processes.share(batches)
    with held(folder, "measuring") if processes.first else nullcontext():
        if processes.first:
            settle(folder, stage_code("evaluate"))
        processes.wait()
        _drop_damaged(mine)
        images = sum(len(batch.labels) for batch in mine)
        for batch in with_progress(mine, images, what, step=order.sampler.batch_size) if processes.first else mine:
            if not batch.file.exists():
                _measure_batch(pipeline, evaluator, order, batch)
        processes.wait()
        return _merged(batches, order) if processes.first else None


def _plan(pipeline: Pipeline, evaluator: Evaluator, order: Order, folder: Path) -> list[Batch]:
    size = order.sampler.batch_size
    folder_of_guide, guide = order.sampler.guide, pipeline.guide
    weights = None if folder_of_guide is None or guide is None else snapshot_digest(Path(folder_of_guide), guide.snapshot)
    key = (order.sampler, weights, pipeline.denoiser.snapshot.step, evaluator.keys, order.semantics_key)
    batches = []
    for first in range(0, len(order.labels), size):
        labels = list(order.labels[first : first + size])
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


def _measure_batch(pipeline: Pipeline, evaluator: Evaluator, order: Order, batch: Batch) -> None:
    rows = slice(batch.first, batch.first + len(batch.labels))
    semantics = None if order.semantics is None else order.semantics(rows)
    drawn = pipeline.draw(batch.first, batch.labels, order.sampler, semantics)
    tensors = {name: values.contiguous() for name, values in evaluator.features(drawn.images).items()}
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
    return Measured(order, features, torch.cat(shown), evaluations, batches)


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
        raise DataError(f"{batch.file} is no batch of measured samples ({error})") from error
    wrong = [name for name, values in tensors.items() if name != IMAGES and len(values) != len(batch.labels)]
    if wrong or kept != batch.kept:
        raise DataError(f"{batch.file} does not hold {len(batch.labels)} measured samples")
    if _digest(tensors) != digest:
        raise DataError(f"{batch.file} is damaged: its content does not match its hash")
    return tensors, evaluations


def class_balanced_labels(count: int, classes: int) -> list[int]:
    """Return `count` labels in [0, classes), each class equally often up to one, cycling so that every prefix is balanced too.

    Label i depends on i alone (50 per class for 50,000 of ImageNet); without classes all are 0, the null class.
    """
    return [index % max(1, classes) for index in range(count)]


def semantic_latents(denoiser: Denoiser, latents: ShardReader, rows: NDArray[np.int64]) -> Tensor | None:
    """Return normalised semantic latents (N, C, g, g) of training images, or None for a texture-only denoiser.

    `latents` is the train shard of stage `encode`.
    """
    name, statistics = SEMANTIC_LATENTS[denoiser.variant.semantic], denoiser.composite.statistics.semantic
    if name is None or statistics is None:
        return None
    return statistics.normalise(StoredLatent(latents, name).frozen(rows, torch.zeros(len(rows), dtype=torch.bool)))


def oracle_sampler(variant: VariantParams, sampler: SamplerParams) -> SamplerParams | None:
    """Return `sampler` with the order of an oracle: the variant's, or, if it knows every order, semantics finished first.

    None for a variant that never finishes semantics first: see `guidance.oracle`.
    """
    if variant.times.kind == "independent":
        sampler = sampler.model_copy(update={"delta_t": 1.0, "path": None})
    return sampler if variant.semantic != "none" and Schedule.of(variant, sampler).finishes_semantics else None


def oracle_order(denoiser: Denoiser, labels: Sequence[int], sampler: SamplerParams, latents: ShardReader) -> Order:
    """Order images whose semantics are those of training images, of the same classes or, without labels, evenly spaced.

    The denoiser generates semantics; `sampler` is its `oracle_sampler`.
    """
    if denoiser.classes:
        classes = np.asarray(latents["label"][:])
        rows = {label: cycle(np.flatnonzero(classes == label)) for label in set(labels)}
        chosen = np.array([next(rows[label]) for label in labels])
    else:
        chosen = np.arange(len(labels)) * len(latents) // len(labels)

    def semantics(part: slice) -> Tensor:
        return cast(Tensor, semantic_latents(denoiser, latents, chosen[part]))

    return Order(labels, sampler, semantics, fingerprint(latents.digest, chosen.tolist()))
