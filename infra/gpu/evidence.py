"""What the variants of preset `cifar10` learn in minutes: the pipeline's own stages, each once those it reads have ended.

DVC is not there, so the stages of dvc.yaml are started directly, in a folder of their own, and without those that look
after code and inputs or report.
"""

import copy
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from infra.gpu.record import Record
from sfd_core.experiment.params import parse_params
from sfd_core.experiment.presets import load_preset
from sfd_core.experiment.values import set_value
from sfd_core.host.errors import ConfigError

ROOT = Path(__file__).parents[2]
ACTIVE = ["lightningdit", "sfd", "sync", "cascade", "any_order"]
SHORT = {
    "active": ACTIVE,
    "texture_vae.optimisation": {"steps": 1200, "warmup_steps": 100, "decay_steps": 600},
    "semantic_vae.optimisation": {"steps": 1000, "warmup_steps": 100, "decay_steps": 500},
    "train.optimisation": {"steps": 1200, "warmup_steps": 100, "decay_steps": 400, "checkpoint_every": 1200},
    "train.snapshots": 1,
    "evaluate.snapshot_samples": 5000,
    "evaluate.final_samples": 5000,
    "evaluate.oracle": False,
    "evaluate.kid_subset_size": 250,
    "studies.offsets.offsets": [-0.3, 0.0, 0.3, 0.7, 1.0],
    "engine.compile": True,
}
"""What makes the preset fit into minutes on one GPU."""
TINY_STEPS = {"steps": 4, "batch_size": 4, "warmup_steps": 1, "decay_steps": 1, "checkpoint_every": 4, "precision": "float32"}
TINY = {
    "active": ["sync", "any_order"],
    **{f"{group}.optimisation": TINY_STEPS for group in ("texture_vae", "semantic_vae", "train")},
    **{f"variants.{name}.size": "tiny" for name in ACTIVE},
    "texture_vae.width": 8,
    "semantic_vae.width": 32,
    "semantic_vae.channels": 2,
    "semantic_vae.pca_channels": 2,
    "features.batch_size": 8,
    "reference.batch_size": 8,
    "train.validation_images": 4,
    "evaluate.snapshot_samples": 8,
    "evaluate.final_samples": 8,
    "evaluate.kid_subset_size": 4,
    "evaluate.neighbours": 1,
    "evaluate.sampler.evaluations": 4,
    "evaluate.sampler.batch_size": 8,
    "evaluate.sampler.precision": "float32",
    "engine.compile": False,
    "studies.offsets.offsets": [0.0, 0.3],
    "report.grid_images": 4,
}
"""What makes it a trial of seconds on a CPU."""
KEPT = (
    "params.yaml", "outputs/*/metrics.json", "outputs/train/*/history.csv", "outputs/train/*/metrics.json",
    "outputs/evaluate/*/*.json", "outputs/evaluate/*/*.csv", "outputs/evaluate/*/grids/*", "outputs/studies/**/*.*",
)  # fmt: skip

NOT_RUN = {"code", "inputs", "report"}
Job = tuple[str, ...]
"""A stage, and the variant if it runs for each."""


def write_params(path: Path, changes: Mapping[str, Any]) -> list[str]:
    """Write preset `cifar10` with `changes` by dotted keys; return its active variants. Raises `ConfigError` for bad values."""
    values = copy.deepcopy(dict(load_preset("cifar10", ROOT / "presets").values))
    for key, value in changes.items():
        for name, part in value.items() if isinstance(value, dict) else [(None, value)]:
            set_value(values, key if name is None else f"{key}.{name}", part)
    params = parse_params(values, "the evidence's parameters")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return list(params.active)


def evidence(record: Record, tiny: bool, out: Path, images: Path, changes: Sequence[str] = ()) -> None:
    """Unpack `images`, run the stages and record their numbers; `changes` are KEY=VALUE of params.yaml."""
    if not images.is_file():
        raise ConfigError(f"{images} does not exist; make it with `python -m infra.gpu pack`")
    with tempfile.TemporaryDirectory(prefix="sfd-gpu-") as folder:
        work = Path(folder)
        with tarfile.open(images) as archive:
            archive.extractall(work / "data" / "cifar10", filter="data")
        _run_stages(record, tiny, work, changes)
        with tarfile.open(out / "evidence.tar.gz", "w:gz") as archive:
            for path in sorted({path for pattern in KEPT for path in work.glob(pattern) if path.is_file()}):
                archive.add(path, path.relative_to(work))


def _run_stages(record: Record, tiny: bool, work: Path, changes: Sequence[str]) -> None:
    given = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in changes)}
    active = write_params(work / "params.yaml", SHORT | (TINY if tiny else {}) | given)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    ended: dict[Job, Future[bool]] = {}
    with ThreadPoolExecutor(len(stages) * len(active)) as pool:  # all wait in it, so that none keeps another from its place
        for stage, written in stages.items():
            if stage in NOT_RUN:
                continue
            read = {path.split("/")[1] for path in written["deps"] if path.startswith("outputs/")} - NOT_RUN
            for variant in [(name,) for name in active] if "matrix" in written else [()]:
                before = [ended.get((other, *variant)) or ended[other,] for other in read]
                ended[stage, *variant] = pool.submit(_stage, record, work, (stage, *variant), before)


def _stage(record: Record, work: Path, job: Job, after: "Sequence[Future[bool]]") -> bool:
    """Run a stage once those `after` which it comes have succeeded, and record its numbers; return whether it succeeded."""
    if not all(before.result() for before in after):
        return False
    name, variant = " ".join(job), [word for part in job[1:] for word in ("--variant", part)]
    began = time.monotonic()
    log = work / f"{name.replace(' ', '-')}.log"
    given = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join([str(ROOT), *given])
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "4"}
    with log.open("w") as output:
        command = [sys.executable, "-m", f"sfd_core.stages.{job[0]}", *variant]
        process = subprocess.Popen(
            command, cwd=work, stdout=output, stderr=output, env=os.environ | threads | {"PYTHONPATH": paths}
        )
        try:
            code: int | None = process.wait(max(record.left, 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if code != 0:
        result["error"] = "stopped: the time was up" if code is None else f"exit code {code}: {log.read_text()[-1500:]}"
    folder = work / "outputs" / "/".join(job)
    if (folder / "metrics.json").is_file():
        result["metrics"] = json.loads((folder / "metrics.json").read_text())
    if job[0] == "studies":
        result["tables"] = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("*/*.csv"))}
    record.add(name, result)
    return code == 0
