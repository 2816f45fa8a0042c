"""Where a step goes, by group of operations: what arithmetic and memory traffic predict, and what the profiler measures."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MATRIX, ATTENTION, ELEMENTWISE, OPTIMISER, AVERAGE = (
    "matrix products", "attention", "norms, modulation, rotation, activations, loss", "AdamW", "EMA",
)  # fmt: skip
OUTSIDE = "outside torch: Python, reading data"
GROUPS = (MATRIX, ATTENTION, ELEMENTWISE, OPTIMISER, AVERAGE)

MATRIX_OPERATIONS = {"mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "convolution", "convolution_backward"}
MOVES_NOTHING = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "view"}
ONLY_WRITES = {"copy_", "fill_", "zero_"}
KEPT = "grads"
"""What a fused optimiser says it changes, but does only under loss scaling."""
ALL_MARK, AVERAGE_MARK, OPTIMISER_MARK = "bench::all", "bench::average", "Optimizer.step"


@contextmanager
def averaging() -> Iterator[None]:
    """Mark what is done inside as the update of the averaged weights."""
    with record_function(AVERAGE_MARK):
        _SECTIONS.append(AVERAGE)
        try:
            yield
        finally:
            _SECTIONS.remove(AVERAGE)


@dataclass
class Work:
    """What the operations of one group do: floating-point operations, and bytes read and written."""

    flops: int = 0
    traffic: int = 0

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Return the least time that this takes at `peak` FLOP/s and `bandwidth` bytes/s, whichever bounds it."""
        return max(self.flops / peak, self.traffic / bandwidth)


@dataclass
class WorkCounter(TorchDispatchMode):
    """Counts the work of every operation that runs in this thread inside the `with` block.

    Traffic is every operand read once and every result written once; views cost nothing.
    """

    work: dict[str, Work] = field(default_factory=lambda: {group: Work() for group in GROUPS})

    def __post_init__(self) -> None:
        super().__init__()

    def __enter__(self) -> "WorkCounter":
        self._hooks = [
            register_optimizer_step_pre_hook(lambda *_: _SECTIONS.append(OPTIMISER)),
            register_optimizer_step_post_hook(lambda *_: _SECTIONS.remove(OPTIMISER)),
        ]
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._overloadpacket.__name__
        work = self.work[_SECTIONS[-1] if _SECTIONS else group_of(name)]
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            work.flops += count(*args, **(kwargs or {}), out_val=result)
        if not function.is_view and name not in MOVES_NOTHING:
            work.traffic += _traffic(function, args, kwargs or {}, result)
        return result


def group_of(operation: str) -> str:
    """Return the group of an operation of the network, by its name in torch without `aten::`."""
    if operation in MATRIX_OPERATIONS:
        return MATRIX
    return ATTENTION if "scaled_dot_product" in operation else ELEMENTWISE


class Profiler:
    """Measures where the seconds between `start` and `stop` go, in this thread."""

    def start(self) -> None:
        """Begin."""
        self._stack = ExitStack()
        self._profile = self._stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        self._stack.enter_context(record_function(ALL_MARK))

    def stop(self, steps: int) -> dict[str, float]:
        """Return the seconds of one of `steps` steps by group, those outside torch among them."""
        self._stack.close()
        return by_group(list(self._profile.events() or []), steps)


def by_group(events: list[FunctionEvent], steps: int) -> dict[str, float]:
    """Return the seconds of one of `steps` steps by group, of the profiler's events."""
    whole = next(event for event in events if event.name == ALL_MARK)
    seconds = Counter[str]()
    for event in events:
        if event.thread == whole.thread and event.name.startswith("aten::"):
            seconds[_group_of_event(event)] += event.self_cpu_time_total / 1e6
    shares = {group: seconds[group] / steps for group in GROUPS}
    return shares | {OUTSIDE: whole.cpu_time_total / 1e6 / steps - sum(shares.values())}


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that one forward pass inside the `with` block keeps for its backward pass, besides the parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._kept: dict[int, int] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def __enter__(self) -> "SavedBytes":  # type: ignore[override]
        super().__enter__()
        return self

    @property
    def bytes(self) -> int:
        """All of them; a tensor that several operations keep counts once."""
        return sum(self._kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


_SECTIONS: list[str] = []


def _group_of_event(event: FunctionEvent) -> str:
    ancestor: FunctionEvent | None = event
    while ancestor is not None:
        if ancestor.name.startswith(OPTIMISER_MARK):
            return OPTIMISER
        if ancestor.name == AVERAGE_MARK:
            return AVERAGE
        ancestor = ancestor.cpu_parent
    return group_of(event.name.removeprefix("aten::"))


def _traffic(function: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the bytes that an operation reads and writes, by its schema: what it changes in place it reads and writes."""
    named = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)} | kwargs
    changed = [
        leaf
        for argument in function._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name != KEPT
        for leaf in _tensors(named.get(argument.name))
    ]
    overwritten = changed if function._overloadpacket.__name__ in ONLY_WRITES else []
    made = [leaf for leaf in _tensors(result) if all(leaf is not other for other in changed)]
    return _bytes(_tensors(named)) - _bytes(overwritten) + _bytes(changed) + _bytes(made)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
