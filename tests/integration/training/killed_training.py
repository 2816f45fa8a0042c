"""Train a small transformer once unbroken and once with SIGKILL at random moments; usage: killed_training.py FOLDER."""

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sfd_core.experiment.params import Optimisation
from sfd_core.host.seeding import generator
from sfd_core.training.batches import BatchOrder
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.ema import EMA
from sfd_core.training.loop import TrainingPlan, run

OPTIMISATION = Optimisation(
    steps=120, batch_size=8, warmup_steps=10, decay_steps=30, final_rate=0.1, betas=[0.9, 0.95], weight_decay=0.01,
    clip_norm=1.0, precision="float32", checkpoint_every=9, seed=0,
)  # fmt: skip
PLAN = TrainingPlan("killed", OPTIMISATION, 3e-3, snapshot_steps=(40, 80, 120), log_every=2)
FOLDER = Path(sys.argv[1])


class Denoise:
    """Predict a sequence from its noisy version."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.model = nn.Sequential(nn.Linear(6, 32), block, nn.Linear(32, 6))
        self.order = BatchOrder(8, 8, seed=0)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Draw batch and noise from the step."""
        draw = generator(0, step)
        clean, noise = torch.randn(8, 16, 6, generator=draw).cumsum(1), torch.randn(8, 16, 6, generator=draw)
        return {"clean": clean[part], "noise": noise[part], "broken": torch.tensor(float("nan") if step == 50 else 0.0)}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Compare with the clean sequence."""
        mse = (self.model(batch["clean"] + batch["noise"]) - batch["clean"]).square().mean()
        return {"loss": mse + batch["broken"]}


def train(name: str) -> None:
    """Train to the end in the folder `name` and leave weights and average in `name.pt`."""
    task = Denoise()
    ema = EMA(task.model, 0.99, warmup=True)
    run(task, PLAN, ResumeFolder(FOLDER / name), ema)
    torch.save({"weights": task.model.state_dict(), "ema": ema.weights()}, FOLDER / f"{name}.pt")


def steps_done() -> int:
    """Return the last step in the killed run's curve."""
    path = ResumeFolder(FOLDER / "killed").history_path
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    return int(rows[-1].split(",")[0]) if rows else 0


def killed_at(step: int, delay: float) -> bool:
    """Train in a fork and kill it `delay` seconds after `step`; False if it had finished by then."""
    child = os.fork()
    if child == 0:
        train("killed")
        os._exit(0)
    while steps_done() < step and not (FOLDER / "killed.pt").exists():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    """Train unbroken, then with kills at random moments until the end is reached."""
    torch.set_num_threads(1)
    train("unbroken")
    chance = random.Random()
    targets = sorted(chance.sample(range(1, OPTIMISATION.steps - 15), 4))
    kills = sum(killed_at(step, chance.uniform(0, 0.02)) for step in targets)
    train("killed")
    print(f"killed {kills} times, after steps {targets}")


main()
