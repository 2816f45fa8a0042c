"""Semantic-First Diffusion: data, models, asynchronous schedule, training, sampling and evidence."""

import os

__version__ = "0.1.0"

_LOOPBACK = "localhost,127.0.0.1"
if any(os.environ.get(name) for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")):
    # servers on this machine (MLflow, Prefect, S3) are never asked through a proxy, by this process and those that it starts
    _others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{_others},{_LOOPBACK}" if _others else _LOOPBACK
