"""The tables of studies: offsets, guidance, classes, and the longer ones: learning-rate grid, seeds, longer training."""

import json
from dataclasses import dataclass

import pandas as pd

from sfd_core.reporting import text
from sfd_core.reporting.sources import Outputs
from sfd_core.reporting.study_figures import by_training
from sfd_core.reporting.tables import Cell, Row, Table, headings, number_columns

MOST_CLASSES = 12
"""Columns of the table of classes."""


@dataclass(frozen=True)
class RateRow:
    """Distances of one variant over the learning-rate grid; `heat` in [0, 1] is 1 at the best."""

    variant: str
    cells: list[tuple[str, float, bool]]


def learning_rate_table(table: pd.DataFrame, number: str) -> tuple[list[str], list[RateRow]]:
    """Lay out mean distance by variant and learning rate; the best of each variant is marked."""
    grid = table.groupby(["variant", "learning_rate"], sort=True)[number].mean().unstack()
    rows = []
    for variant in dict.fromkeys(table["variant"]):
        values = grid.loc[variant]
        low, high = values.min(), values.max()
        heats = (high - values) / ((high - low) or 1.0)
        cells = [
            ("-", 0.0, False) if pd.isna(value) else (text.number(value), float(heat), bool(value == low))
            for value, heat in zip(values, heats, strict=True)
        ]
        rows.append(RateRow(str(variant), cells))
    return [f"{rate:.3g}" for rate in grid.columns], rows


@dataclass(frozen=True)
class SeedRow:
    """Distances of one variant over seeds, with `places` in percent along a shared axis."""

    variant: str
    mean: str
    """With its standard error."""
    behind: str
    """Mean of the differences to the best variant, seed by seed, with its standard error; empty for the best."""
    values: list[str]
    places: list[float]


def seed_table(table: pd.DataFrame, number: str) -> list[SeedRow]:
    """Lay out the distance of every seed, its mean, and by how much it is behind the best mean, by variant."""
    low, high = table[number].min(), table[number].max()
    seeds = table.pivot_table(index="seed", columns="variant", values=number)
    best = str(seeds.mean().idxmin())
    rows = []
    for variant in dict.fromkeys(table["variant"]):
        values = seeds[variant].dropna()
        places = [float((value - low) / ((high - low) or 1.0)) * 96 + 2 for value in values]
        behind = "" if variant == best else with_error(seeds[variant] - seeds[best])
        rows.append(SeedRow(str(variant), with_error(values), behind, [text.number(value) for value in values], places))
    return rows


def with_error(values: pd.Series) -> str:
    """Write the mean of values, those that are missing left out, with its standard error, if there are several."""
    known = values.dropna().to_numpy(float)
    mean = text.number(float(known.mean()))
    return f"{mean} ± {text.number(float(known.std(ddof=1) / len(known) ** 0.5))}" if len(known) > 1 else mean


def samples_told(table: pd.DataFrame) -> str:
    """Say of how many samples the numbers of a table are; empty where it does not record that."""
    counts = sorted(set(table["samples"])) if "samples" in table else []
    return f"; {' or '.join(map(text.count, counts))} samples" if counts else ""


def seed_spread(outputs: Outputs, number: str) -> float:
    """Return the largest difference between seeds of a variant, of as many samples as those shown; 0 without a table."""
    table, samples = outputs.studies.get("seeds", pd.DataFrame()), {variant.samples for variant in outputs.variants.values()}
    if number not in table or "samples" not in table or {*table["samples"]} != samples:
        return 0.0
    by_variant = table.groupby("variant")[number]
    return float((by_variant.max() - by_variant.min()).max())


def offset_table(table: pd.DataFrame, number: str) -> Table:
    """Lay out the means over seeds of every number by variant and offset; the lowest of `number` is marked."""
    groups = by_training(table)
    means = {name: points.groupby("delta_t")[_numbers(table)].mean() for name, points in groups.items()}
    several, lowest = len(groups) > 1, min(mean[number].min() for mean in means.values())
    rows = [
        Row(f"{offset:g}", [*([Cell(name)] if several else []), *_cells(row, number, best=row[number] == lowest)])
        for name, mean in means.items()
        for offset, row in mean.iterrows()
    ]
    seeds = "/".join(dict.fromkeys(str(points["seed"].nunique()) for points in groups.values()))
    of = " of each variant" if several else ""
    note = (
        f"The same training{of} at every offset." if seeds == "1" else f"Means of {seeds} trainings{of}, each at every offset."
    )
    return _points_table("Sampled along every offset", note, table, ["Variant"] if several else [], rows, "Offset")


