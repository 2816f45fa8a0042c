"""Tokens and latents made in pieces: by one process or two, at one go or killed and continued, the bytes are the same."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from prepared_images import FEATURES, prepare_images
from same_outputs import bytes_below
from small_stages import SEMANTIC_VAE

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import FeaturesParams
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.stages.features import extract_features
from sfd_core.stages.semantic_vae import make_semantic_vae

ROOT = Path(__file__).parents[3]
PROGRAM = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from sfd_core.experiment.params import EncodeParams, FeaturesParams
    from sfd_core.data.store import pieces
    from sfd_core.host.processes import Processes, spread
    from sfd_core.stages.encode import EncodeInputs, encode
    from sfd_core.stages.features import extract_features

    write = pieces.PiecedShard.writer
    def slowly(shard, piece):
        time.sleep(0.1)
        return write(shard, piece)
    pieces.ROWS, pieces.PiecedShard.writer = 6, slowly
    stage, out, values = sys.argv[1:]
    if __name__ == "__main__":
        spread()
        processes = Processes.join()
        if stage == "features":
            extract_features(FeaturesParams.model_validate_json(values), Path("prepare"), Path(out), processes)
        else:
            inputs = EncodeInputs(*map(Path, ("prepare", "features", "texture_vae", "semantic_vae")))
            encode(EncodeParams.model_validate_json(values), inputs, Path(out), processes)
        processes.leave()
""")


def start(stage: str, out: str, values: str, count: int = 1) -> subprocess.Popen[str]:
    Path("program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SFD_PROCESSES": str(count)}
    command = [sys.executable, "-m", "program", stage, out, values]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate()
    assert process.returncode == 0, error


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_images()


def values_of(stage: str) -> str:
    """Return the parameters of a stage; for `encode`, its inputs are made first."""
    features = FeaturesParams.model_validate(FEATURES | {"store": stage == "features"})
    if stage == "features":
        return features.model_dump_json()
    extract_features(features, Path("prepare"), Path("features"))
    make_semantic_vae(SEMANTIC_VAE, Path("prepare"), Path("features"), Path("semantic_vae"))
    Path("texture_vae").mkdir()
    TextureVAE(TextureVAEShape(channels=4, downsampling=8, width=8, depth=1)).save(Path("texture_vae"))
    return '{"posterior": "moments", "dtype": "float16", "batch_size": 4, "seed": 0}'


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "encode"])
def test_two_processes_write_the_bytes_of_one(stage: str) -> None:
    values = values_of(stage)
    for count in (1, 2):
        finish(start(stage, f"out-{count}", values, count))
    assert bytes_below("out-1") == bytes_below("out-2")
    shard = ShardReader(Path("out-1") / "train")
    assert len(shard) == 26
    assert len([name for name in bytes_below("out-1") if name.startswith("train/") and name.endswith("manifest.json")]) > 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "encode"])
def test_kills_at_random_moments_change_no_byte(stage: str) -> None:
    values, chance, kept = values_of(stage), random.Random(0), []
    finish(start(stage, "whole", values))
    for kill in range(4):
        process = start(stage, "killed", values)
        while len(pieces_there()) <= kill and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept.append(len(pieces_there()))
    finish(start(stage, "killed", values))
    assert bytes_below("killed") == bytes_below("whole")
    assert kept[0] > 0
    assert kept == sorted(kept)
    assert not list(Path(".sfd/resume", stage).iterdir())


def pieces_there() -> list[Path]:
    return list(Path(".sfd/resume").rglob("0*/manifest.json"))
