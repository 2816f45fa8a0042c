"""`sfd dashboard`: the prepared comparison among MLflow's pages."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfd_core.cli.results import PARAMS
from sfd_core.experiment.params import Params, load_params
from sfd_core.host.errors import ResourceError

if TYPE_CHECKING:
    from sfd_core.tracking.dashboard import PublishedCurve


def add_dashboard(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser(
        "dashboard", help="lay out the comparison in MLflow and print its link", description=_dashboard.__doc__
    )
    command.add_argument(
        "--params", type=Path, default=PARAMS, help="the experiment whose distance leads (default: %(default)s)"
    )
    command.set_defaults(handler=_dashboard)


def _dashboard(arguments: argparse.Namespace) -> None:
    """Lay out convergence, losses and sweeps of all runs as charts of one MLflow page, DiT first, and print its link.

    Where FID is measured as papers do, on ImageNet at 256x256 pixels, published curves are added as runs.
    """
    params = load_params(arguments.params)
    from sfd_core.evaluation.metrics import number_name
    from sfd_core.tracking import Store, store_uri
    from sfd_core.tracking.address import is_reachable, public
    from sfd_core.tracking.dashboard import refresh_dashboard

    uri = store_uri()
    if not is_reachable(uri):
        raise ResourceError(f"MLflow at {public(uri)} does not answer; start it (`make up`) or set MLFLOW_TRACKING_URI")
    number = number_name("fd", params.reference.extractors[0])
    shown = refresh_dashboard(Store(uri), number, _published(params, number))
    print(f"{shown.charts} charts; baselines: {', '.join(shown.baselines) or 'no DiT yet'}\n{shown.link}")


def _published(params: Params, number: str) -> "Sequence[PublishedCurve]":
    from sfd_core.reporting.published_numbers import NUMBER, RESOLUTION, curves
    from sfd_core.tracking.dashboard import PublishedCurve

    # against ADM's reference of ImageNet, as published numbers are
    if number != NUMBER or params.prepare.resolution != RESOLUTION or params.reference.adm_npz is None:
        return ()
    return [
        PublishedCurve(
            model,
            table["step"].tolist(),
            table["images_seen"].tolist(),
            table["fid"].tolist(),
            ", ".join(dict.fromkeys(table["source"])),
        )
        for model, table in curves().items()
    ]
