"""Preparation that is killed and started again."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from image_folder import draw_images
from same_outputs import bytes_below

from sfd_core.experiment.params import PrepareParams

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "data")


PROGRAM = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from sfd_core.experiment.params import PrepareParams
    from sfd_core.data.store import pieces
    from sfd_core.stages import prepare as stage
    pieces.BYTES = 3 * 3 * 16 * 16
    original = stage.Plan.render
    def slowly(plan, row):
        time.sleep(0.02)
        return original(plan, row)
    stage.Plan.render = slowly
    print("ready", flush=True)
    stage.prepare(PrepareParams.model_validate_json(sys.argv[1]), Path("out"))
""")


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(folder: Path, tmp_path: Path) -> None:
    (folder / "ant" / "3.png").write_bytes(b"text")
    values = PrepareParams(
        source="folder", path=str(folder), held_out_path=None, labels="folder", resolution=16, copies=1, held_out=0.5,
        skip_unreadable=True, seed=0,
    )  # fmt: skip
    chance, kills = random.Random(0), 5
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        while True:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, values.model_dump_json()],
                cwd=tmp_path / name,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
            assert process.stdout is not None
            process.stdout.readline()
            if name == "killed" and kills:
                kills -= 1
                time.sleep(chance.uniform(0, 0.4))
                process.send_signal(signal.SIGKILL)
            process.stdout.close()
            if process.wait() == 0:
                break
    assert bytes_below(tmp_path / "killed" / "out") == bytes_below(tmp_path / "whole" / "out")
