"""Tables and pictures as lines of text, for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfd_core.reporting.pictures import Pixels
    from sfd_core.reporting.tables import Table


def table_rows(table: "Table") -> list[list[str]]:
    """Return a table of the report as rows of cells, its headings first."""
    names = [name for name, columns in table.groups for _ in range(columns)]
    return [
        ["evaluator", *(name if name != before else "" for before, name in zip(["", *names], names, strict=False))],
        ["", *table.columns],
        *([row.title, *(cell.text for cell in row.cells)] for row in table.rows),
    ]


def aligned(rows: Sequence[Sequence[str]], right: bool = True) -> str:
    """Return rows of cells as lines, the first column aligned left, the others right or left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = ["<", *[">" if right else "<"] * len(widths)]
    cells = ([f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=False)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def blocks(picture: "Pixels") -> str:
    """Return a picture (H, W, 3) as coloured half blocks, one character for two pixels above one another."""
    pairs = (zip(upper, lower, strict=True) for upper, lower in zip(picture[::2], picture[1::2], strict=False))
    mark = "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format
    return "\n".join("".join(mark(*above, *below) for above, below in row) + "\x1b[0m" for row in pairs)
