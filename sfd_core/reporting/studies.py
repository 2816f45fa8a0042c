"""The tables of longer studies: the learning-rate grid, the seeds and the longer training."""

from dataclasses import dataclass

import pandas as pd

from sfd_core.reporting import text


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
    spread: str
    values: list[str]
    places: list[float]


def seed_table(table: pd.DataFrame, number: str) -> list[SeedRow]:
    """Lay out the distance of every seed, its mean and its largest difference, by variant."""
    low, high = table[number].min(), table[number].max()
    rows = []
    for variant in dict.fromkeys(table["variant"]):
        values = table.loc[table["variant"] == variant].sort_values("seed")[number]
        places = [float((value - low) / ((high - low) or 1.0)) * 96 + 2 for value in values]
        rows.append(
            SeedRow(
                str(variant),
                text.number(values.mean()),
                text.number(values.max() - values.min()),
                [text.number(v) for v in values],
                places,
            )
        )
    return rows


def seed_spread(table: pd.DataFrame, number: str) -> float:
    """Return the largest difference between seeds of one variant; 0 without a table."""
    if number not in table:
        return 0.0
    by_variant = table.groupby("variant")[number]
    return float((by_variant.max() - by_variant.min()).max())


def final_values(table: pd.DataFrame, number: str) -> str:
    """Name every variant's images seen and value at its last snapshot."""
    last = table.sort_values("step").groupby("variant", sort=False).last()
    return ", ".join(
        f"{variant} {text.number(row[number])} after {row['images_seen']:,.0f} images" for variant, row in last.iterrows()
    )
