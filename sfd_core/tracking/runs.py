"""The name, parameters and origin of a run."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import LATENTS, Group, Optimisation, Params, fingerprint
from sfd_core.experiment.values import flat_values
from sfd_core.host.paths import OUTPUTS, file_digest, read_json
from sfd_core.host.settings import Settings

MEASURED_BY = ("samples", "weights", "input_size", "preprocessing", "reference_digest", "settings")
"""What of a number's protocol must be equal for two of them to compare."""
LOCK_FILE = Path("requirements.lock")
COMPARED_TAG = "sfd.compared"
"""`yes` or `no`: whether the comparison shows the run."""
FLOW_RUN_TAG = "sfd.flow_run"
"""Page of the Prefect flow run that computed it."""
VAEName = Literal["texture_vae", "semantic_vae"]

UPSTREAM: Mapping[VAEName, tuple[str, ...]] = {
    "texture_vae": ("prepare", "texture_vae"),
    "semantic_vae": ("prepare", "features", "semantic_vae"),
}
"""Parameter groups that determine a VAE."""


@dataclass(frozen=True)
class RunSpec:
    """One run: a variant or a VAE."""

    name: str
    params: Mapping[str, str]
    """Flat, such as `train.optimisation.steps`."""
    tags: Mapping[str, str]
    steps: int | None = None
    """Steps of the whole training, of a training in progress."""


def variant_run(params: Params, variant: str) -> RunSpec:
    """Describe the run of a denoiser; its own parameters are flattened under `variant`."""
    values = {name: getattr(params, name).model_dump(mode="json") for name in (*LATENTS, "train", "evaluate")}
    values["variant"] = params.variants[variant].model_dump(mode="json")
    return _spec(variant, "variant", values, f"dvc repro evaluate@{variant}", _recorded_code("train"))


def compared_by(params: Params) -> dict[str, str]:
    """Return what runs must share to be on one chart, as MLflow shows it: images, and how many samples are measured."""
    evaluate = params.evaluate.model_dump(mode="json", include={"snapshot_samples", "final_samples"})
    return _shown({"prepare": params.prepare.model_dump(mode="json"), "evaluate": evaluate})


def vae_run(params: Params, name: VAEName) -> RunSpec:
    """Describe the run of a VAE."""
    values = {group: getattr(params, group).model_dump(mode="json") for group in UPSTREAM[name]}
    return _spec(name, "vae", values, f"dvc repro {name}", _recorded_code(name))


def training_run(name: str, group: Group) -> RunSpec:
    """Describe the run of a training in progress; the rest is added when it is complete."""
    stage = name if name in UPSTREAM else "train"
    values, command = {"training": group.model_dump(mode="json")}, " ".join(["python", *sys.argv])
    return replace(_spec(name, "training", values, command, stage_code(stage).hash), steps=training_steps(group))


def training_steps(group: Group) -> int | None:
    """Return the steps that a group of parameters trains for; None for a network that is read from a file."""
    optimisation: Optimisation | None = getattr(group, "optimisation", None)
    return None if optimisation is None else optimisation.steps


def is_of(evaluate: Path, train: Path) -> bool:
    """Return whether the numbers in `evaluate` are of the weights in `train`, as far as the files of both say."""
    return holds_numbers_of(evaluate / "numbers.json", train)


def holds_numbers_of(file: Path, train: Path) -> bool:
    """Return whether the final numbers in a file are of the weights in `train`, as far as both say."""
    weights = read_json(train / "model.json").get("files")
    numbers = (read_json(file).get("final") or {}).values()
    protocols = [number.get("protocol", {}) for number in numbers if isinstance(number, dict)]
    measured = {protocol["recipe"]["weights"] for protocol in protocols if protocol.get("recipe")}
    return not weights or measured <= set(weights.values())


def _spec(name: str, kind: str, values: Mapping[str, Any], command: str, code: str) -> RunSpec:
    tags = {"sfd.kind": kind, COMPARED_TAG: "no" if kind == "vae" else "yes"}
    tags |= {"sfd.params": fingerprint(values), "sfd.command": command}
    tags |= {"sfd.code": code} if code else {}
    tags |= {"sfd.lock": file_digest(LOCK_FILE)[:16]} if LOCK_FILE.is_file() else {}
    tags |= {"sfd.commit": commit} if (commit := _commit()) else {}
    tags |= {FLOW_RUN_TAG: page} if (page := Settings.read().flow_run) else {}
    return RunSpec(name, _shown(values), tags)


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat_values(values).items()}


def _recorded_code(stage: str) -> str:
    """Return the hash of the code that made the outputs of a stage, empty if nothing tells it."""
    path = OUTPUTS / "code" / f"{stage}.json"
    return str(json.loads(path.read_text())["hash"]) if path.is_file() else ""


def _commit() -> str:
    """Return the current commit, marked if files differ from it; empty outside a repository."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"^# branch.oid ([0-9a-f]+)$", answer, re.MULTILINE)
    modified = any(not line.startswith("#") for line in answer.splitlines())
    return "" if found is None else found[1] + ("-modified" if modified else "")
