"""Stage `evaluate`: draw samples from every snapshot of one variant and judge them.

    python -m sfd_core.stages.evaluate --variant sfd

writes `outputs/evaluate/<variant>/`: `curve.csv` (every snapshot, `snapshot_samples` images), `numbers.json` (the last one,
`final_samples` images, and the oracle, each number with its protocol), `metrics.json` (their values alone), `samples.npz`,
`trajectory.npz`, `neighbours.png`, `grids/`.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from sfd_core.artifact import Denoiser, DenoiserManifest, SnapshotRecord
from sfd_core.config import Params, SamplerParams, VariantParams, load_params
from sfd_core.data.shards import ShardReader
from sfd_core.errors import exits_cleanly
from sfd_core.evaluation.judge import Judge, head
from sfd_core.evaluation.labels import CLASS_BALANCED, class_balanced_labels
from sfd_core.evaluation.neighbours import neighbour_sheet
from sfd_core.evaluation.protocol import Drawn, Number
from sfd_core.identity import read_latent_identity
from sfd_core.paths import atomic_dir, file_digest, require_disk, resume_dir, stage_dir, write_json
from sfd_core.sampling import Pipeline, Samples, draw_to_folder
from sfd_core.training.checkpoint import resume_key
from sfd_core.training.denoising import SEMANTIC_FIELDS
from sfd_core.trajectory import record_trajectory

TRAINING_PASSES = 3
"""A training step costs a forward and, in the backward pass, twice its operations."""
NEIGHBOURS_SHOWN = 4
GRID_COLUMNS = 8
SPARE_BYTES = 64 << 20


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
    """Judges one variant; what was drawn is kept on disk until all of it is judged."""

    def __init__(self, name: str, params: Params, inputs: EvaluateInputs) -> None:
        self.name, self.params, self.inputs = name, params.evaluate, inputs
        self.grid_images = params.report.grid_images
        self.manifest = DenoiserManifest.read(inputs.train)
        identity = read_latent_identity(inputs.encode)
        identity.require(self.manifest.identity, f"evaluating {name} with the latents in {inputs.encode}")
        self.images = ShardReader(inputs.prepare / "train")
        self.latents = ShardReader(inputs.encode / "train")
        self.judge = Judge.load(inputs.reference, params.reference, self.params.kid_subset_size, self.images.digest)
        weights = [file_digest(inputs.train / snapshot.file) for snapshot in self.manifest.snapshots]
        self.drawn = resume_dir("evaluate", resume_key(name, self.params, inputs=[*weights, identity.statistics]))

    def run(self, out: Path) -> None:
        """Judge all snapshots and write everything to `out` in one atomic step."""
        pixels = 3 * self.images["image"].shape[-1] ** 2
        images = self.params.final_samples + self.params.snapshot_samples * len(self.manifest.snapshots)
        require_disk(out, 2 * images * pixels + SPARE_BYTES, f"stage evaluate, variant {self.name}")
        rows: list[dict[str, float]] = []
        grids: list[Tensor] = []
        for snapshot in self.manifest.snapshots:
            pipeline = self._pipeline(snapshot)
            samples = self._draw(pipeline, snapshot)
            features = self.judge.features(samples.images)
            rows.append(self._row(snapshot, self.judge.score(head(features, self.params.snapshot_samples))))
            grids.append(samples.images[: self.grid_images])
            self._tell(rows[-1])
        numbers = self._final(pipeline, samples, features)
        trajectory = record_trajectory(pipeline, self.params.sampler, self._semantic_latents(pipeline.denoiser))
        nearest = self.judge.nearest(head(features, self.params.neighbours), NEIGHBOURS_SHOWN)
        shown = samples.images[: self.params.neighbours].numpy()
        sheet = neighbour_sheet(
            shown, self.images["image"].take(nearest.rows.ravel()).reshape(*nearest.rows.shape, *shown.shape[1:]), nearest
        )
        with atomic_dir(out) as folder:
            pd.DataFrame(rows).to_csv(folder / "curve.csv", index=False)
            write_json(folder / "numbers.json", {kind: _plain(measured) for kind, measured in numbers.items()})
            write_json(folder / "metrics.json", _values(numbers))
            steps = np.array([snapshot.step for snapshot in self.manifest.snapshots])
            labels = samples.labels[: self.grid_images].numpy()
            np.savez_compressed(folder / "samples.npz", images=torch.stack(grids).numpy(), steps=steps, labels=labels)
            np.savez_compressed(folder / "trajectory.npz", allow_pickle=False, **trajectory)
            Image.fromarray(sheet).save(folder / "neighbours.png")
            for step, images_of_step in zip(steps, grids, strict=True):
                Samples(images_of_step, samples.labels, 0).save_grid(folder / "grids" / f"step-{step:07d}.png", GRID_COLUMNS)
        shutil.rmtree(self.drawn, ignore_errors=True)

    def _pipeline(self, snapshot: SnapshotRecord) -> Pipeline:
        return Pipeline.from_artifact(
            self.inputs.train, self.inputs.texture_vae, step=snapshot.step, guide=self.params.sampler.guide
        )

    def _draw(self, pipeline: Pipeline, snapshot: SnapshotRecord) -> Samples:
        last = snapshot == self.manifest.snapshots[-1]
        count = max(self.params.final_samples, self.params.snapshot_samples) if last else self.params.snapshot_samples
        labels = class_balanced_labels(count, len(self.manifest.classes)).tolist()
        return draw_to_folder(pipeline, labels, self.params.sampler, self.drawn)

    def _row(self, snapshot: SnapshotRecord, scores: Mapping[str, float]) -> dict[str, float]:
        return {
            "step": snapshot.step,
            "images_seen": snapshot.images_seen,
            "seconds": snapshot.seconds,
            "flops": TRAINING_PASSES * self.manifest.flops_per_image * snapshot.images_seen,
            "samples": self.params.snapshot_samples,
            **scores,
        }

    def _final(self, pipeline: Pipeline, samples: Samples, features: Mapping[str, Tensor]) -> dict[str, dict[str, Number]]:
        """Return the last snapshot's numbers under `final`, and those of the oracle under `oracle` where it is asked for."""
        drawn = self._protocol(samples.evaluations, "samples")
        numbers = {"final": self.judge.numbers(head(features, self.params.final_samples), drawn)}
        if self.params.oracle and self.manifest.latent.semantic_channels > 0:
            oracle = self._oracle(pipeline)
            drawn = self._protocol(oracle.evaluations, "samples whose semantic latents are those of training images")
            numbers["oracle"] = self.judge.numbers(self.judge.features(oracle.images), drawn)
        return numbers

    def _oracle(self, pipeline: Pipeline) -> Samples:
        """Draw texture while semantics move along the exact line to the latent of a training image of the same class."""
        labels = class_balanced_labels(self.params.snapshot_samples, len(self.manifest.classes)).tolist()
        by_class: dict[int, list[int]] = {}
        for row, label in enumerate(np.asarray(self.latents["label"][:]).tolist()):
            by_class.setdefault(label, []).append(row)
        taken = dict.fromkeys(by_class, 0)
        rows = []
        for label in labels:
            rows.append(by_class[label][taken[label] % len(by_class[label])])
            taken[label] += 1
        semantics = self._semantic_latents(pipeline.denoiser, np.array(rows))
        parts = list(pipeline.batches(labels, self.params.sampler, semantics))
        return Samples(
            torch.cat([part.images for part in parts]), torch.tensor(labels), max(part.evaluations for part in parts)
        )

    def _semantic_latents(self, denoiser: Denoiser, rows: Any = slice(None)) -> Tensor | None:
        """Return normalised semantic latents (N, C, g, g) of training images, or None for a texture-only variant."""
        field, statistics = SEMANTIC_FIELDS[denoiser.variant.semantic], denoiser.composite.statistics.semantic
        if field is None or statistics is None:
            return None
        return statistics.normalise(torch.from_numpy(np.asarray(self.latents[field][rows])[:, 0]).float())

    def _protocol(self, evaluations: int, images: str) -> Drawn:
        return drawn_with(self.params.sampler, self.manifest.variant, evaluations, images)

    def _tell(self, row: Mapping[str, float]) -> None:
        distances = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name.startswith(("fd_", "fid")))
        print(f"{self.name}: step {row['step']:.0f}, {row['samples']:.0f} samples: {distances}", file=sys.stderr, flush=True)


def drawn_with(sampler: SamplerParams, variant: VariantParams, evaluations: int, images: str = "samples") -> Drawn:
    """Return how class-balanced `images` of `variant` were drawn by `sampler`, for the protocol of their numbers."""
    gaussian = variant.family == "gaussian"
    solver = sampler.gaussian_solver if gaussian else sampler.solver
    shift = "" if gaussian or sampler.shift == 1 else f", shift {sampler.shift}"
    return Drawn(images, CLASS_BALANCED, sampler.seed, f"{solver}{shift}", evaluations, _guidance(sampler))


def _guidance(sampler: SamplerParams) -> str:
    if sampler.guidance == "none":
        return "none"
    parts = ", ".join(
        f"{name} {part.scale} in {part.interval}"
        for name, part in (("texture", sampler.texture), ("semantic", sampler.semantic))
    )
    return f"{sampler.guidance}: {parts}" + (f", guide {sampler.guide}" if sampler.guide else "")


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
    Evaluation(name, params, inputs).run(stage_dir("evaluate", name))


if __name__ == "__main__":
    main()
