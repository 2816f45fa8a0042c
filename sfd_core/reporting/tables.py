"""The tables of the report, as rows of text ready for the template, and the finding in one sentence."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from sfd_core.evaluation.convergence import Reach
from sfd_core.experiment.numbers import KINDS, NumberName, extractor_title, frechet_distances, number_name
from sfd_core.reporting import text
from sfd_core.reporting.sources import Numbers, Outputs, VariantOutputs, count_added, values_of


@dataclass(frozen=True)
class Cell:
    """One cell: what it says and how it stands out."""

    text: str
    best: bool = False
    edge: bool = False
    """First column of a group."""
    factor: str = ""
    faster: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Row:
    """One row; `variant` gives it that variant's colour, a `reference` row is set apart."""

    title: str
    cells: list[Cell]
    variant: str | None = None
    reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table with grouped columns."""

    caption: str
    note: str
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    head: str = "Variant"
    """Title of the first column, which names the rows."""


UNBALANCED = 1.1
"""Classes are called so where the largest has more than this times the images of the smallest."""


def primary_number(outputs: Outputs, encoder: str) -> NumberName:
    """Return the distance that leads the report: of the first extractor that is not the semantic encoder, else the first."""
    numbers = outputs.number_names()
    names = frechet_distances(numbers) or number_columns(numbers)
    return next((name for name in names if name.extractor != encoder.removeprefix("tf_")), names[0])


def result_table(outputs: Outputs) -> Table:
    """Lay out variants against extractors, with floor, ceiling and oracle rows beneath."""
    columns = number_columns(outputs.number_names())
    groups, titles = headings(columns)
    first = {name.extractor: name for name in reversed(columns)}
    best = {column: _best(column, outputs) for column in columns}

    def cells(numbers: Numbers, variant: str | None) -> list[Cell]:
        return [
            Cell(
                text.number(numbers[column.name].value) if column.name in numbers else "-",
                best=variant is not None and variant == best[column],
                edge=first[column.extractor] == column,
            )
            for column in columns
        ]

    rows = [Row(name, cells(variant.numbers, name), name) for name, variant in outputs.variants.items()]
    rows += [
        Row(oracle_title(variant), cells(variant.oracle, None), reference=True)
        for variant in outputs.variants.values()
        if variant.oracle
    ]
    titles_of_real = outputs.reference_titles()
    rows += [Row(titles_of_real[kind], cells(numbers, None), reference=True) for kind, numbers in outputs.references.items()]
    samples = {variant.samples for variant in outputs.variants.values() if variant.samples is not None}
    images = {int(variant.cost["images_seen"]) for variant in outputs.variants.values()}
    return Table(
        caption="Distance to the training images at the last snapshot",
        note=f"{_listed(samples)} samples a variant after {_listed(images)} training images. "
        f"Distances and KID: lower is better; precision and recall: higher.{_imbalance(outputs)}",
        groups=groups,
        columns=titles,
        rows=rows,
    )


def number_columns(names: Iterable[str]) -> list[NumberName]:
    """Return the numbers among `names`: extractor by extractor as they come, each in the order of `KINDS`."""
    found = [name for name in map(number_name, names) if name is not None]
    extractors = list(dict.fromkeys(name.extractor for name in found))
    return sorted(found, key=lambda name: (extractors.index(name.extractor), list(KINDS).index(name.kind)))


def headings(columns: Sequence[NumberName]) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the extractors above so many `number_columns` each, and the titles of these, with which way is better."""
    counts = Counter(column.extractor for column in columns)
    titles = [column.title + (" ↑" if column.higher_is_better else " ↓") for column in columns]
    return [(extractor_title(name), count) for name, count in counts.items()], titles


def oracle_title(variant: VariantOutputs) -> str:
    """Name the oracle of a variant, with its number of samples where that is not the final numbers'."""
    return count_added(f"{variant.name} oracle", variant.oracle, variant.samples, "samples")


def speed_tables(reaches: Sequence[Reach], outputs: Outputs) -> dict[str, list[Table]]:
    """Lay out, for every distance, when each variant reached each target's final distance."""
    tables: dict[str, list[Table]] = {}
    for number, target in dict.fromkeys((reach.number, reach.target) for reach in reaches):
        chosen = [reach for reach in reaches if (reach.number, reach.target) == (number, target)]
        own = next((reach for reach in chosen if reach.variant == target), None)
        name = number_name(number)
        samples = _listed({int(variant.curve["samples"].iloc[-1]) for variant in outputs.variants.values()})
        table = Table(
            caption=f"Until {text.number(chosen[0].target_value)}, the last distance on the curve of {target}",
            note=f"{name.words if name else number}, {samples} samples a snapshot; factors are against {target} itself.",
            groups=[],
            columns=["Steps", "Images", "FLOPs", "Wall time"],
            rows=[Row(reach.variant, _reach_cells(reach, own), reach.variant) for reach in chosen],
        )
        tables.setdefault(number, []).append(table)
    return tables


