"""What lies in this clone: `sfd status` shows what is in work or finished, `sfd clean` deletes what can be made again."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

YES = Parameter(help="Delete it; without, only say what would be deleted.")
CHECKPOINTS = Parameter(help="Also unfinished trainings, and checkpoints that were kept.")


def status() -> None:
    """Show everything in work or finished here, in one table.

    Of the project, of its experiments and of its sweeps: stage, step, rate, time left, newest distance, and where it lies.
    """
    from sfd_core.reporting.lines import aligned
    from sfd_core.reporting.progress import COLUMNS, read_work

    rows = [work.row for work in read_work()]
    print(aligned([COLUMNS, *rows], right=False) if rows else "nothing is in work or finished here; `make repro` starts")


def clean(*, checkpoints: Annotated[bool, CHECKPOINTS] = False, yes: Annotated[bool, YES] = False) -> None:
    """Delete results, which DVC's cache restores, and other files that can be made again.

    What a running process needs is kept, and of experiments the values, the code and dvc.lock.
    """
    from sfd_core.reporting.lines import aligned
    from sfd_core.workspace.clearing import find_clearable

    items = find_clearable(Path(), checkpoints)
    going = [item for item in items if not item.why]
    sizes = {item.path: item.size for item in items}  # each walks its folder
    rows = [(f"{sizes[item.path] / 1e6:>11,.1f} MB", item.why or "can go", str(item.path)) for item in items]
    print(aligned(rows, right=False) + "\n" if rows else "", end="")
    gone = [item for item in going if item.delete()] if yes else going
    total = sum(sizes[item.path] for item in gone) / 1e6
    print(f"{total:,.1f} MB {'deleted' if yes else 'can go; `sfd clean --yes` deletes it'}" if going else "nothing to delete")
