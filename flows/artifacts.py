"""Artifacts of sweeps in Prefect's pages."""

import base64
import re
from pathlib import Path

from prefect.artifacts import create_image_artifact


def artifact_key(name: str, what: str) -> str:
    """Return the key of an artifact in the letters that Prefect allows."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{what}".lower())


def show_picture(picture: Path, key: str, description: str | None = None) -> None:
    """Publish a PNG file inside the artifact itself: no server has the file."""
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    create_image_artifact(url, key=key, description=description)