def epoch_table(outputs: Outputs, number: NumberName) -> Table | None:
    """Lay out every variant's lowest distance within the epochs of each snapshot; None if the training images are unknown."""
    if outputs.training_images is None:
        return None
    curves = {name: variant.curve.sort_values("images_seen") for name, variant in outputs.variants.items()}
    lowest = {name: curve.set_index("images_seen")[number.name].cummin() for name, curve in curves.items()}
    table = pd.DataFrame(lowest).sort_index().ffill()
    rows = [
        Row(name, [Cell("-" if pd.isna(value) else text.number(float(value))) for value in table[name]], name)
        for name in lowest
    ]
    epochs = [f"{text.rounded(images / outputs.training_images)} epochs" for images in table.index]
    samples = _listed({int(curve["samples"].iloc[-1]) for curve in curves.values()})
    note = f"{number.words}, {samples} samples a snapshot; an epoch is {text.count(outputs.training_images)} training images."
    return Table("Lowest distance within epochs", note, [], epochs, rows)


def finding(outputs: Outputs, primary: NumberName, encoder: str, spread: float = 0.0) -> str:
    """Say in one sentence who leads at the last snapshot and by how much, as measured by `primary`.

    Variants within `spread` of the leader, the largest difference between seeds of one variant, are said to be level with it.
    """
    values = outputs.final_values(primary.name)
    ranked = sorted(values, key=lambda name: values[name])
    leader = ranked[0]
    cost = outputs.variants[leader].cost
    role = "the semantic encoder itself" if primary.extractor == encoder.removeprefix("tf_") else "not the semantic encoder"
    level = level_with_best(values, spread)
    others = [f"level with {name} ({text.number(values[name])})" for name in ranked[1:] if name in level]
    others += [
        f"{1 - values[leader] / values[name]:.1%} below {name} ({text.number(values[name])})"
        for name in ranked[1:]
        if name not in level
    ]
    distance = f"{primary.title} {text.number(values[leader])} as measured by {extractor_title(primary.extractor)} ({role})"
    stands = f"is closest to the real images: {distance}, {', '.join(others)}" if others else f"is at {distance}"
    bound = (
        f" Level is what differs by no more than {text.number(spread)}, as seeds of one variant do." if len(level) > 1 else ""
    )
    return f"After {text.count(cost['images_seen'])} training images {leader} {stands}.{bound}"


def level_with_best(values: Mapping[str, float], spread: float) -> set[str]:
    """Return the variants whose distance is within `spread` of the lowest, that one included."""
    lowest = min(values.values())
    return {name for name, value in values.items() if value - lowest <= spread}


def flat_numbers(outputs: Outputs) -> dict[str, dict[str, float]]:
    """Return the final table as plain numbers: variant (or floor, ceiling) -> number -> value."""
    table = {name: variant.numbers for name, variant in outputs.variants.items()}
    table |= {f"{name}_oracle": variant.oracle for name, variant in outputs.variants.items()}
    table |= outputs.references
    return {name: values_of(numbers) for name, numbers in table.items() if numbers}


def _reach_cells(reach: Reach, own: Reach | None) -> list[Cell]:
    if own is not None and own.at_most:
        own = None  # a share of what is not known
    costs = (
        (reach.steps, own and own.steps, text.count),
        (reach.images_seen, own and own.images_seen, text.count),
        (reach.flops, own and own.flops, text.flops),
        (reach.seconds, own and own.seconds, text.duration),
    )
    cells = []
    for value, reference, write in costs:
        if value is None:
            cells.append(Cell("not reached" if reach.steps is None else "-", absent=True))
            continue
        ratio = reference / value if reference and value and reach.variant != reach.target else None
        most, factor = "≤ " if reach.at_most else "", _factor(ratio, reach.at_most)
        cells.append(Cell(most + write(value), factor=factor, faster=ratio is not None and ratio > 1))
    return cells


def _factor(ratio: float | None, at_least: bool) -> str:
    """Say how many times less a cost is than another; `at_least`: or even less."""
    if ratio is None:
        return ""
    if ratio == 1:
        return "the same or less" if at_least else "the same"
    less, more = ("≥ ", "≤ ") if at_least else ("", "")
    return f"{less}{text.rounded(ratio)} times less" if ratio > 1 else f"{more}{text.rounded(1 / ratio)} times more"


def _imbalance(outputs: Outputs) -> str:
    """Say of how many training images the smallest and the largest class are, where that matters; else return nothing."""
    sizes = [variant.class_sizes for variant in outputs.variants.values() if variant.class_sizes]
    ranges = {(min(size), max(size)) for size in sizes if max(size) > UNBALANCED * min(size)}
    if not ranges:
        return ""
    counts = " or ".join(f"{text.count(least)} to {text.count(most)}" for least, most in sorted(ranges))
    return (
        f" Samples are class-balanced, but classes have {counts} training images: this can raise the distances of samples, not "
        "those of real images."
    )


def _best(column: NumberName, outputs: Outputs) -> str | None:
    values = outputs.final_values(column.name)
    if len(set(values.values())) < 2:
        return None
    return (max if column.higher_is_better else min)(values, key=lambda name: values[name])


def _listed(values: set[int]) -> str:
    return " or ".join(text.count(value) for value in sorted(values))
