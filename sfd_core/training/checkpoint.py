"""Resumable checkpoints, snapshots and the curve of one training, in a folder keyed by everything that shapes it.

The folder lies outside declared outputs: DVC would otherwise hand one experiment the half-trained weights of another.
"""

import fcntl
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfd_core import config, paths
from sfd_core.codehash import code_fingerprint
from sfd_core.errors import ResourceError

KEPT = 2
STATE_FILE, MANIFEST_FILE = "state.pt", "manifest.json"


@dataclass(frozen=True)
class Snapshot:
    """Weights kept from the middle of a training."""

    step: int
    images_seen: int
    seconds: float
    """Seconds of pure training up to `step`."""
    path: Path
    """A safetensors file."""


def resume_key(*groups: Any, inputs: Sequence[str] = ()) -> str:
    """Return the key of a training: equal parameters, digests of the inputs and code give equal keys."""
    return config.fingerprint(*groups, list(inputs), code_fingerprint())


class ResumeFolder:
    """What a killed training needs to continue: checkpoints, snapshots taken so far, and the curve."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history_path = path / "history.csv"

    @classmethod
    def of(cls, stage: str, key: str) -> "ResumeFolder":
        """Return the folder of a stage and a `resume_key`."""
        return cls(paths.resume_dir(stage, key))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raises `ResourceError` if another process trains in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResourceError(
                    f"another process is running this very training in {self.path}; wait for it or stop it"
                ) from error
            yield

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after `step` steps, whole or not at all, and keep the newest two."""
        target = self.path / f"step-{step:08d}"
        with paths.atomic_dir(target) as temporary:
            with (temporary / STATE_FILE).open("wb") as file:  # its errors are OSErrors, those of torch's own file are not
                torch.save(dict(state), file)
            manifest = {"step": step, "sha256": paths.file_digest(temporary / STATE_FILE)}
            (temporary / MANIFEST_FILE).write_text(json.dumps(manifest))
        for old in self._checkpoints()[:-KEPT]:
            shutil.rmtree(old)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest whole checkpoint as (step, state), or None; a damaged one is named, deleted and passed over."""
        for leftover in self.path.glob(".*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for folder in reversed(self._checkpoints()):
            try:
                return _read_checkpoint(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"warning: checkpoint {folder} is damaged ({error}); using the one before it", file=sys.stderr)
                shutil.rmtree(folder)
        return None

    def save_snapshot(self, step: int, images_seen: int, seconds: float, weights: Mapping[str, Tensor]) -> Snapshot:
        """Write weights as safetensors with step, images and seconds in the header."""
        target = self.path / "snapshots" / f"step-{step:08d}.safetensors"
        header = {"step": str(step), "images_seen": str(images_seen), "seconds": repr(seconds)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        with paths.atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata=header)
        return Snapshot(step, images_seen, seconds, target)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots taken so far, in the order of steps."""
        return tuple(_read_snapshot(file) for file in sorted((self.path / "snapshots").glob("step-*.safetensors")))

    def forget_beyond(self, step: int) -> None:
        """Delete snapshots later than `step`: the steps to them are about to be repeated."""
        for file in (self.path / "snapshots").glob("*"):
            match = re.fullmatch(r"step-(\d+)\.safetensors", file.name)
            if match is None or int(match[1]) > step:
                file.unlink()

    def delete(self) -> None:
        """Delete everything; call it once the stage's output is safely written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(folder for folder in self.path.glob("step-*") if folder.is_dir())


def _read_checkpoint(folder: Path) -> tuple[int, dict[str, Any]]:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    if paths.file_digest(folder / STATE_FILE) != manifest["sha256"]:
        raise ValueError("its content does not match its hash")
    return int(manifest["step"]), torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)


def _read_snapshot(file: Path) -> Snapshot:
    with safe_open(file, framework="pt") as handle:
        header = handle.metadata()
    return Snapshot(int(header["step"]), int(header["images_seen"]), float(header["seconds"]), file)
