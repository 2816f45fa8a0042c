"""Two finished runs side by side: what differs in them, their numbers, curves and samples, also as one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from sfd_core.experiment.numbers import NumberName
from sfd_core.host.paths import atomic_path
from sfd_core.host.resume import MOST_NAMED
from sfd_core.reporting import text
from sfd_core.reporting.charts import save_figure
from sfd_core.reporting.html import PAGE
from sfd_core.reporting.lines import table_rows
from sfd_core.reporting.pictures import Pixels, file_uri, sheet, thumbnails
from sfd_core.reporting.runs import Run
from sfd_core.reporting.tables import primary_number, result_table
from sfd_core.tracking.runs import MEASURED_BY

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style|safe }}
main { padding-block: 2rem } h2 { margin: 2rem 0 1rem } div { overflow-x: auto } img { width: 100% }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: left; overflow-wrap: anywhere }
</style>
<main class="wrap">
<h1>{{ title }}</h1>
{% for heading, rows in tables.items() %}
{% set title, _, note = heading.partition(". ") %}
<h2>{{ title }}</h2>
<p>{{ note }}</p>
<div><table>
{% for row in rows %}{% set head = loop.first %}
<tr>{% for cell in row %}<{{ 'th' if head or loop.first else 'td' }}>{{ cell }}{% endfor %}

{% endfor %}
</table></div>
{% endfor %}
{% for heading, picture in pictures.items() %}
<h2>{{ heading }}</h2>
<img alt="{{ heading }}" src="{{ picture }}">
{% endfor %}
</main>
</html>
"""
Rows = list[list[str]]
MOST_SHOWN = 60
"""Characters of such a value."""
SHORT = 8
"""Characters of a hash of files."""


@dataclass(frozen=True)
class Comparison:
    """Two finished runs."""

    one: Run
    other: Run

    @cached_property
    def both(self) -> Run:
        """The variants of both."""
        return self.one.beside(self.other)

    @property
    def differences(self) -> pd.DataFrame:
        """What shaped the results and is not equal: a row a key, a column a run.

        Left out are variants that one lacks, and code and files of which one has no record.
        """
        before, after = self.one.parameters, self.other.parameters
        keys = [key for key in {**before, **after} if not key.startswith("variants.") or key in before.keys() & after.keys()]
        rows = {key: (before.get(key, ""), after.get(key, "")) for key in keys if before.get(key) != after.get(key)}
        for key in sorted(self.one.inputs.keys() & self.other.inputs.keys()):
            if self.one.inputs[key] != self.other.inputs[key]:
                rows[f"{key}: other content"] = (self.one.inputs[key][:SHORT], self.other.inputs[key][:SHORT])
        stages: dict[str, list[str]] = {}
        for stage in sorted(self.one.codes.keys() & self.other.codes.keys()):
            if changed := self.one.codes[stage].differences(self.other.codes[stage]):
                stages.setdefault(", ".join(changed[:MOST_NAMED]), []).append(stage)
        rows |= {f"code of {', '.join(names)}": ("", changed) for changed, names in stages.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=[self.one.name, self.other.name], dtype=object)

    @property
    def tables(self) -> dict[str, Rows]:
        """Heading -> rows of cells, the first with titles: what differs, the numbers, and the curves."""
        numbers = result_table(self.both.outputs)
        return {
            "What differs": [
                ["", self.one.name, self.other.name],
                *self.differences.reset_index().astype(str).to_numpy().tolist(),
            ],
            f"{numbers.caption}. {numbers.note}{self._caution()}": table_rows(numbers),
            **self._curves(),
        }

    def samples(self, count: int) -> Pixels:
        """Return samples of the last snapshots, a row a variant; images may be of several sizes, right of fewer it is white."""
        grids = [variant.grids for variant in self.both.outputs.variants.values() if variant.grids is not None]
        rows = [sheet(thumbnails(grid.images[-1:, :count])) for grid in grids]
        width = max(row.shape[1] for row in rows)
        return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])

    def write_page(self, path: Path) -> None:
        """Write everything as one HTML file that asks for nothing else."""
        figures = {} if self._curve_caution else {"Convergence": self.both.convergence()}
        one, other = (run.params.evaluate.sampler.seed for run in (self.one, self.other))
        seeds = "the same seeds" if one == other else f"of seeds {one} and {other}"
        figures[f"Samples of the last snapshot, {seeds}"] = self.both.samples()
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        style = (PAGE / "style.css").read_text(encoding="utf-8")
        pictures = {}
        with atomic_path(path) as temporary:
            for heading, figure in figures.items():
                save_figure(figure, temporary)
                pictures[heading] = file_uri(temporary)
            page = environment.from_string(TEMPLATE).render(
                title=self.both.name, style=style, tables=self.tables, pictures=pictures
            )
            temporary.write_text(page, encoding="utf-8")

    @property
    def _leading(self) -> NumberName:
        """The number whose curves are shown."""
        return primary_number(self.both.outputs, self.both.params.features.encoder)

    def _caution(self) -> str:
        """Say why the numbers of the two do not compare; empty where they do."""
        difference = self._difference(MEASURED_BY)
        return f" These numbers do not compare: {difference}." if difference else ""

    def _difference(self, keys: Sequence[str], number: str | None = None) -> str:
        """Say what of `keys` differs between the protocols of a number, by default of any; empty if nothing does."""
        pairs = product(self.one.outputs.variants.values(), self.other.outputs.variants.values())
        for one, other in ((one.numbers, other.numbers) for one, other in pairs):
            for name in (name for name in one if name in other and number in {None, name}):
                for key in keys:
                    values = [str(numbers[name].protocol.get(key)) for numbers in (one, other)]
                    if values[0] != values[1]:
                        here, there = (value[:MOST_SHOWN] for value in values)
                        return f"{name} was measured with {key} {here} in {self.one.name} and {there} in {self.other.name}"
        return ""

    @property
    def _curve_caution(self) -> str:
        """Say why the curves do not compare, whose points have sample counts of their own; empty where they do."""
        counts = {
            name: " and ".join(f"{count:,}" for count in variant.curve["samples"].unique())
            for name, variant in self.both.outputs.variants.items()
        }
        difference = self._difference([key for key in MEASURED_BY if key != "samples"], self._leading.name)
        if len(set(counts.values())) > 1:
            difference = f"samples are {', '.join(f'{of} in {name}' for name, of in counts.items())}"
        return f"These curves do not compare: {difference}." if difference else ""

    def _curves(self) -> dict[str, Rows]:
        number = self._leading
        curves = {name: variant.curve for name, variant in self.both.outputs.variants.items() if number.name in variant.curve}
        steps = sorted({int(step) for curve in curves.values() for step in curve["step"]})
        values = {name: dict(zip(curve["step"], curve[number.name], strict=True)) for name, curve in curves.items()}
        rows = [[text.count(step), *(text.number(at[step]) if step in at else "" for at in values.values())] for step in steps]
        return {". ".join(filter(None, [f"{number.words} by step", self._curve_caution])): [["step", *values], *rows]}
