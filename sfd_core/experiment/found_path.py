"""The path that stage `schedule` found, and the variants that are trained and sampled along it."""

import json
from pathlib import Path

from sfd_core.experiment.params import VariantParams
from sfd_core.host.errors import ConfigError

PATH_FILE = "path.json"


def with_found_path(variant: VariantParams, schedule: Path) -> VariantParams:
    """Return a variant with the path in the folder of stage `schedule`, if it has `found_path`, else as it is.

    Raises `ConfigError` if no path was found.
    """
    if not variant.found_path:
        return variant
    file = schedule / PATH_FILE
    corners = json.loads(file.read_text()) if file.is_file() else None
    if corners is None:
        raise ConfigError(f"found_path is true, but {file} holds no path; set `schedule`, and run `dvc repro schedule`")
    return variant.model_copy(update={"path": corners, "found_path": False})
