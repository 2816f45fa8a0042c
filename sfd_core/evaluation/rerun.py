"""A denoiser measured by a recipe that its numbers record, so that the same command or file measures them again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from sfd_core.diffusion.schedule import Schedule
from sfd_core.evaluation.evaluator import Drawn, Evaluator, Number
from sfd_core.evaluation.measurement import (
    CLASS_BALANCED,
    UNLABELLED,
    Measured,
    Order,
    class_balanced_labels,
    measure,
    oracle_order,
)
from sfd_core.experiment.params import Params, SamplerParams, fingerprint
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.host.paths import stage_dir
from sfd_core.host.processes import Processes
from sfd_core.host.resume import mixed_codes, resume_dir
from sfd_core.latents.identity import open_latents
from sfd_core.sampling.artifact import Denoiser, snapshot_digest
from sfd_core.sampling.pipeline import Pipeline

GENERATED = "generated"
"""What a recipe says of semantics that the denoiser draws itself."""


@dataclass(frozen=True)
class Measurement:
    """A denoiser, where it lies, the evaluator and the processes that measure with them."""

    artifact: Path
    pipeline: Pipeline
    evaluator: Evaluator
    processes: Processes

    @classmethod
    def load(cls, params: Params, artifact: Path, step: int | None, sampler: SamplerParams, processes: Processes) -> Self:
        """Load a denoiser (None: its last snapshot), the guide of `sampler` and the evaluator of the experiment."""
        vae, compiled = stage_dir("texture_vae"), params.engine.compile
        pipeline = Pipeline.from_artifact(artifact, vae, step, sampler.guide, compiled, sampler.guide_step)
        evaluator = Evaluator.load(stage_dir("reference"), params.reference, params.evaluate.kid_subset_size)
        return cls(artifact, pipeline, evaluator, processes)

    def run(self, order: Order, what: str) -> tuple[dict[str, Number], Measured] | None:
        """Draw and evaluate; None in every process but the first. Shows progress, of `what`, and resumes an interrupted run."""
        by = recipe(self.artifact, self.pipeline, order.sampler, order.oracle)
        folder = resume_dir("measure", fingerprint(by, self.evaluator.keys))
        measured = measure(self.pipeline, self.evaluator, order, folder, self.processes, what)
        if measured is None:
            return None
        drawn = drawn_with(order.sampler, self.pipeline.denoiser, measured.evaluations, by | mixed_codes(folder))
        return self.evaluator.numbers(measured.features, drawn), measured

    @property
    def weights(self) -> str:
        """The sha256 of the denoiser's snapshot."""
        return snapshot_digest(self.artifact, self.pipeline.denoiser.snapshot)

    def key(self, sampler: SamplerParams, samples: int) -> str:
        """Name a point of a study by all that its numbers depend on but the code: a new version of this program keeps it."""
        by = recipe(self.artifact, self.pipeline, sampler)
        del by["artifact"]
        by["sampler"] = sampler.model_dump(mode="json", exclude_defaults=True)  # a later setting renames no point
        references = [reference.source_digest for reference in self.evaluator.references.values()]
        return fingerprint(by, samples, self.evaluator.keys, references, self.evaluator.kid_subset_size)


@dataclass(frozen=True)
class Recorded:
    """Numbers of one group of a file, all of one set of images."""

    numbers: Mapping[str, Mapping[str, Any]]
    """Name -> `value` and `protocol`, as in the file."""
    recipe: Mapping[str, Any]
    sampler: SamplerParams
    samples: int

    @property
    def artifact(self) -> Path:
        """The folder of the denoiser, where it lay."""
        return Path(self.recipe["artifact"])

    @property
    def oracle(self) -> bool:
        """Whether the semantics are those of training images."""
        return bool(self.recipe["semantics"] != GENERATED)

    def order(self, pipeline: Pipeline, encode: Path) -> Order:
        """Return what was drawn; `encode` is the folder of that stage, whose training images an oracle needs.

        Raises `IdentityError` if an oracle's denoiser was trained on other latents.
        """
        labels = class_balanced_labels(self.samples, len(pipeline.denoiser.classes))
        if not self.oracle:
            return Order(labels, self.sampler)
        latents = open_latents(encode, "train", pipeline.denoiser.identity, "the oracle")
        return oracle_order(pipeline.denoiser, labels, self.sampler, latents)

    def require_same(self, measurement: Measurement) -> None:
        """Raise `IdentityError` that names the first thing that differs from when the numbers were measured.

        Nothing is drawn for that: weights, extractors and references are compared by their hashes.
        """
        now = recipe(measurement.artifact, measurement.pipeline, self.sampler, self.oracle)
        for key, value in self.recipe.items():
            # the sampler is the recorded one; an older file lacks what was added since
            if key in now.keys() - {"artifact", "sampler"} and value != now[key]:
                raise IdentityError(
                    f"the numbers were measured with {key} {value}, but it is {now[key]} now; "
                    "restore what made them, for example with `git checkout` of their dvc.lock and `dvc checkout`"
                )
        evaluations = next(iter(self.numbers.values()))["protocol"]["evaluations"]
        drawn = drawn_with(self.sampler, measurement.pipeline.denoiser, evaluations, {**self.recipe})
        protocols = measurement.evaluator.protocols(self.samples, drawn)
        for name, number in self.numbers.items():
            if name not in protocols:
                raise IdentityError(
                    f"{name} was measured, but the extractors now measure {', '.join(protocols)}; set reference.extractors"
                )
            for key, value in protocols[name].items():
                if value != number["protocol"].get(key):
                    raise IdentityError(
                        f"{name} was measured with {key} {number['protocol'].get(key)!r}, but it is {value!r} now; "
                        "restore the parameters and outputs that made it"
                    )


