"""The hash of the code that may shape a result: half-finished work of other code is never continued."""

import hashlib
import sys
from pathlib import Path

import torch

SHAPES_NO_RESULT = (
    "sfd_core.cli",
    "sfd_core.reporting",
    "sfd_core.storage",
    "sfd_core.tracking",
    "sfd_core.training.progress",
)


def code_fingerprint() -> str:
    """Hash torch's version and the source of all imported `sfd_core` modules that may shape a result, the script included."""
    digest = hashlib.sha256(torch.__version__.encode())
    sources = {}
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        real_name = spec.name if spec is not None else name
        ours = real_name.split(".")[0] == "sfd_core" and not real_name.startswith(SHAPES_NO_RESULT)
        if ours and getattr(module, "__file__", None):
            sources[real_name] = Path(str(module.__file__))
    for real_name in sorted(sources):
        digest.update(real_name.encode() + b"\0" + sources[real_name].read_bytes() + b"\0")
    return digest.hexdigest()[:16]
