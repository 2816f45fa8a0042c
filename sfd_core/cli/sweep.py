"""`sfd sweep-figure`: the figure of a sweep's table."""

import argparse
from pathlib import Path
from typing import Any

from sfd_core.host.errors import DataError
from sfd_core.host.paths import atomic_path


def add_sweep_figure(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser("sweep-figure", help="draw the table of a sweep", description=_sweep_figure.__doc__)
    command.add_argument("table", type=Path, metavar="TABLE", help="table.csv of a sweep")
    command.add_argument(
        "--over", nargs="*", default=[], metavar="KEY", help="columns that were swept, the axis first (default: the seed)"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file")
    command.set_defaults(handler=_sweep_figure)


def _sweep_figure(arguments: argparse.Namespace) -> None:
    """Draw the leading distance of a sweep over what was varied, with error bars over seeds."""
    import pandas as pd

    from sfd_core.reporting.sweep import write_sweep_figure

    try:
        table = pd.read_csv(arguments.table)
        missing = [key for key in ["variant", "seed", *arguments.over] if key not in table.columns]
    except (OSError, ValueError) as error:
        raise DataError(f"{arguments.table} is no table of a sweep ({error})") from error
    if missing:
        raise DataError(f"{arguments.table} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    with atomic_path(arguments.out) as temporary:
        write_sweep_figure(table, arguments.over, temporary)
    print(arguments.out)
