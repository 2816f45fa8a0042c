"""Serves all deployments from this clone: the command of a worker, on one machine or on many.

    python -m flows.deployments [--points]

One worker serves all deployments; further workers, in other clones and on other machines, run points only (`--points`): a
sweep is planned in the clone that started it, which keeps its refs.

    PREFECT_API_URL        the server; required
    MLFLOW_TRACKING_URI    where runs are recorded; default: .sfd/mlflow.db of the clone
    AWS_*                  credentials and endpoint of the DVC remote, if it is S3
    SFD_WORKER             name of the worker; two on one host need two names
    SFD_GPUS_PER_POINT     GPUs for one training
    SFD_GIT_REMOTE         git remote that gets the refs of finished points
"""

import argparse
import os

from sfd_core.host.addresses import PREFECT_EXAMPLE, require_s3, require_server
from sfd_core.host.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Serve all deployments until SIGTERM or SIGINT, which end every run at its next checkpoint."""
    parser = argparse.ArgumentParser(description="Run the deployments of the laboratory's Prefect server in this clone.")
    parser.add_argument("--points", action="store_true", help="run only points of sweeps that another worker plans")
    points_only = parser.parse_args().points
    if uri := os.environ.get("PREFECT_API_URL"):  # before Prefect reads it, which takes seconds and may end in a traceback
        require_server("PREFECT_API_URL", uri, PREFECT_EXAMPLE)
    require_s3()
    from flows.worker import serve

    serve(points_only)


if __name__ == "__main__":
    main()
