"""What studies of one trained denoiser share: points measured once, kept as files, told as rows of a table beside a figure."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
from pydantic import ValidationError

from sfd_core.evaluation.measurement import Measured, Order, Progress
from sfd_core.evaluation.rerun import Measurement, write_numbers
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_path


class StudyPoint(Protocol):
    """One way to sample."""

    @property
    def name(self) -> str:
        """The point in words."""

    @property
    def sampler(self) -> SamplerParams:
        """All that sampling needs."""


P = TypeVar("P", bound=StudyPoint)


def changed_sampler(base: SamplerParams, changes: Mapping[str, Any], what: str) -> SamplerParams:
    """Return `base` with other values. Raises `ConfigError` that names the point, `what`, if they cannot be."""
    try:
        return SamplerParams.model_validate(base.model_dump(mode="json") | dict(changes))
    except ValidationError as error:
        raise ConfigError(f"{what} cannot be drawn: {error.errors()[0]['msg']}") from error


def measure_points(  # noqa: PLR0913 (what is measured, on what, and who is told)
    measurement: Measurement,
    points: Sequence[P],
    labels: Sequence[int],
    folder: Path,
    progress: Callable[[str, int], Progress],
    told: Callable[[str], None],
    keep: Callable[[P, Path, Measured], None] = lambda *_: None,
) -> Iterator[tuple[P, Path]]:
    """Yield every point and the file of its numbers; one whose file is there already is not drawn again.

    `keep` may write more of what was drawn, beside the file and before it. In all processes but the first the file may not be
    there yet.
    """
    for number, point in enumerate(points, start=1):
        file = folder / f"{measurement.key(point.sampler, len(labels))}.json"
        what = f"point {number} of {len(points)}: {point.name}"
        # every process must come to the same answer before the first one writes the file
        known = file.is_file()
        measurement.processes.wait()
        if measurement.processes.first:
            told(f"{what}: measured already" if known else what)
        if not known:
            result = measurement.run(Order(labels, point.sampler), False, progress(what, point.sampler.batch_size))
            if result is not None:
                numbers, measured = result
                keep(point, file, measured)
                write_numbers(file, {"final": numbers})
                measured.forget()
        yield point, file


def read_row(file: Path, settings: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return a row of the table: the settings, columns of the protocol (or its `step`), all numbers, the name of the file.

    Raises `DataError` for a file that holds no numbers of a point.
    """
    try:
        numbers: Mapping[str, Any] = json.loads(file.read_text())["final"]
        protocol = next(iter(numbers.values()))["protocol"]
        protocol = {**protocol, "step": protocol["recipe"]["step"]}
        values = {name: number["value"] for name, number in numbers.items()}
        return {**settings, **{name: protocol[name] for name in columns}, **values, "file": file.name}
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataError(f"{file} holds no numbers of a point ({error!r}); delete it and run the command again") from error


def write_table(table: pd.DataFrame, path: Path, draw: Callable[[pd.DataFrame, Path], None]) -> None:
    """Write a table as `path` with the ending .csv, and what `draw` makes of it with the ending .png."""
    with atomic_path(path.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(path.with_suffix(".png")) as temporary:
        draw(table, temporary)
