"""Finished runs by name, for notebooks and `sfd compare`: their tables as pandas, their figures as Matplotlib.

from sfd_core.reporting.runs import open_run

run = open_run("seeds")
run.numbers, run.curves, run.training, run.parameters
run.convergence(), run.samples(), run.denoising("sfd")
"""

from collections.abc import ItemsView, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sfd_core.experiment.inputs import all_recorded_digests
from sfd_core.experiment.params import Params
from sfd_core.experiment.values import flat_values
from sfd_core.host.errors import DataError
from sfd_core.host.paths import OUTPUTS, RESULTS
from sfd_core.host.resume import Code
from sfd_core.reporting import figures
from sfd_core.reporting.html import results_table
from sfd_core.reporting.palette import VariantStyle, variant_styles
from sfd_core.reporting.sources import Numbers, Outputs, VariantOutputs, read_outputs, require_json, values_of
from sfd_core.workspace.places import find_place, recorded_params

EVALUATED = "numbers.json"


@dataclass(frozen=True)
class Run:
    """What was measured of the variants of a project, an experiment or a Git ref, or of one of them."""

    name: str
    params: Params
    """Of which those variants are active that are shown."""
    outputs: Outputs
    codes: Mapping[str, Code] = field(default_factory=dict)
    """The code of every stage but the report, as far as it is known."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Hashes of images, weights and other files by their key in `params.yaml`, as far as they are known."""

    @property
    def numbers(self) -> pd.DataFrame:
        """Final numbers and costs, one row a variant."""
        return results_table(self.outputs)

    @property
    def curves(self) -> pd.DataFrame:
        """Distances over steps, one row a variant and snapshot."""
        return pd.concat([variant.curve.assign(variant=name) for name, variant in self._variants], ignore_index=True)

    @property
    def training(self) -> pd.DataFrame:
        """Losses over steps, one row a variant and logging interval."""
        tables = [variant.history.assign(variant=name) for name, variant in self._variants if variant.history is not None]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @property
    def parameters(self) -> dict[str, Any]:
        """Values by dotted key, those of variants that are not shown left out; those of a single variant as `variant.KEY`."""
        values = self.params.model_dump(mode="json")
        shown = {name: values["variants"][name] for name in self.params.active}
        if len(shown) == 1:
            groups = {key: value for key, value in values.items() if key not in {"active", "variants", "studies", "report"}}
            return flat_values(groups | {"variant": shown.popitem()[1]})
        return flat_values(values | {"variants": shown})

    def convergence(self) -> Figure:
        """Draw the leading distance over training images."""
        return figures.convergence_figure(self.params, self.outputs, self._styles)

    def samples(self, count: int = 16) -> Figure:
        """Draw samples of the last snapshot, the same seeds below one another."""
        return figures.samples_figure(self.outputs, self._styles, count)

    def denoising(self, variant: str) -> Figure:
        """Draw a film strip of one denoising run of a variant with semantics."""
        return figures.denoising_figure(self.outputs.variants[variant])

    def beside(self, other: "Run") -> "Run":
        """Return the variants of two runs as those of one; those that both have are named by their runs, too."""
        shared = self.outputs.variants.keys() & other.outputs.variants.keys()
        variants = {
            shown: replace(variant, name=shown)
            for run in (self, other)
            for name, variant in run._variants
            for shown in [
                name if name not in shared else run.name if len(run.outputs.variants) == 1 else f"{name} ({run.name})"
            ]
        }
        named = {name: variant.params for name, variant in variants.items()}
        title = self.params.report.model_copy(update={"title": f"{self.name} and {other.name}"})
        params = self.params.model_copy(update={"active": list(named), "variants": named, "report": title})
        references, snapshot = (
            _beside({run.name: getattr(run.outputs, kind) for run in (self, other)})
            for kind in ("references", "snapshot_references")
        )
        outputs = replace(self.outputs, variants=variants, references=references, snapshot_references=snapshot)
        return Run(title.title, params, outputs)

    @property
    def _styles(self) -> dict[str, VariantStyle]:
        return variant_styles(list(self.outputs.variants))

    @property
    def _variants(self) -> ItemsView[str, VariantOutputs]:
        return self.outputs.variants.items()


def _beside(references: Mapping[str, Mapping[str, Numbers]]) -> dict[str, Numbers]:
    """Return the numbers of real images of runs, by run, as those of one; where they differ, they are named by their runs."""
    found: dict[str, Numbers] = {}
    for name in dict.fromkeys(name for numbers in references.values() for name in numbers):
        values = [values_of(numbers.get(name, {})) for numbers in references.values()]
        same = all(value == values[0] for value in values)
        found |= {name if same else f"{name} of {run}": numbers[name] for run, numbers in references.items() if name in numbers}
    return found


def open_run(name: str = ".", project: Path = Path()) -> Run:
    """Return the finished run that `name` means.

    It is a folder with a project, an experiment of `sfd experiment`, a variant of the project, or a Git ref such as
    `refs/sfd/offsets/sfd-delta_t-0p3-seed-0`, in this order; `NAME@VARIANT` is one variant of it. Raises `DataError` if nothing
    has the name, or nothing of it was evaluated.
    """
    place, variant = find_place(name, project)
    params = recorded_params(place, variant)
    evaluated = [one for one in params.active if (place / OUTPUTS / "evaluate" / one / EVALUATED).is_file()]
    active = [one for one in evaluated if variant in {None, one}]
    if not active:
        raise DataError(
            f"{name} has no finished run{f' of {variant}' if variant else ''}; evaluated are {', '.join(evaluated) or 'none'}"
        )
    params = params.model_copy(update={"active": active})
    records = (place / OUTPUTS / "code").glob("*.json")
    codes = {path.stem: Code(**require_json(path)) for path in records if path.stem != "report"}
    outputs = read_outputs(params, place / OUTPUTS, place / RESULTS)
    return Run("project" if name == "." else name, params, outputs, codes, all_recorded_digests(place))
