"""What a loss copies from the host makes it wait for the device: found on an imagined GPU, which has shapes but no values."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infra.bench.workload import CLASSES, Workload, task_of
from sfd_core.models.denoisers.factory import build_denoiser

FLOW = Workload("tiny", batch=4, texture=4, semantic=2, grid=4, images=8)
DIT = replace(FLOW, model="dit", semantic=0, patch=2)


class Crossings(TorchDispatchMode):
    """Notes every operation with tensors of several devices; one that gives a plain number is an error there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if len({value.device.type for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)}) > 1:
            self.seen.append(str(func))
        return result


@pytest.mark.parametrize(
    "workload", [FLOW, replace(FLOW, semantic=0), replace(FLOW, token_channels=8), DIT], ids=["sfd", "texture", "repa", "dit"]
)
def test_a_loss_needs_nothing_from_the_host_but_its_batch(workload: Workload, tmp_path: Path) -> None:
    imagined = FakeTensorMode(allow_non_fake_inputs=True)
    with imagined, torch.device("cuda"):
        model = build_denoiser(workload.variant, workload.spec, CLASSES)
    task = task_of(workload, tmp_path, model)
    batch = task.batch(0, slice(0, workload.batch))
    with imagined:
        moved = {name: torch.empty_like(value, device="cuda") for name, value in batch.items()}
        task.loss(moved)  # what stays on the device is copied once
        with Crossings() as crossings:
            loss = task.loss(moved)["loss"]
            assert not crossings.seen
            torch.tensor(1.0).to(loss.device)
            assert crossings.seen  # it would have been noticed
