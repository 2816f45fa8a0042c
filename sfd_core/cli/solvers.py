"""`sfd solvers`: what each solver makes of a budget of network evaluations."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sfd_core.cli.evaluation import load_measurement, showing
from sfd_core.cli.results import PARAMS
from sfd_core.cli.sampling import add_sampler, artifact_folder, sampler_of
from sfd_core.experiment.params import load_params
from sfd_core.host.errors import ConfigError


def add_solvers(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser(
        "solvers",
        help="measure a trained denoiser over solvers and evaluations",
        description=_solvers.__doc__,
    )
    add_sampler(command, evaluations="+")
    command.add_argument(
        "--solvers",
        nargs="+",
        choices=["euler", "heun", "ab2", "dopri5"],
        default=["euler", "heun", "ab2"],
        help="solvers to compare (default: %(default)s)",
    )
    command.add_argument(
        "--target", type=int, default=100, metavar="N", help="evaluations of Euler that all are compared with (default: 100)"
    )
    command.add_argument("--samples", type=int, metavar="N", help="images a point (default: evaluate.final_samples)")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="solvers.csv, solvers.png and points/*")
    command.set_defaults(handler=_solvers)


def _solvers(arguments: argparse.Namespace) -> None:
    """Measure a trained denoiser with every solver at every budget of evaluations, from the same noise; known points are kept.

    Says how few evaluations of each solver come as near to the real images as many of Euler's.
    """
    if arguments.solver is not None:
        raise ConfigError("--solver is not for `sfd solvers`, which compares several; name them with --solvers")
    params = load_params(PARAMS)
    evaluations, arguments.evaluations = arguments.evaluations, None
    base = sampler_of(arguments, params)
    from sfd_core.studies.solvers import plan_solvers, run_solvers, smallest_budgets

    points = plan_solvers(base, arguments.solvers, evaluations or [base.evaluations], arguments.target)
    samples = params.evaluate.final_samples if arguments.samples is None else arguments.samples
    measurement = load_measurement(params, artifact_folder(arguments.artifact), arguments.snapshot, base.guide)
    table = run_solvers(
        measurement, points, samples, arguments.out, showing, lambda words: print(words, file=sys.stderr, flush=True)
    )
    if table is not None:
        shown = [name for name in table.columns if name.startswith(("fid", "fd_", "difference", "error"))]
        print(table[["solver", "evaluations", *shown]].to_string(index=False))
        print(f"\nAs near to the real images as euler with {arguments.target} evaluations, to half a percent:")
        for solver, budget in smallest_budgets(table).items():
            print(f"{solver:<8} {'at no budget that was measured' if budget is None else f'from {budget} evaluations on'}")
        print(f"\n{arguments.out / 'solvers.csv'}, {arguments.out / 'solvers.png'}")
    measurement.processes.leave()
