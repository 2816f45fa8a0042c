"""Resumable checkpoints, snapshots and the curve of one training, in a folder keyed by its parameters and inputs.

The folder lies outside declared outputs: DVC would otherwise hand one experiment the half-trained weights of another.

A checkpoint is a folder `step-N` of safetensors files, one for each process that holds a part of the state, each beside a JSON
file with its hash, and of the curve so far. Tensors that are cut in shards (FSDP) are stored piece by piece, each with its
place in the whole, so that any number of processes may read them. The folder has a temporary name until the last file is there.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sfd_core.experiment.params import fingerprint
from sfd_core.host import paths, resume
from sfd_core.host.errors import DataError
from sfd_core.host.resume import UNKNOWN_CODE, Code

KEPT = 2
FILE_NAME = re.compile(r"state-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """Weights kept from the middle of a training."""

    step: int
    path: Path
    """A safetensors file."""


@dataclass(frozen=True)
class Piece:
    """A process's rows of a tensor, from row `first` of the whole on."""

    rows: Tensor
    first: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Piece":
        """Return this process's rows of a tensor that may be cut along its first dimension."""
        if not isinstance(tensor, DTensor):
            return cls(tensor.detach(), 0)
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return cls(tensor.to_local().detach(), offset[0])

    def on_cpu(self) -> "Piece":
        """Return a copy that later steps leave alone."""
        return Piece(self.rows.to("cpu", copy=True, memory_format=torch.contiguous_format), self.first)


