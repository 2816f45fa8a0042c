"""Stage `evaluate`: draw samples from every snapshot of one variant and judge them.

    python -m sfd_core.stages.evaluate --variant sfd

writes `outputs/evaluate/<variant>/`: `curve.csv` (every snapshot, `snapshot_samples` images), `numbers.json` (the last one,
`final_samples` images, and the oracle, each number with its protocol), `metrics.json` (their values alone), `samples.npz`,
`trajectory.npz`, `neighbours.png`, `grids/`. Every GPU, or as many processes as `SFD_PROCESSES` says, takes its share of the
work; the numbers are the same.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation.judge import Judge, head
from sfd_core.evaluation.labels import class_balanced_labels
from sfd_core.evaluation.measurement import (
    ORACLE,
    SAMPLES,
    Batch,
    Measured,
    Order,
    drawn_with,
    measure,
    oracle_order,
    recipe,
    semantic_latents,
)
from sfd_core.evaluation.neighbours import neighbour_sheet
from sfd_core.evaluation.protocol import Drawn, Number
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import Params, load_params
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import atomic_dir, file_digest, require_disk, stage_dir, write_json
from sfd_core.host.processes import Processes, spread
from sfd_core.host.progress import with_progress
from sfd_core.host.resume import mixed_codes, resume_dir, settle
from sfd_core.latents.identity import read_latent_identity
from sfd_core.sampling.artifact import Denoiser, DenoiserManifest, SnapshotRecord
from sfd_core.sampling.pipeline import Pipeline, Samples
from sfd_core.sampling.trajectory import record_trajectory
from sfd_core.training.checkpoint import resume_key

TRAINING_PASSES = 3
"""A training step costs a forward and, in the backward pass, twice its operations."""
NEIGHBOURS_SHOWN = 4
GRID_COLUMNS = 8
SPARE_BYTES = 64 << 20
COLOUR_LATENTS = 10_000
"""Semantic latents of training images, evenly spaced, whose principal components give a denoising run its colours."""


@dataclass(frozen=True)
class EvaluateInputs:
    """The folders that `evaluate` reads."""

    train: Path
    """Of the variant."""
    encode: Path
    prepare: Path
    reference: Path
    texture_vae: Path


class Evaluation:
    """Judges one variant; what was judged is kept on disk until all of it is, and several processes may share the work."""

    def __init__(self, name: str, params: Params, inputs: EvaluateInputs, processes: Processes | None = None) -> None:
        self.name, self.params, self.inputs, self.compiled = name, params.evaluate, inputs, params.engine.compile
        self.processes = processes or Processes(0, 1)
        self.grid_images = params.report.grid_images
        self.manifest = DenoiserManifest.read(inputs.train)
        identity = read_latent_identity(inputs.encode)
        identity.require(self.manifest.identity, f"evaluating {name} with the latents in {inputs.encode}")
        self.images, self.latents = (
            ShardReader(folder / "train", verify=self.processes.first) for folder in (inputs.prepare, inputs.encode)
        )
        self.judge = Judge.load(inputs.reference, params.reference, self.params.kid_subset_size, self.images.digest)
        weights = [file_digest(inputs.train / snapshot.file) for snapshot in self.manifest.snapshots]
        key = resume_key(name, self.params, inputs=[*weights, identity.statistics, *self.judge.keys])
        self.judged = resume_dir("evaluate", key)
        if self.processes.first:
            settle(self.judged, stage_code("evaluate"))

    def run(self, out: Path) -> None:
        """Judge all snapshots; the first process writes everything to `out` in one atomic step."""
        images = self.params.final_samples + self.params.snapshot_samples * len(self.manifest.snapshots)
        require_disk(out, images * self.judge.row_bytes + SPARE_BYTES, f"stage evaluate, variant {self.name}")
        rows: list[dict[str, float]] = []
        grids: list[Tensor] = []
        for snapshot in self.manifest.snapshots:
            pipeline = self._pipeline(snapshot)
            measured = self._measure(pipeline, snapshot)
            if measured is not None:
                rows.append(self._row(snapshot, self.judge.score(head(measured.features, self.params.snapshot_samples))))
                grids.append(measured.shown[: self.grid_images])
                self._tell(rows[-1])
        oracle = self._measure_oracle(pipeline)
        if measured is not None:
            self._write(out, pipeline, measured, oracle, rows, grids)
        self.processes.wait()
        if self.processes.first:
            shutil.rmtree(self.judged, ignore_errors=True)

    def _write(
        self,
        out: Path,
        pipeline: Pipeline,
        measured: Measured,
        oracle: Measured | None,
        rows: list[dict[str, float]],
        grids: list[Tensor],
    ) -> None:
        numbers = self._numbers(pipeline, measured, oracle)
        trajectory = record_trajectory(pipeline, self.params.sampler, self._some_semantic_latents(pipeline.denoiser))
        with atomic_dir(out) as folder:
            pd.DataFrame(rows).to_csv(folder / "curve.csv", index=False)
            write_json(folder / "numbers.json", {kind: _plain(named) for kind, named in numbers.items()})
            write_json(folder / "metrics.json", _values(numbers))
            steps = np.array([snapshot.step for snapshot in self.manifest.snapshots])
            labels = measured.labels[: self.grid_images]
            np.savez_compressed(folder / "samples.npz", images=torch.stack(grids).numpy(), steps=steps, labels=labels.numpy())
            np.savez_compressed(folder / "trajectory.npz", allow_pickle=False, **trajectory)
            Image.fromarray(self._neighbour_sheet(measured)).save(folder / "neighbours.png")
            for step, images in zip(steps, grids, strict=True):
                Samples(images, labels, 0).save_grid(folder / "grids" / f"step-{step:07d}.png", GRID_COLUMNS)

    def _pipeline(self, snapshot: SnapshotRecord) -> Pipeline:
        inputs, guide = self.inputs, self.params.sampler.guide
        return Pipeline.from_artifact(inputs.train, inputs.texture_vae, snapshot.step, guide, self.compiled)

    def _measure(self, pipeline: Pipeline, snapshot: SnapshotRecord) -> Measured | None:
        last = snapshot == self.manifest.snapshots[-1]
        count = max(self.params.final_samples, self.params.snapshot_samples) if last else self.params.snapshot_samples
        labels = class_balanced_labels(count, len(self.manifest.classes)).tolist()
        shown = max(self.grid_images, self.params.neighbours if last else 0)
        return self._judge(pipeline, Order(labels, self.params.sampler, shown=shown), f"step {snapshot.step}")

    def _measure_oracle(self, pipeline: Pipeline) -> Measured | None:
        """Draw texture while semantics move along the exact line to the latent of a training image of the same class."""
        if not self.params.oracle or self.manifest.latent.semantic_channels == 0:
            return None
        labels = class_balanced_labels(self.params.snapshot_samples, len(self.manifest.classes)).tolist()
        order = oracle_order(pipeline.denoiser, labels, self.params.sampler, self.latents)
        return self._judge(pipeline, order, "oracle")

    def _judge(self, pipeline: Pipeline, order: Order, what: str) -> Measured | None:
        def progress(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
            return with_progress(batches, total, f"{self.name}, {what}", step=order.sampler.batch_size)

        return measure(pipeline, self.judge, order, self.judged, self.processes, progress)

    def _row(self, snapshot: SnapshotRecord, scores: Mapping[str, float]) -> dict[str, float]:
        return {
            "step": snapshot.step,
            "images_seen": snapshot.images_seen,
            "flops": TRAINING_PASSES * self.manifest.flops_per_image * snapshot.images_seen,
            "samples": self.params.snapshot_samples,
            **scores,
        }

    def _numbers(self, pipeline: Pipeline, measured: Measured, oracle: Measured | None) -> dict[str, dict[str, Number]]:
        """Return the last snapshot's numbers under `final`, and those of the oracle under `oracle` where it was asked for."""
        drawn = self._drawn(pipeline, measured, SAMPLES)
        numbers = {"final": self.judge.numbers(head(measured.features, self.params.final_samples), drawn)}
        if oracle is not None:
            numbers["oracle"] = self.judge.numbers(oracle.features, self._drawn(pipeline, oracle, ORACLE))
        return numbers

    def _drawn(self, pipeline: Pipeline, measured: Measured, images: str) -> Drawn:
        by = recipe(self.inputs.train, pipeline, self.params.sampler, oracle=images == ORACLE) | mixed_codes(self.judged)
        return drawn_with(self.params.sampler, self.manifest.variant, measured.evaluations, images, by)

    def _some_semantic_latents(self, denoiser: Denoiser) -> Tensor | None:
        rows = np.linspace(0, len(self.latents) - 1, min(len(self.latents), COLOUR_LATENTS)).astype(np.int64)
        return semantic_latents(denoiser, self.latents, rows)

    def _neighbour_sheet(self, measured: Measured) -> NDArray[np.uint8]:
        shown = measured.shown[: self.params.neighbours].numpy()
        nearest = self.judge.nearest(head(measured.features, len(shown)), NEIGHBOURS_SHOWN)
        found = self.images["image"].take(nearest.rows.ravel()).reshape(*nearest.rows.shape, *shown.shape[1:])
        return neighbour_sheet(shown, found, nearest)

    def _tell(self, row: Mapping[str, float]) -> None:
        distances = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name.startswith(("fd_", "fid")))
        print(f"{self.name}: step {row['step']:.0f}, {row['samples']:.0f} samples: {distances}", file=sys.stderr, flush=True)


def _values(numbers: Mapping[str, Mapping[str, Number]]) -> dict[str, float]:
    """Return a flat object of plain values, which `dvc metrics show` prints as one row."""
    named = ((kind, name, number) for kind, measured in numbers.items() for name, number in measured.items())
    return {name if kind == "final" else f"{kind}_{name}": number.value for kind, name, number in named}


def _plain(numbers: Mapping[str, Number]) -> dict[str, Any]:
    return {name: number.as_dict() for name, number in numbers.items()}


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    parser = argparse.ArgumentParser(description="Draw and judge samples of one variant (outputs/evaluate/<variant>).")
    parser.add_argument("--variant", required=True, help="a key of `variants` in params.yaml")
    name = parser.parse_args().variant
    params = load_params()
    params.variant(name)  # an unknown one is told before anything is read
    inputs = EvaluateInputs(
        stage_dir("train", name), stage_dir("encode"), stage_dir("prepare"), stage_dir("reference"), stage_dir("texture_vae")
    )
    spread()
    processes = Processes.join()
    with processes.first_first():
        evaluation = Evaluation(name, params, inputs, processes)
    evaluation.run(stage_dir("evaluate", name))
    processes.leave()


if __name__ == "__main__":
    main()
