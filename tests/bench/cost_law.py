"""What a training step costs against the size of the network, tokens, batch and data set, beside what theory says.

    python -m bench.cost_law step --size S --grid 8 --batch 8
    python -m bench.cost_law reading --rows 1000000

measure one point in a process of its own, whose peak of memory is then that point's, and print it as JSON.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import psutil
from bench.operations import SavedBytes, WorkCounter

from infra.bench import machine
from infra.bench.workload import Measured, Workload, train_with_engine
from sfd_core.data.store.shard_writer import write_manifest
from sfd_core.data.store.shards import FieldSpec, ShardFile, ShardReader
from sfd_core.experiment.sizes import SizeName
from sfd_core.models.denoisers.factory import parameter_count

ROOT = Path(__file__).parents[2]
TIMED_STEPS = 3
STATE_BYTES = 20
"""Bytes a parameter in float32: itself, its gradient, two moments of AdamW and the average."""
LATENT = FieldSpec("float16", (2, 48, 8, 8))
READ_BATCH, READ_BATCHES = 256, 8
ROWS_PER_FILE = 65_536


@dataclass(frozen=True)
class Point:
    """One configuration: what it cost, and what arithmetic, memory traffic and kept tensors make one expect."""

    x: dict[str, float]
    """Its place on every axis: parameters, tokens, batch; or rows."""
    seconds: float
    """Of a step, or of reading one batch."""
    images_per_second: float
    expected_seconds: float
    memory: int | None = None
    """Bytes at the peak of training, beyond the program before it began."""
    expected_memory: float | None = None


def measure_step(workload: Workload, folder: Path) -> Point:
    """Measure the training steps of one workload in this process."""
    model = workload.network()
    parameters = parameter_count(model)
    counter, saved, marks = WorkCounter(), SavedBytes(model), list[float]()
    peak, bandwidth = machine.matmul_peak(), machine.copy_bandwidth()
    before = _start_of_peak() - 4 * parameters
    counting = contextlib.ExitStack()

    def at_step_end(done: int) -> None:
        if done == 1:
            counting.enter_context(counter)
            counting.enter_context(saved)
        if done >= 2:
            counting.close()
            marks.append(time.perf_counter())
        if done == 2 + TIMED_STEPS:
            raise Measured

    train_with_engine(workload, folder, at_step_end, model)
    seconds = median(after - before for before, after in pairwise(marks))
    return Point(
        {"parameters": parameters, "tokens": workload.tokens, "batch": workload.batch},
        seconds,
        workload.batch / seconds,
        sum(work.seconds(peak, bandwidth) for work in counter.work.values()),
        peak_memory() - before,
        STATE_BYTES * parameters + saved.bytes,
    )


def measure_reading(rows: int, folder: Path) -> Point:
    """Measure random batches out of a shard of so many rows, whose files are sparse: all of it is zero and none of it on disk.

    Every row is read once before, so that the system has its pages and only finding and copying rows is measured.
    """
    _sparse_shard(folder, rows)
    latents = ShardReader(folder, verify=False)["z"]
    wanted = np.random.default_rng(0).integers(0, rows, (READ_BATCHES, READ_BATCH))
    for batch in wanted:
        latents.take(batch)
    seconds = []
    for batch in np.tile(wanted, (3, 1)):
        began = time.perf_counter()
        latents.take(batch)
        seconds.append(time.perf_counter() - began)
    second = median(seconds)
    moved = 2 * LATENT.row_bytes * READ_BATCH
    return Point({"rows": rows}, second, READ_BATCH / second, moved / machine.copy_bandwidth())


def peak_memory() -> int:
    """Return the bytes that this process had in memory at its peak (since `_start_of_peak`, on Linux)."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_own_process(*arguments: object) -> Point:
    """Run this module with `arguments` and return the point that it prints."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "bench.cost_law", *map(str, arguments)]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
    return Point(**json.loads(ended.stdout.splitlines()[-1]))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the points on logarithmic axes: y grows with x to this power."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one point and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    step = kinds.add_parser("step")
    step.add_argument("--size", required=True)
    step.add_argument("--grid", type=int, required=True)
    step.add_argument("--batch", type=int, required=True)
    kinds.add_parser("reading").add_argument("--rows", type=int, required=True)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(_measure(options, Path(folder)))))


def _measure(options: argparse.Namespace, folder: Path) -> Point:
    if options.kind == "reading":
        return measure_reading(options.rows, folder / "shard")
    images = max(64, options.batch)
    workload = Workload(cast("SizeName", options.size), options.batch, grid=options.grid, images=images)
    return measure_step(workload, folder)


def _start_of_peak() -> int:
    """Forget the peak so far where the system can, and return the bytes in memory now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def _sparse_shard(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    files = []
    for number, count in enumerate(_file_rows(rows)):
        name = f"z-{number:05d}.npy"
        np.lib.format.open_memmap(folder / name, "w+", np.dtype(LATENT.dtype), (count, *LATENT.shape))
        files.append(ShardFile(name, count, "0" * 64))
    write_manifest(folder, rows, {"z": (LATENT, files)}, {})


def _file_rows(rows: int) -> Iterator[int]:
    for start in range(0, rows, ROWS_PER_FILE):
        yield min(ROWS_PER_FILE, rows - start)


if __name__ == "__main__":
    main()
