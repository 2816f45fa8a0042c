"""Measure ten images of a small denoiser with random weights; run by torchrun, in as many processes as it starts.

    torchrun --nproc-per-node 2 measured_together.py FOLDER

reads what `lay_out` wrote to FOLDER, and writes numbers.json and the names of this process's batches there.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from denoisers import artifact, texture_vae, variant
from evaluators import PARAMS, SUBSET, small_evaluator

from sfd_core.evaluation.evaluator import Evaluator
from sfd_core.evaluation.measurement import Order
from sfd_core.evaluation.rerun import Measurement
from sfd_core.host.paths import write_json
from sfd_core.host.processes import ALONE, Processes
from sfd_core.sampling.pipeline import DEFAULT_SAMPLER, Pipeline

SAMPLER = DEFAULT_SAMPLER.model_copy(update={"evaluations": 4, "batch_size": 3})
LABELS = [index % 3 for index in range(10)]


def points_drawn(out: Path, study: Callable[[], pd.DataFrame | None]) -> tuple[pd.DataFrame, int]:
    """Run a study that writes to `out`; return its table and how many points it drew."""

    def written() -> set[tuple[str, int]]:
        return {(file.name, file.stat().st_mtime_ns) for file in (out / "points").glob("*.json")}

    before = written()
    table = study()
    assert table is not None
    return table, len(written() - before)


def lay_out(folder: Path) -> None:
    """Write a VAE, a denoiser and a reference."""
    artifact(folder / "train", texture_vae(folder / "vae"), variant())
    small_evaluator(folder)


def measurement(folder: Path, processes: Processes = ALONE) -> Measurement:
    """Load them."""
    pipeline = Pipeline.from_artifact(folder / "train", folder / "vae")
    return Measurement(folder / "train", pipeline, Evaluator.load(folder / "reference", PARAMS, SUBSET), processes)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trained denoiser, its VAE and a reference."""
    path = tmp_path_factory.mktemp("studied")
    lay_out(path)
    return path


@pytest.fixture
def measuring(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """What measures it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return measurement(studied)


def main() -> None:
    folder, processes = Path(sys.argv[1]), Processes.join()
    measuring = measurement(folder, processes)
    drawn: list[str] = []
    whole = measuring.pipeline.draw

    def draw(first, labels, *arguments):
        drawn.append(str(first))
        return whole(first, labels, *arguments)

    measuring.pipeline.draw = draw  # type: ignore[method-assign]
    result = measuring.run(Order(LABELS, SAMPLER), "samples")
    (folder / f"drawn-{processes.rank}.txt").write_text(" ".join(drawn))
    if result is not None:
        write_json(folder / "numbers.json", {"final": result[0]})
        result[1].forget()
    processes.leave()


if __name__ == "__main__":
    main()