def order_table(table: pd.DataFrame, number: str) -> Table:
    """Lay out the points of one map of orders: corners, lowest first, or least-cost paths; the lowest of `number` is marked."""
    best = table[number].idxmin()
    if table["kind"].iloc[0] == "corners":
        ordered = table.sort_values(number)
        rows = [
            Row(f"{point['t_tex']:g}/{point['t_sem']:g}", _cells(point[_numbers(table)], number, best=index == best))
            for index, point in ordered.iterrows()
        ]
        note = "One training, sampled along paths with one corner, texture/semantics; 0.5/0.5 is the straight path."
        return _points_table("Sampled over corners", note, table, [], rows, "Corner")
    rows = [
        Row(
            f"{point['semantic_weight']:g}",
            [Cell(path_words(point["path"])), *_cells(point[_numbers(table)], number, best=index == best)],
        )
        for index, point in table.iterrows()
    ]
    note = "One training, sampled along the path that costs least for each weight of semantic errors."
    return _points_table("Sampled along least-cost paths", note, table, ["Path"], rows, "Semantic weight")


def path_words(path: str) -> str:
    """Write the corners of a path, given as JSON, as `texture/semantics` times."""
    return ", ".join(f"{t_tex:.2g}/{t_sem:.2g}" for t_tex, t_sem in json.loads(path)[1:-1]) or "straight"


def guided_table(table: pd.DataFrame, number: str) -> Table:
    """Lay out every study of guidance at its best scale by `number`, best first; a point without scale is none."""
    table = table[table["scale"].notna()]
    best = table.loc[table.groupby("study")[number].idxmin()].sort_values(number)
    rows = [
        Row(study, [Cell(f"{point['scale']:g}"), *_cells(point[_numbers(table)], number, best=rank == 0)])
        for rank, (study, (_, point)) in enumerate(zip(best["study"], best.iterrows(), strict=True))
    ]
    return _points_table(
        "Guided, each at its best scale", "Not comparable with unguided numbers.", table, ["Scale"], rows, "Study"
    )


def class_shares(outputs: Outputs) -> Table | None:
    """Lay out which share of each variant's samples is of which class; the classes that differ most where there are many."""
    found = {name: v.classes.set_index("class") for name, v in outputs.variants.items() if v.classes is not None}
    shares = pd.DataFrame({name: table["samples"] for name, table in found.items()})
    if shares.empty:
        return None
    first = next(iter(found.values()))
    real, told = first["real"], float((first["real"] * first["recognised"]).sum())
    differing = set(shares.sub(real, axis=0).abs().max(axis=1).nlargest(MOST_CLASSES).index)
    shown = [name for name in shares.index if name in differing]
    rows = [Row(name, [Cell(f"{shares.loc[label, name]:.1%}") for label in shown], name) for name in found]
    rows.append(Row("training images", [Cell(f"{real[label]:.1%}") for label in shown], reference=True))
    return Table(
        "Classes of the samples",
        f"By a linear classifier on the first evaluator's features. It is right for {told:.1%} of the mirror images of the "
        "training images that it was fitted with; of other images it may recognise fewer.",
        groups=[],
        columns=[str(label) for label in shown],
        rows=rows,
    )


def _points_table(caption: str, note: str, table: pd.DataFrame, columns: list[str], rows: list[Row], head: str) -> Table:
    groups, titles = headings(number_columns(table.columns))
    samples = f"{table['samples'].iloc[0]:,} samples a point."
    blank = [("", len(columns))] if columns else []
    return Table(caption, f"{note} {samples}", [*blank, *groups], [*columns, *titles], rows, head)


def _numbers(table: pd.DataFrame) -> list[str]:
    return [column.name for column in number_columns(table.columns)]


def _cells(values: pd.Series, number: str, best: bool) -> list[Cell]:
    return [Cell(text.number(float(value)), best=best and name == number) for name, value in values.items()]


def final_values(table: pd.DataFrame, number: str) -> str:
    """Name every variant's images seen and value at its last snapshot, and of how many samples these are."""
    last = table.sort_values("step").groupby("variant", sort=False).last()
    said = (f"{variant} {text.number(row[number])} after {row['images_seen']:,.0f} images" for variant, row in last.iterrows())
    return f"{', '.join(said)}; {table['samples'].iloc[0]:,} samples a snapshot"
