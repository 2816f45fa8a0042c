"""`sfd guidance-curve`: which scale, interval and number of evaluations a trained denoiser wants."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sfd_core.cli.evaluation import load_measurement, showing
from sfd_core.cli.results import PARAMS
from sfd_core.cli.sampling import add_sampler, artifact_folder, sampler_of
from sfd_core.experiment.params import load_params
from sfd_core.host.errors import ConfigError


def add_guidance_curve(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser(
        "guidance-curve",
        help="measure a trained denoiser over guidance scales, intervals and evaluations",
        description=_guidance_curve.__doc__,
    )
    add_sampler(command, evaluations="+")
    command.add_argument("--scales", nargs="+", type=float, required=True, metavar="W", help="guidance scales; 1 is none")
    command.add_argument(
        "--intervals",
        nargs="+",
        type=parse_interval,
        default=[(0.0, 1.0)],
        metavar="FROM,TO",
        help="where guidance acts on each part's own time (default: 0,1)",
    )
    command.add_argument(
        "--parts", choices=["both", "texture", "semantic"], default="both", help="what is varied (default: %(default)s)"
    )
    command.add_argument("--samples", type=int, metavar="N", help="images a point (default: evaluate.final_samples)")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="curve.csv, curve.png and points/*.json")
    command.set_defaults(handler=_guidance_curve)


def _guidance_curve(arguments: argparse.Namespace) -> None:
    """Measure a trained denoiser at every combination of guidance scale, interval and evaluations; known points are kept."""
    params = load_params(PARAMS)
    evaluations, arguments.evaluations = arguments.evaluations, None
    base = sampler_of(arguments, params)
    from sfd_core.studies.guidance import plan_points, run_curve

    points = plan_points(base, arguments.scales, arguments.intervals, evaluations or [base.evaluations], arguments.parts)
    samples = params.evaluate.final_samples if arguments.samples is None else arguments.samples
    measurement = load_measurement(params, artifact_folder(arguments.artifact), arguments.snapshot, base.guide)
    table = run_curve(
        measurement, points, samples, arguments.out, showing, lambda words: print(words, file=sys.stderr, flush=True)
    )
    if table is not None:
        shown = [name for name in table.columns if name.startswith(("fid", "fd_", "sfid", "is"))]
        print(table[["scale", "interval_from", "interval_to", "evaluations", *shown]].to_string(index=False))
        print(f"\n{arguments.out / 'curve.csv'}, {arguments.out / 'curve.png'}")
    measurement.processes.leave()


def parse_interval(words: str) -> tuple[float, float]:
    """Read two times such as `0.1,1`. Raises `ConfigError` for anything else."""
    try:
        low, high = (float(part) for part in words.split(","))
    except ValueError as error:
        raise ConfigError(f"--intervals {words!r} is no interval; write two times with a comma, such as 0.1,1") from error
    return low, high