def read_recorded(path: Path) -> dict[str, Recorded]:
    """Read a file of numbers that `sfd evaluate --out` or stage `evaluate` wrote, by group.

    Raises `DataError` if it is none, or if its numbers cannot be measured again because they name no recipe.
    """
    try:
        groups = json.loads(path.read_text())
        found = {group: _recorded(numbers) for group, numbers in groups.items() if numbers}
        if not found:
            raise ValueError("it is empty")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; name a file such as outputs/evaluate/sfd/numbers.json") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, ValidationError) as error:
        raise DataError(
            f"{path} holds no numbers that can be measured again ({error!r}); it needs groups of numbers with a value and a "
            "protocol that holds a recipe, as `sfd evaluate --out` writes them"
        ) from error
    return found


def _recorded(numbers: Mapping[str, Mapping[str, Any]]) -> Recorded:
    protocols = [number["protocol"] for number in numbers.values()]
    by, samples = protocols[0]["recipe"], protocols[0]["samples"]
    if any(protocol["recipe"] != by or protocol["samples"] != samples for protocol in protocols):
        raise ValueError("numbers of one group are of different images")
    if protocols[0]["labels"] not in (CLASS_BALANCED, UNLABELLED):
        raise ValueError(f"labels {protocols[0]['labels']!r} are not {CLASS_BALANCED!r}")
    return Recorded(numbers, by, SamplerParams.model_validate(by["sampler"]), int(samples))


def recipe(artifact: Path, pipeline: Pipeline, sampler: SamplerParams, oracle: bool = False) -> dict[str, Any]:
    """Return all that is needed to draw these images again, as plain values for a protocol.

    `artifact` is the folder of the pipeline's denoiser; weights and statistics are named by their sha256. The weights of a
    denoiser of independent times do not tell its path.
    """
    return {
        "artifact": str(artifact),
        "step": pipeline.denoiser.snapshot.step,
        "weights": snapshot_digest(artifact, pipeline.denoiser.snapshot),
        "guide_weights": None
        if sampler.guide is None or pipeline.guide is None
        else snapshot_digest(Path(sampler.guide), pipeline.guide.snapshot),
        "texture_vae": pipeline.denoiser.identity.texture_vae["weights"],
        "statistics": pipeline.denoiser.identity.statistics,
        "path": Schedule.of(pipeline.denoiser.variant, sampler).corners,
        "semantics": "training images" if oracle else GENERATED,
        "sampler": sampler.model_dump(mode="json"),
    }


def drawn_with(sampler: SamplerParams, denoiser: Denoiser, evaluations: int, drawn_by: Mapping[str, Any]) -> Drawn:
    """Return how images of `denoiser` were drawn by the recipe `drawn_by`, for the protocol of their numbers."""
    gaussian = denoiser.variant.family == "gaussian"
    solver = sampler.gaussian_solver if gaussian else sampler.solver
    shift = "" if gaussian or solver == "dopri5" or sampler.shift == 1 else f", shift {sampler.shift}"
    order = f", path {sampler.path}" if sampler.path else "" if sampler.delta_t is None else f", offset {sampler.delta_t}"
    precision = "" if sampler.precision == "float32" else f", {sampler.precision}"
    generated = drawn_by["semantics"] == GENERATED
    return Drawn(
        images="samples" if generated else "samples whose semantic latents are those of training images",
        labels=CLASS_BALANCED if denoiser.classes else UNLABELLED,
        seed=sampler.seed,
        sampler=f"{solver}{shift}{order}{precision}",
        evaluations=evaluations,
        guidance=_guidance(sampler),
        recipe=drawn_by,
    )


def _guidance(sampler: SamplerParams) -> str:
    if sampler.guidance == "none":
        return "none"
    parts = ", ".join(
        f"{name} {part.scale} in {part.interval}"
        for name, part in (("texture", sampler.texture), ("semantic", sampler.semantic))
    )
    step = f" at step {sampler.guide_step}" if sampler.guide_step else ""
    return f"{sampler.guidance}: {parts}" + (f", guide {sampler.guide}{step}" if sampler.guide else "")
