"""Numbers on disk, and the measurement that a protocol describes: drawn and judged again, or refused if something differs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation.judge import Judge
from sfd_core.evaluation.labels import CLASS_BALANCED, class_balanced_labels
from sfd_core.evaluation.measurement import (
    ORACLE,
    SAMPLES,
    Measured,
    Order,
    Progress,
    drawn_with,
    measure,
    oracle_order,
    recipe,
)
from sfd_core.evaluation.protocol import Number, Protocol
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import SamplerParams, fingerprint
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.host.paths import write_json
from sfd_core.host.processes import Processes
from sfd_core.host.resume import Code, mixed_codes, resume_dir, settle
from sfd_core.sampling.pipeline import Pipeline

Groups = Mapping[str, Mapping[str, Number]]
"""`final` or `oracle` -> name -> number."""


@dataclass(frozen=True)
class Measurement:
    """A denoiser, where it lies, the judge and the processes that measure with them."""

    artifact: Path
    pipeline: Pipeline
    judge: Judge
    processes: Processes
    code: Code = field(default_factory=lambda: stage_code("evaluate"))
    """The code that measures."""

    def run(self, order: Order, oracle: bool, progress: Progress) -> tuple[dict[str, Number], Measured] | None:
        """Draw and judge; None in every process but the first. Continues a run that was broken off."""
        by = recipe(self.artifact, self.pipeline, order.sampler, oracle)
        folder = resume_dir("measure", fingerprint(by, self.judge.keys))
        if self.processes.first:
            settle(folder, self.code)
        self.processes.wait()
        measured = measure(self.pipeline, self.judge, order, folder, self.processes, progress)
        if measured is None:
            return None
        variant = self.pipeline.denoiser.variant
        by |= mixed_codes(folder)
        drawn = drawn_with(order.sampler, variant, measured.evaluations, ORACLE if oracle else SAMPLES, by)
        return self.judge.numbers(measured.features, drawn), measured

    def key(self, sampler: SamplerParams, samples: int) -> str:
        """Name a point of a study by all that its numbers depend on but the code: a new version of this program keeps it."""
        by = recipe(self.artifact, self.pipeline, sampler)
        del by["artifact"]
        references = [reference.source_digest for reference in self.judge.references.values()]
        return fingerprint(by, samples, self.judge.keys, references, self.judge.kid_subset_size)


@dataclass(frozen=True)
class Recorded:
    """Numbers of one group of a file, all of one set of images."""

    numbers: Mapping[str, Mapping[str, Any]]
    """Name -> `value` and `protocol`, as in the file."""
    recipe: Mapping[str, Any]
    sampler: SamplerParams
    samples: int

    @property
    def oracle(self) -> bool:
        """Whether the semantics are those of training images."""
        return bool(self.recipe["semantics"] != "generated")

    @property
    def artifact(self) -> Path:
        """The folder of the denoiser, where it lay."""
        return Path(self.recipe["artifact"])

    def order(self, pipeline: Pipeline, latents: Path) -> Order:
        """Return what was drawn; `latents` is the folder of encoded training images, which an oracle needs."""
        labels = class_balanced_labels(self.samples, len(pipeline.denoiser.classes)).tolist()
        if not self.oracle:
            return Order(labels, self.sampler)
        return oracle_order(pipeline.denoiser, labels, self.sampler, ShardReader(latents))

    def require_same(self, measurement: Measurement) -> None:
        """Raise `IdentityError` that names the first thing that differs from when the numbers were measured.

        Nothing is drawn for that: weights, judges and references are compared by their hashes.
        """
        now = recipe(measurement.artifact, measurement.pipeline, self.sampler, self.oracle)
        differing = [key for key, value in now.items() if key != "artifact" and value != self.recipe.get(key)]
        if differing:
            key = differing[0]
            raise IdentityError(
                f"the numbers were measured with {key} {self.recipe.get(key)}, but it is {now[key]} now; "
                "restore what made them, for example with `git checkout` of their dvc.lock and `dvc checkout`"
            )
        first = next(iter(self.numbers.values()))["protocol"]
        images = ORACLE if self.oracle else SAMPLES
        drawn = drawn_with(self.sampler, measurement.pipeline.denoiser.variant, first["evaluations"], images, {**self.recipe})
        expected = measurement.judge.protocols(self.samples, drawn)
        for name, number in self.numbers.items():
            _require_protocol(name, number["protocol"], expected)


def numbers_file(groups: Groups) -> dict[str, Any]:
    """Return the numbers as a file holds them."""
    return {group: {name: number.as_dict() for name, number in named.items()} for group, named in groups.items()}


def write_numbers(path: Path, groups: Groups) -> None:
    """Write numbers with their protocols as JSON."""
    write_json(path, numbers_file(groups))


def read_recorded(path: Path) -> dict[str, Recorded]:
    """Read a file of numbers that `write_numbers` or stage `evaluate` wrote, by group.

    Raises `DataError` if it is none, or if its numbers cannot be measured again because they name no recipe.
    """
    try:
        groups = json.loads(path.read_text())
        return {group: _recorded(numbers) for group, numbers in groups.items() if numbers}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; name a file such as outputs/evaluate/sfd/numbers.json") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, ValidationError) as error:
        raise DataError(
            f"{path} holds no numbers that can be measured again ({error!r}); it needs groups of numbers with a value and a "
            "protocol that holds a recipe, as `sfd evaluate --out` writes them"
        ) from error


def _recorded(numbers: Mapping[str, Mapping[str, Any]]) -> Recorded:
    protocols = [number["protocol"] for number in numbers.values()]
    by, samples = protocols[0]["recipe"], protocols[0]["samples"]
    if any(protocol["recipe"] != by or protocol["samples"] != samples for protocol in protocols):
        raise ValueError("numbers of one group are of different images")
    if protocols[0]["labels"] != CLASS_BALANCED:
        raise ValueError(f"labels {protocols[0]['labels']!r} are not {CLASS_BALANCED!r}")
    return Recorded(numbers, by, SamplerParams.model_validate(by["sampler"]), int(samples))


def _require_protocol(name: str, recorded: Mapping[str, Any], expected: Mapping[str, Protocol]) -> None:
    if name not in expected:
        raise IdentityError(f"{name} was measured, but the judges now measure {', '.join(expected)}; set reference.extractors")
    now = asdict(expected[name])
    differing = [key for key in now if now[key] != recorded.get(key)]
    if differing:
        key = differing[0]
        raise IdentityError(
            f"{name} was measured with {key} {recorded.get(key)!r}, but it is {now[key]!r} now; restore the parameters and "
            "outputs that made it"
        )
