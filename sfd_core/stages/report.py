"""Stage `report`: one self-contained page, the final table and figures of everything that was trained and evaluated.

    python -m sfd_core.stages.report

writes `report/index.html`, `metrics.json`, `results.csv` and figures, and prints where the page is.
"""

import argparse
from pathlib import Path

from sfd_core.evaluation.convergence import read_curves, speed_up
from sfd_core.experiment.numbers import frechet_distances
from sfd_core.experiment.params import Params
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import OUTPUTS, REPORT, RESULTS
from sfd_core.reporting.html import write_report
from sfd_core.reporting.sources import read_outputs
from sfd_core.reporting.tables import primary_number
from sfd_core.stages.start import begin_stage


def report(params: Params, outputs: Path, results: Path, out: Path) -> Path:
    """Write the report to `out`, replacing it whole, and return the path of its page.

    Raises `DataError` if an active variant was not evaluated or a file is damaged; what is optional and absent is named in
    the page.
    """
    read = read_outputs(params, outputs, results)
    curves = read_curves(outputs, params.active)
    primary = primary_number(read, params.features.encoder).name
    # the leading distance comes first; KID and sFID have curves but no speed-up table
    names = [number.name for number in frechet_distances(curves.columns)]
    numbers = sorted(names, key=lambda name: name != primary)
    reaches = [reach for number in numbers for reach in speed_up(curves, number, _targets(params))]
    return write_report(params, read, reaches, out)


def _targets(params: Params) -> list[str]:
    """Return the variants whose final distance the others are timed to: the baseline and what has no semantic latent."""
    plain = [name for name in params.active if params.variants[name].semantic == "none"]
    baseline = params.report.baseline
    return [*([baseline] if baseline in params.active else []), *(name for name in plain if name != baseline)]


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Everything that was measured, as one page (report/index.html).").parse_args()
    print(report(begin_stage("report"), OUTPUTS, RESULTS, REPORT))


if __name__ == "__main__":
    main()
