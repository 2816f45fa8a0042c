"""`sfd compare`: two finished runs side by side."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

from sfd_core.cli.options import RUN, output
from sfd_core.host.paths import STATE

OUT = output("The page, one HTML file.")
SHOWN = 8


def compare(
    one: Annotated[str, RUN], other: Annotated[str, RUN], /, *, out: Annotated[Path, OUT] = STATE / "comparison.html"
) -> None:
    """Show two finished runs side by side, here and as an HTML page.

    That is, the parameters that differ, final numbers, curves, and samples of the same seeds.
    """
    from sfd_core.reporting.comparison import Comparison
    from sfd_core.reporting.lines import aligned, blocks
    from sfd_core.reporting.runs import open_run

    compared = Comparison(open_run(one), open_run(other))
    for heading, rows in compared.tables.items():
        print(f"{heading}\n\n{aligned(rows)}\n")
    if sys.stdout.isatty():
        samples = compared.samples(SHOWN)
        print(blocks(samples[:, : shutil.get_terminal_size().columns]))
    compared.write_page(out)
    print(f"page: {out.resolve()}")
