"""Artifacts in Prefect's pages."""

import base64
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_image_artifact, create_progress_artifact, update_progress_artifact
from prefect.utilities.urls import url_for

from sfd_core.host.addresses import public

STEP = re.compile(r"(?P<training>[^:]+): step (?P<step>\d+)/(?P<steps>\d+) ")
"""Begins the line that a training writes every 15 seconds (`sfd_core.training.progress`)."""
DISTANCE = re.compile(r"[^:]+: step \d+, \d+ samples: ")
"""Begins the line that stage `evaluate` writes for a snapshot."""
REFRESH_SECONDS = 20.0


def artifact_key(name: str, what: str) -> str:
    """Return the key of an artifact in the letters that Prefect allows."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name}-{what}".lower())


def page_of(flow_run: str | None) -> str:
    """Return the address of a flow run's page; "" if it is not known (PREFECT_UI_URL)."""
    return public(url_for("flow-run", obj_id=flow_run) or "") if flow_run else ""


def show_picture(picture: Path, key: str, description: str | None = None) -> None:
    """Publish a PNG file inside the artifact itself: no server has the file."""
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    create_image_artifact(url, key=key, description=description)


def show_samples(evaluate: Path, key: str) -> None:
    """Publish the newest sample grid in the output of an evaluation; nothing if it has none."""
    if grids := sorted((evaluate / "grids").glob("*.png")):
        show_picture(grids[-1], key, f"{evaluate.name}, step {int(grids[-1].stem.removeprefix('step-'))}")


class Progress:
    """A pipeline's progress as an artifact that refreshes: finished stages, and what trainings and evaluations said last."""

    def __init__(self, key: str, words: str, stages: int) -> None:
        self._words, self._stages, self._finished, self._sent = words, stages, 0, 0.0
        self._shares: dict[str, float] = {}
        self._lines: dict[str, str] = {}
        self._artifact = cast("UUID", create_progress_artifact(0.0, key=key, description=words))

    def read(self, line: str) -> None:
        """Take a line of a stage's output; lines about anything but a training's steps and distances change nothing."""
        if found := STEP.match(line):
            self._shares[found["training"]] = int(found["step"]) / int(found["steps"])
            self._lines[found["training"]] = line
        elif DISTANCE.match(line):
            self._lines[f"distance of {line.partition(':')[0]}"] = line
        else:
            return
        if time.monotonic() - self._sent > REFRESH_SECONDS:
            self._send()

    def finish(self, stages: int) -> None:
        """Show how many stages are finished; trainings at their last step are among them."""
        self._finished = stages
        self._shares = {training: share for training, share in self._shares.items() if share < 1}
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        share = min(1.0, (self._finished + sum(self._shares.values())) / self._stages)
        words = "\n\n".join([self._words, *self._lines.values()])
        with suppress(httpx.HTTPError):  # a server that is down holds up no training
            update_progress_artifact(self._artifact, 100.0 * share, words)
