"""Artifacts on a real Prefect server."""

from base64 import b64decode
from pathlib import Path

import pytest
from laboratory import WITH_SERVERS, Laboratory

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), *WITH_SERVERS]


def test_progress_shows_finished_stages_and_the_last_line_of_each_training(laboratory: Laboratory) -> None:
    from prefect import flow  # noqa: PLC0415 - only tests with a server pay for it
    from prefect.artifacts import Artifact  # noqa: PLC0415

    from flows.artifacts import Progress  # noqa: PLC0415

    def shown() -> tuple[float, list[str]]:
        found = Artifact.get("progress-test")
        assert found is not None
        return float(found.data), found.description.split("\n\n")

    @flow
    def train() -> None:
        progress = Progress("progress-test", "train@sfd", 4)
        assert shown() == (0.0, ["train@sfd"])
        line = "sfd: step 200/400 loss 0.5 30 images/s, 60 s left"
        progress.read("sfd: resumes at step 100")
        progress.read(line)
        assert shown() == (12.5, ["train@sfd", line])
        last = line.replace("200/400", "400/400")
        progress.read(last)
        assert shown() == (12.5, ["train@sfd", line])  # refreshed a moment ago
        progress.finish(2)
        assert shown() == (50.0, ["train@sfd", last])
        for step, distance in ((200, 90.5), (400, 80.5)):
            progress.read(f"sfd: step {step}, 64 samples: fd_efficientnet_lite2 {distance}")
        progress.finish(3)
        assert shown() == (75.0, ["train@sfd", last, "sfd: step 400, 64 samples: fd_efficientnet_lite2 80.5"])

    assert laboratory.answers()
    train()


def test_the_newest_sample_grid_is_a_picture_that_refreshes(laboratory: Laboratory, tmp_path: Path) -> None:
    from prefect import flow  # noqa: PLC0415
    from prefect.artifacts import Artifact  # noqa: PLC0415

    from flows.artifacts import show_samples  # noqa: PLC0415

    @flow
    def evaluate(grid: str) -> None:
        (tmp_path / "sfd" / "grids" / grid).write_bytes(grid.encode())
        show_samples(tmp_path / "sfd", "samples-test")

    assert laboratory.answers()
    show_samples(tmp_path / "sfd", "samples-test")
    assert Artifact.get("samples-test") is None
    (tmp_path / "sfd" / "grids").mkdir(parents=True)
    for step in (400, 1200):
        grid = f"step-{step:07d}.png"
        evaluate(grid)
        found = Artifact.get("samples-test")
        assert found is not None
        assert b64decode(found.data.partition("base64,")[2]).decode() == grid
        assert found.description == f"sfd, step {step}"
