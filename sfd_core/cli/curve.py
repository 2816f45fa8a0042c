"""`sfd curve`: where a training should be by now, and the curves that say so."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sfd_core.cli.options import PARAMS, RUN, output
from sfd_core.host.paths import RESULTS

REFERENCE = Parameter(help="Compare with this curve (default: of the same variant, or of its published model).")
CURVES = RESULTS / "curves.csv"


def compare(
    run: Annotated[str, RUN] = ".",
    /,
    *,
    reference: Annotated[str | None, REFERENCE] = None,
    curves: Annotated[Path, Parameter(help="The recorded curves; ImageNet has the published ones.")] = CURVES,
) -> None:
    """Show whether trainings, in work or finished, are where they should be by now.

    Losses and distances stand beside a reference at as many images seen: all steps of one variant, else the newest of each.
    """
    from sfd_core.experiment.params import load_params
    from sfd_core.host.errors import DataError
    from sfd_core.host.paths import OUTPUTS
    from sfd_core.reporting import reference_curves
    from sfd_core.reporting.lines import aligned
    from sfd_core.reporting.sources import prepared_classes
    from sfd_core.workspace.places import find_place, recorded_params, recorded_variants

    place, variant = find_place(run)
    params = load_params(place / PARAMS)
    if variant:
        params.variant(variant)
    names = [variant] if variant else params.active
    in_work = {name for name in names if reference_curves.in_work(place, name)}
    finished = params if in_work.issuperset(names) else recorded_params(place, variant)
    made_with = recorded_variants(place) | dict.fromkeys(in_work, params)
    tables = {name: reference_curves.measured(place, made_with[name], name) for name in names}
    found = {name: table for name, table in tables.items() if not table.empty}
    if not found:
        raise DataError(f"{run} has no training in work or finished of {', '.join(names)}; `sfd status` lists what there is")
    known = reference_curves.read_reference(finished, prepared_classes(place / OUTPUTS), curves)
    for name, table in found.items():
        shown = table if variant else table.groupby(["number", "samples"], sort=False, dropna=False).tail(1)
        compared = reference_curves.compare(shown, known, made_with[name], name, reference)
        print("\n".join([name, *compared.notes]))
        print(f"{aligned([reference_curves.HEADINGS, *compared.rows])}\n" if compared.rows else "")


def record(run: Annotated[str, RUN] = ".", /, *, out: Annotated[Path, output("The table, one CSV file.")] = CURVES) -> None:
    """Write the losses and distances of all variants of a finished run, as a reference for `sfd curve compare`."""
    from sfd_core.host.errors import ConfigError
    from sfd_core.host.paths import atomic_path
    from sfd_core.reporting.reference_curves import record as recorded
    from sfd_core.workspace.places import find_place, recorded_params, recorded_variants

    place, variant = find_place(run)
    if variant:
        raise ConfigError(f"{run} is one variant, but a reference has all of a run; name the run, such as {place}")
    active, made = recorded_params(place).active, recorded_variants(place)
    with atomic_path(out) as temporary:
        recorded(place, {name: made[name] for name in active}).to_csv(temporary, index=False)
    print(out)