@dataclass(frozen=True)
class State:
    """What a resumed training needs: tensors by name and plain values."""

    tensors: Mapping[str, Piece]
    position: Mapping[str, Any]

    @classmethod
    def copied(cls, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> "State":
        """Return a state on the CPU that later steps leave alone."""
        return cls({name: Piece.of(tensor).on_cpu() for name, tensor in tensors.items()}, dict(position))


def resume_key(*groups: Any, inputs: Sequence[str] = ()) -> str:
    """Return the key of a training: equal parameters and digests of the inputs give equal keys."""
    return fingerprint(*groups, list(inputs))


class ResumeFolder:
    """What a killed training needs to continue: checkpoints, snapshots taken so far, and the curve.

    `code` is the code that is about to train.
    """

    def __init__(self, path: Path, code: Code = UNKNOWN_CODE) -> None:
        self.path, self.code = path, code
        self.history_path = path / "history.csv"
        self.incidents_path = path / "incidents.csv"

    @property
    def key(self) -> str:
        """The `resume_key` of the training."""
        return self.path.name

    @classmethod
    def of(cls, stage: str, key: str, code: Code) -> "ResumeFolder":
        """Return the folder of a stage and a `resume_key`."""
        return cls(resume.resume_dir(stage, key), code)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raises `BusyError` if another process trains in it."""
        shutil.rmtree(self._doomed, ignore_errors=True)
        resume.take_back(self.path)
        with resume.held(self.path, "running this training"):
            yield

    def drop_damaged(self) -> None:
        """Delete the damaged checkpoints that are newer than the newest whole one."""
        with self.locked():
            self.newest()

    def settle(self) -> None:
        """Decide whether this code goes on with the checkpoints here; see `host.resume.settle`."""
        with self.locked():
            newest = self.newest()
            seconds = 0.0 if newest is None else float(self._position(newest)["seconds"])
            resume.settle(self.path, self.code, seconds)

    @property
    def training(self) -> str:
        """What identifies the settled training: its key and the code that began it."""
        return f"{self.key}-{resume.codes_of(self.path)[0].hash[:8]}"

    def save(self, step: int, state: State, writer: tuple[int, int] = (0, 1)) -> None:
        """Write file number `writer[0]` of the `writer[1]` files of the state after `step` steps.

        The checkpoint is there as soon as the last of its files is, whichever process wrote it, and absent before.
        """
        number, count = writer
        target, temporary = self._folder(step), self.path / f".step-{step:08d}.partial"
        temporary.mkdir(parents=True, exist_ok=True)
        if number == 0 and target.exists():  # not later: then it may be the new one, which another process made
            shutil.rmtree(target)
        file = temporary / f"state-{number:05d}-of-{count:05d}.safetensors"
        tensors = {name: piece.rows for name, piece in state.tensors.items()}
        first = {name: piece.first for name, piece in state.tensors.items()}
        with paths.atomic_path(file) as path:
            save_file(tensors, path, metadata={"first": json.dumps(first), "position": json.dumps(dict(state.position))})
        if number == 0:
            for beside in (self.history_path, self.incidents_path, self.path / resume.RECORD):
                if beside.exists():
                    shutil.copyfile(beside, temporary / beside.name)
        digest = paths.file_digest(file)
        try:
            paths.write_json(file.with_suffix(".json"), {"step": step, "sha256": digest})
            if len(list(temporary.glob("state-*.json"))) == count:
                temporary.replace(target)
                paths.fsync(self.path)
        except FileNotFoundError:  # another process saw all files there, this one's too, and has made the checkpoint of them
            if not target.exists():
                raise

    def prune(self, keep_last: int = KEPT, keeps: Callable[[int], bool] = lambda _: False) -> None:
        """Delete all but the newest checkpoints and those whose step `keeps` wants."""
        for old in self._checkpoints()[:-keep_last]:
            if not keeps(_step(old)):
                shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> int | None:
        """Return the step of the newest whole checkpoint, or None; a damaged one is named, deleted and passed over."""
        for leftover in list(self.path.rglob(".*.partial")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        for folder in reversed(self._checkpoints()):
            try:
                _require_whole(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"warning: checkpoint {folder} is damaged ({error}); using the one before it", file=sys.stderr)
                shutil.rmtree(folder)
            else:
                return _step(folder)
        return None

    def require_all(self, step: int, snapshot_steps: Collection[int]) -> None:
        """Bring back a lost curve from the checkpoint of `step`; curve, snapshots and checkpoint are one thing.

        Raises `DataError` with what else of it is gone.
        """
        for lost in (self.history_path, self.incidents_path):
            if not lost.exists() and (self._folder(step) / lost.name).exists():
                shutil.copyfile(self._folder(step) / lost.name, lost)
        taken = {snapshot.step for snapshot in self.snapshots()}
        gone = [f"the snapshot of step {wanted}" for wanted in snapshot_steps if wanted <= step and wanted not in taken]
        if self._position(step)["row_step"] > 0 and not self.history_path.exists():
            gone.append(self.history_path.name)
        if gone:
            raise DataError(
                f"{', '.join(gone)} of the training in {self.path} is gone, so its checkpoint of step {step} cannot be "
                f"continued; put it back, or train anew: rm -r {self.path}"
            )

    def read(self, step: int, into: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fill tensors, of which a process may have a shard only, with those of a checkpoint, and return its plain values.

        Raises `KeyError` if a tensor is not there.
        """
        wanted = {name: Piece.of(tensor) for name, tensor in into.items()}
        filled = dict.fromkeys(wanted, 0)
        position: dict[str, Any] = {}
        for file in sorted(self._folder(step).glob("state-*.safetensors")):
            with safe_open(file, framework="pt") as handle:
                header = handle.metadata()
                position = json.loads(header["position"])
                for name, first in json.loads(header["first"]).items():
                    if name in wanted:
                        filled[name] += _copy_rows(handle.get_slice(name), first, wanted[name])
        missing = [name for name, count in filled.items() if count < wanted[name].rows.numel()]
        if missing:
            raise KeyError(f"checkpoint {self._folder(step)} lacks {', '.join(missing[:5])}")
        return position

    def save_snapshot(self, step: int, weights: Mapping[str, Tensor]) -> Snapshot:
        """Write weights as safetensors, without a header: its entries are in another order each time."""
        target = self.path / "snapshots" / f"step-{step:08d}.safetensors"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        with paths.atomic_path(target) as temporary:
            save_file(tensors, temporary)
        return Snapshot(step, target)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return the snapshots taken so far, in the order of steps."""
        files = sorted((self.path / "snapshots").glob("step-*.safetensors"))
        return tuple(Snapshot(int(file.stem.removeprefix("step-")), file) for file in files)

    def forget_beyond(self, step: int) -> None:
        """Delete snapshots later than `step`: the steps to them are about to be repeated."""
        for file in (self.path / "snapshots").glob("*"):
            match = re.fullmatch(r"step-(\d+)\.safetensors", file.name)
            if match is None or int(match[1]) > step:
                file.unlink()

    def finish(
        self, result: Path | None = None, seconds: float = 0.0, keep: Callable[[int], bool] = lambda _: False
    ) -> list[Path]:
        """Delete everything once the stage's output is safely written, but move checkpoints whose step `keep` wants.

        If `result` is a file of the output, and the work took more `seconds` than one repeats without asking, the work is only
        hidden, and deleted when DVC has recorded the file. Returns where the moved checkpoints lie.
        """
        kept = []
        for folder in self._checkpoints():
            if keep(_step(folder)):
                target = paths.STATE / "checkpoints" / self.path.parent.name / self.training / folder.name
                shutil.rmtree(target, ignore_errors=True)
                kept.append(shutil.copytree(folder, target, copy_function=paths.link_or_copy))
        if result is not None and seconds > resume.SECONDS_TO_REPEAT:
            resume.put_away(self.path, result)
            return kept
        # gone at once: half a folder would be taken for a training in progress
        with suppress(FileNotFoundError):
            self.path.replace(self._doomed)
        shutil.rmtree(self._doomed, ignore_errors=True)
        return kept

    def _position(self, step: int) -> dict[str, Any]:
        """Return the plain values of a checkpoint."""
        file = min(self._folder(step).glob("state-*.safetensors"))
        with safe_open(file, framework="pt") as handle:
            position: dict[str, Any] = json.loads(handle.metadata()["position"])
        return position

    @property
    def _doomed(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    def _folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _checkpoints(self) -> list[Path]:
        return sorted((folder for folder in self.path.glob("step-*") if folder.is_dir()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _require_whole(folder: Path) -> None:
    files = sorted(folder.glob("state-*.safetensors"))
    match = FILE_NAME.fullmatch(files[0].name) if files else None
    if match is None or len(files) != int(match[1]):
        raise ValueError("a file of it is missing")
    for file in files:
        if paths.file_digest(file) != json.loads(file.with_suffix(".json").read_text())["sha256"]:
            raise ValueError("its content does not match its hash")


def _copy_rows(stored: Any, first: int, target: Piece) -> int:
    """Copy the rows that a stored piece and `target` share; return how many values were copied."""
    shape = stored.get_shape()
    if not shape:
        target.rows.copy_(stored[...])
        return 1
    low, high = max(first, target.first), min(first + shape[0], target.first + len(target.rows))
    if low >= high:
        return 0
    rows = stored[low - first : high - first]
    target.rows[low - target.first : high - target.first].copy_(rows)
    return int(rows.numel())
