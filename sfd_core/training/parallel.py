"""One training in one process or many: accelerate names devices; the network is copied (DDP) or cut in shards (FSDP).

Whatever the number of processes, a step takes the same global batch: each process has an equal share of its positions, in parts
of at most `micro_batch` images whose gradients add up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication

from sfd_core.experiment.params import EngineParams, Optimisation
from sfd_core.host.errors import ConfigError
from sfd_core.models.denoisers.blocks import blocks_of, compile_blocks, recompute_activations
from sfd_core.training.task import TrainingTask


def training_device() -> torch.device:
    """Return the device that training runs on: a GPU where there is one, unless ACCELERATE_USE_CPU is set."""
    return torch.device(PartialState(cpu=_on_cpu()).device)


def _on_cpu() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()


class _Loss(nn.Module):
    """A task's loss as a module: what wraps it sees every use of the network, whichever of its methods a task calls."""

    def __init__(self, task: TrainingTask) -> None:
        super().__init__()
        self.network, self._task = task.model, task

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(self._task.loss(batch))


class Parallel:
    """This process's part in the training of `task`. Raises `ConfigError` if the batch cannot be shared equally."""

    def __init__(self, name: str, task: TrainingTask, optimisation: Optimisation, engine: EngineParams) -> None:
        AcceleratorState._reset_state()  # a process may train several networks, each in its own precision
        less_memory = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        precision = "bf16" if optimisation.precision == "bfloat16" else "no"
        self.accelerator = Accelerator(cpu=_on_cpu(), mixed_precision=precision, kwargs_handlers=[less_memory])
        self.device = torch.device(self.accelerator.device)
        self.rank, self.count = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        if optimisation.batch_size % self.count:
            raise ConfigError(
                f"{name}: batch_size {optimisation.batch_size} cannot be shared equally by {self.count} processes; "
                "choose a multiple, or another number of processes"
            )
        self.sharded = engine.sharding == "fsdp" and self.count > 1
        self.parts = _parts(self.rank, optimisation.batch_size // self.count, engine.micro_batch)
        """Positions of the global batch that this process takes one after the other."""
        self.model = task.model.to(self.device).train()
        _switch(self.model, engine)
        self.loss: nn.Module = _Loss(task)
        if self.sharded:
            self._shard()
        else:
            self.loss = cast(nn.Module, self.accelerator.prepare_model(self.loss))

    @property
    def first(self) -> bool:
        """Whether this process writes the curve, the snapshots and, unless the network is sharded, the checkpoints."""
        return self.rank == 0

    @property
    def writer(self) -> tuple[int, int] | None:
        """Which of how many files of a checkpoint this process writes."""
        if self.sharded:
            return self.rank, self.count
        return (0, 1) if self.first else None

    def backward(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Add up the gradients of all parts and return this process's means of the loss's terms, detached."""
        sizes = [part.stop - part.start for part in self.parts]
        sums: dict[str, Tensor] = {}
        for number, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            share = size / sum(sizes)
            with self._synchronised(last=number == len(sizes) - 1):
                with self.accelerator.autocast():
                    terms: dict[str, Tensor] = self.loss(batch)
                # accelerate's own backward would divide by the number of accumulated steps in its launcher's settings
                (terms["loss"] if share == 1 else terms["loss"] * share).backward()
            for name, term in terms.items():
                value = term.detach().float() if share == 1 else term.detach().float() * share
                sums[name] = value if name not in sums else sums[name] + value
        return sums

    def settle(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Take gradients that no step uses: in the first backward pass DDP chooses the order in which processes add up.

        Without, the first step after a resume would round otherwise than the same step of an unbroken training.
        """
        if self.count > 1 and not self.sharded:
            self.backward([{name: value.to(self.device) for name, value in batch.items()} for batch in batches])

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all processes."""
        return values if self.count == 1 else cast(Tensor, self.accelerator.reduce(values, "mean"))

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """Let plain scalars meet shards of parameters."""
        with implicit_replication() if self.sharded else nullcontext():
            yield

    def from_first(self, value: Any) -> Any:
        """Return what the first process gives."""
        if self.count == 1:
            return value
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Return once all processes have come here."""
        self.accelerator.wait_for_everyone()

    def _synchronised(self, last: bool) -> Any:
        if isinstance(self.loss, FSDPModule):
            self.loss.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.loss)

    def _shard(self) -> None:
        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in blocks_of(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self.loss, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be cut in shards; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _parts(rank: int, share: int, micro_batch: int | None) -> list[slice]:
    first, size = rank * share, min(share, micro_batch or share)
    return [slice(start, min(start + size, first + share)) for start in range(first, first + share, size)]


def _switch(model: nn.Module, engine: EngineParams) -> None:
    if engine.activation_checkpointing:
        recompute_activations(model)
    if engine.compile:
        compile_blocks(model)
