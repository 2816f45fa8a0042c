"""`sfd track` and `sfd dashboard`: what MLflow does not have yet, and the prepared comparison among its pages."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sfd_core.cli.options import PARAMS
from sfd_core.host.errors import ResourceError


def track(*, strict: Annotated[bool, Parameter(help="Fail if the store did not take everything.")] = False) -> None:
    """Send the curves, pictures and models that MLflow lacks."""
    from sfd_core.tracking.project import track_project
    from sfd_core.workspace.places import recorded_params, recorded_variants

    tracked = track_project(recorded_params(Path()), own=recorded_variants(Path()))
    if tracked.failed and strict:
        raise ResourceError(f"not in MLflow at {tracked.uri}: {', '.join(tracked.failed)}; run `sfd track` again later")


def dashboard(
    *, params: Annotated[Path, Parameter(help="The parameter file of the experiment whose distance leads.")] = PARAMS
) -> None:
    """Lay out the comparison of all runs on the experiment's images, of as many samples, in MLflow and print its link.

    One page has charts of convergence, losses and sweeps, DiT first. Where snapshots are measured as papers do, by the FID of
    50,000 unguided samples on ImageNet at 256x256 pixels, published curves are added as runs.
    """
    from sfd_core.experiment.params import load_params

    experiment = load_params(params)
    from sfd_core.host.addresses import in_a_line, public
    from sfd_core.host.paths import OUTPUTS
    from sfd_core.reporting.published_numbers import comparable, curves
    from sfd_core.reporting.sources import prepared_classes
    from sfd_core.tracking.address import store_uri, why_unusable
    from sfd_core.tracking.dashboard import refresh_dashboard
    from sfd_core.tracking.runs import compared_by
    from sfd_core.tracking.store import Store

    uri = store_uri()
    remedy = "start it (`make up`) or set MLFLOW_TRACKING_URI right"
    if reason := why_unusable(uri):
        raise ResourceError(f"MLflow at {public(uri)}: {reason}; {remedy}")
    from sfd_core.evaluation.metrics import number_name

    number = number_name("fd", experiment.reference.extractors[0])
    classes = prepared_classes(params.parent / OUTPUTS)
    published = curves() if comparable(experiment, classes, experiment.evaluate.snapshot_samples) else {}
    try:
        shown = refresh_dashboard(Store(uri), number, published, compared_by(experiment))
    except Exception as error:
        raise ResourceError(f"MLflow at {public(uri)}: {in_a_line(error, uri)}; {remedy}") from error
    print(f"{shown.charts} charts; baselines: {', '.join(shown.baselines) or 'no DiT yet'}\n{shown.link}")
