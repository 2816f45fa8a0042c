"""Runs and curves in MLflow. The only package that imports mlflow, and only on use.

Curves are written to disk first and sent from there, so a server that is down or slow costs no points and no time.
"""

from sfd_core.tracking.address import store_uri
from sfd_core.tracking.curves import Curve
from sfd_core.tracking.live import follow
from sfd_core.tracking.project import Tracked, track_project
from sfd_core.tracking.runs import RunSpec, training_run, vae_run, variant_run
from sfd_core.tracking.store import Evidence, Store, Synced, sync_run

SHAPES_RESULTS = False

__all__ = [
    "Curve",
    "Evidence",
    "RunSpec",
    "Store",
    "Synced",
    "Tracked",
    "follow",
    "store_uri",
    "sync_run",
    "track_project",
    "training_run",
    "vae_run",
    "variant_run",
]
