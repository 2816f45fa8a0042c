"""Train a tiny transformer in as many processes as torchrun starts; usage: spread_training.py FOLDER ENGINE-JSON [STOP-AT].

Rank 0 leaves weights and average in FOLDER/weights.safetensors. With STOP-AT the process asks itself to end at that step.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.experiment.params import Optimisation
from sfd_core.experiment.sizes import ModelSize
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.processes import Processes
from sfd_core.host.seeding import batch_noise
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.training.batches import BatchOrder
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.ema import EMA
from sfd_core.training.loop import PLAIN_ENGINE, TrainingPlan, run
from sfd_core.training.parallel import whole

OPTIMISATION = Optimisation(
    steps=12, batch_size=8, warmup_steps=2, decay_steps=4, final_rate=0.1, betas=[0.9, 0.95], weight_decay=0.01,
    clip_norm=1.0, precision="float32", checkpoint_every=5, seed=0,
)  # fmt: skip


class Velocity:
    """Predict noise from itself at a time."""

    def __init__(self, stop_at: int | None) -> None:
        torch.manual_seed(0)
        self.model = LightningDiT(ModelSize(depth=2, width=32, heads=2), 4, 4, 1, 3, 1)
        self.stop_at = stop_at
        self.order = BatchOrder(8, 8, seed=0)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        if step == self.stop_at and part.start == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": batch_noise(8, part, (4, 4, 4), "x", step), "labels": torch.arange(8)[part] % 3}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        times = torch.full((len(batch["x"]),), 0.5)
        return {"loss": (self.model(batch["x"], times, times, batch["labels"]).prediction - batch["x"]).square().mean()}


@exits_cleanly
def main() -> None:
    folder, engine = Path(sys.argv[1]), PLAIN_ENGINE.model_copy(update=json.loads(sys.argv[2]))
    processes = Processes.join()
    task = Velocity(int(sys.argv[3]) if len(sys.argv) > 3 else None)
    ema = EMA(task.model, 0.9, warmup=True)
    run(task, TrainingPlan("spread", OPTIMISATION, 1e-2, (12,), log_every=1, engine=engine), ResumeFolder(folder), ema)
    tensors = {name: whole(value).clone() for name, value in task.model.state_dict().items()}
    tensors |= {f"ema.{name}": whole(value).clone() for name, value in ema.weights().items()}
    if processes.first:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "weights.safetensors")
    processes.leave()


if __name__ == "__main__":
    main()
