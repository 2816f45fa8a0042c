"""Stage `evaluate`: draw samples from every snapshot of one variant and measure them.

    python -m sfd_core.stages.evaluate --variant sfd

writes `outputs/evaluate/<variant>/`: `curve.csv` (every snapshot, `snapshot_samples` images), `numbers.json` (the last one,
`final_samples` images, and the oracle, each number with its protocol), `metrics.json` (their values alone), `samples.npz`,
`trajectory.npz`, `neighbours.png`, `classes.csv` (how samples spread over the classes), `grids/`. Every GPU, or as many
processes as `SFD_PROCESSES` says, takes its share of the work; the numbers are the same.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfd_core.data.store.shards import ShardReader, evenly_spaced
from sfd_core.evaluation.evaluator import Evaluator, Number, head
from sfd_core.evaluation.measurement import (
    Measured,
    Order,
    class_balanced_labels,
    measure,
    oracle_order,
    oracle_sampler,
    semantic_latents,
)
from sfd_core.evaluation.neighbours import neighbour_sheet
from sfd_core.evaluation.rerun import drawn_with, recipe
from sfd_core.experiment.params import Params, fingerprint
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.host.processes import Processes, spread
from sfd_core.host.resume import mixed_codes, resume_dir
from sfd_core.latents.identity import open_latents
from sfd_core.sampling.artifact import DenoiserManifest, SnapshotRecord, snapshot_digest
from sfd_core.sampling.pipeline import Pipeline, Samples
from sfd_core.sampling.trajectory import record_trajectory
from sfd_core.stages.start import begin_stage

NEIGHBOURS_SHOWN = 4
GRID_COLUMNS = 8
SPARE_BYTES = 64 << 20
COLOUR_LATENTS = 10_000
"""Semantic latents of training images, evenly spaced, whose principal components give a denoising run its colours."""


class Evaluation:
    """Evaluates one variant; what was drawn is kept on disk until all is written, and several processes may share the work."""

    def __init__(self, name: str, params: Params, processes: Processes) -> None:
        self.name, self.params, self.compiled, self.processes = name, params.evaluate, params.engine.compile, processes
        self.grid_images = min(params.report.grid_images, params.evaluate.snapshot_samples)
        self.artifact = stage_dir("train", name)
        self.manifest = DenoiserManifest.read(self.artifact)
        identity = self.manifest.identity
        self.images = ShardReader(stage_dir("prepare") / "train", processes.first)
        self.latents = open_latents(stage_dir("encode"), "train", identity, f"evaluating {name}", processes.first)
        reference, subset = stage_dir("reference"), self.params.kid_subset_size
        self.evaluator = Evaluator.load(reference, params.reference, subset, self.images.digest)
        weights = [snapshot_digest(self.artifact, snapshot) for snapshot in self.manifest.snapshots]
        made_by = [*weights, identity.statistics, identity.texture_vae["weights"], *self.evaluator.keys]
        key = fingerprint(name, self.params, self.manifest.variant, made_by)
        self.batches = resume_dir("evaluate", key)

    def run(self, out: Path) -> None:
        """Measure all snapshots; the first process writes everything to `out` in one atomic step."""
        images = self.params.final_samples + self.params.snapshot_samples * len(self.manifest.snapshots)
        require_disk(out, images * self.evaluator.row_bytes + SPARE_BYTES, f"stage evaluate, variant {self.name}")
        vae, sampler = stage_dir("texture_vae"), self.params.sampler
        rows: list[dict[str, float]] = []
        grids: list[Tensor] = []
        for snapshot in self.manifest.snapshots:
            pipeline = Pipeline.from_artifact(
                self.artifact, vae, snapshot.step, sampler.guide, self.compiled, sampler.guide_step
            )
            measured = self._measure_snapshot(pipeline, snapshot)
            if measured is not None:
                rows.append(self._row(snapshot, measured))
                grids.append(measured.shown[: self.grid_images])
        oracle = self._measure_oracle(pipeline)
        if measured is not None:
            self._write(out, pipeline, measured, oracle, rows, grids)
        self.processes.wait()
        if self.processes.first:
            shutil.rmtree(self.batches, ignore_errors=True)

    def _measure_snapshot(self, pipeline: Pipeline, snapshot: SnapshotRecord) -> Measured | None:
        last = snapshot == self.manifest.snapshots[-1]
        count = max(self.params.final_samples, self.params.snapshot_samples) if last else self.params.snapshot_samples
        shown = max(self.grid_images, self.params.neighbours if last else 0)
        order = Order(class_balanced_labels(count, len(self.manifest.classes)), self.params.sampler, shown=shown)
        return self._measure(pipeline, order, f"step {snapshot.step}")

    def _measure_oracle(self, pipeline: Pipeline) -> Measured | None:
        """Draw texture after the semantics of a training image of the same class, if the variant can finish semantics first."""
        sampler = oracle_sampler(self.manifest.variant, self.params.sampler) if self.params.oracle else None
        if sampler is None:
            return None
        labels = class_balanced_labels(self.params.snapshot_samples, len(self.manifest.classes))
        return self._measure(pipeline, oracle_order(pipeline.denoiser, labels, sampler, self.latents), "oracle")

    def _measure(self, pipeline: Pipeline, order: Order, what: str) -> Measured | None:
        return measure(pipeline, self.evaluator, order, self.batches, self.processes, f"{self.name}, {what}")

    def _row(self, snapshot: SnapshotRecord, measured: Measured) -> dict[str, float]:
        """Return and log a row of the curve."""
        samples = self.params.snapshot_samples
        scores = self.evaluator.score(head(measured.features, samples))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if name.startswith(("fd_", "fid")))
        print(f"{self.name}: step {snapshot.step}, {samples} samples: {shown}", file=sys.stderr, flush=True)
        return {
            "step": snapshot.step,
            "images_seen": snapshot.images_seen,
            "flops": self.manifest.training_flops_per_image * snapshot.images_seen,
            "samples": samples,
            **scores,
        }

    def _write(
        self,
        out: Path,
        pipeline: Pipeline,
        measured: Measured,
        oracle: Measured | None,
        rows: list[dict[str, float]],
        grids: list[Tensor],
    ) -> None:
        numbers = {"final": self._numbers(pipeline, measured, self.params.final_samples)}
        if oracle is not None:
            numbers["oracle"] = self._numbers(pipeline, oracle, self.params.snapshot_samples)
        coloured = evenly_spaced(len(self.latents), COLOUR_LATENTS)
        semantics = semantic_latents(pipeline.denoiser, self.latents, coloured)
        trajectory = record_trajectory(pipeline, self.params.sampler, semantics)
        with atomic_dir(out) as folder:
            pd.DataFrame(rows).to_csv(folder / "curve.csv", index=False)
            write_json(folder / "numbers.json", numbers)
            samples = head(measured.features, self.params.final_samples)
            classes = self.evaluator.classes(samples, self.images["label"].array, self.images.meta["classes"])
            classes.to_csv(folder / "classes.csv", index=False)
            # a flat object of plain values, which `dvc metrics show` prints as one row
            named = [(kind, name, number) for kind, found in numbers.items() for name, number in found.items()]
            values = {name if kind == "final" else f"{kind}_{name}": number.value for kind, name, number in named}
            write_json(folder / "metrics.json", values)
            steps = np.array([snapshot.step for snapshot in self.manifest.snapshots])
            labels = measured.labels[: self.grid_images]
            np.savez_compressed(folder / "samples.npz", images=torch.stack(grids).numpy(), steps=steps, labels=labels.numpy())
            np.savez_compressed(folder / "trajectory.npz", allow_pickle=False, **trajectory)
            Image.fromarray(self._neighbour_sheet(measured)).save(folder / "neighbours.png")
            for step, images in zip(steps, grids, strict=True):
                Samples(images, labels, 0).save_grid(folder / "grids" / f"step-{step:07d}.png", GRID_COLUMNS)

    def _numbers(self, pipeline: Pipeline, measured: Measured, samples: int) -> dict[str, Number]:
        by = recipe(self.artifact, pipeline, measured.order.sampler, measured.order.oracle) | mixed_codes(self.batches)
        drawn = drawn_with(measured.order.sampler, pipeline.denoiser, measured.evaluations, by)
        return self.evaluator.numbers(head(measured.features, samples), drawn)

    def _neighbour_sheet(self, measured: Measured) -> NDArray[np.uint8]:
        shown = measured.shown[: self.params.neighbours].numpy()
        nearest = self.evaluator.nearest(head(measured.features, len(shown)), NEIGHBOURS_SHOWN)
        found = self.images["image"].take(nearest.rows.ravel()).reshape(*nearest.rows.shape, *shown.shape[1:])
        return neighbour_sheet(shown, found, nearest)


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    parser = argparse.ArgumentParser(description="Draw and measure samples of one variant (outputs/evaluate/<variant>).")
    parser.add_argument("--variant", required=True, help="a key of `variants` in params.yaml")
    name = parser.parse_args().variant
    params = begin_stage("evaluate", name)
    spread()
    processes = Processes.join()
    with processes.first_first():
        evaluation = Evaluation(name, params, processes)
    evaluation.run(stage_dir("evaluate", name))
    processes.leave()


if __name__ == "__main__":
    main()
