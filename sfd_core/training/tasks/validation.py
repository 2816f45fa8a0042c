"""The validation loss: errors on held-out latents at fixed times with fixed noise, which tell divergence before any sampling.

`validation.csv` has a row for every snapshot: `step` and the mean squared error of `texture` and, if there are semantics,
`semantic`. For velocity models it is that of the velocity at ten global times along the variant's path; for DiT that of epsilon
at ten noise levels, so that the two families do not compare.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.diffusion.loss import velocity_errors
from sfd_core.diffusion.path import sample_path
from sfd_core.diffusion.schedule import LocalTimes, Schedule
from sfd_core.experiment.params import VariantParams
from sfd_core.host.paths import atomic_path
from sfd_core.latents.composite import Composite
from sfd_core.latents.held_out import HeldOutLatents
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.training.checkpoint import Snapshot

TIMES = 10
BATCH = 64
PARTS = ("texture", "semantic")
VALIDATION_FILE = "validation.csv"


class ValidationLoss:
    """Evaluates weights on `images` evenly spaced held-out latents, or on all if there are fewer."""

    def __init__(
        self, model: LightningDiT | DiT, variant: VariantParams, composite: Composite, latents: ShardReader, images: int
    ) -> None:
        """Take a network of the same shape as the one in training, which is filled with the weights to evaluate."""
        self.model, self.variant, self.composite = model.eval().requires_grad_(False), variant, composite
        labelled = model.num_classes > 0
        self.latents = HeldOutLatents.read(latents, composite, variant.semantic, images, "validation", labelled)
        self.digest = latents.digest
        self.shares = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean error by part."""
        self.model.load_state_dict(weights)
        errors = torch.cat([self._errors(float(share)) for share in self.shares])
        return dict(zip(PARTS, errors.mean(dim=0).tolist(), strict=False))

    def _errors(self, share: float) -> Tensor:
        """Return the errors (N, parts) at a share of the way from noise to data."""
        device = next(self.model.parameters()).device
        return torch.cat([self._batch_errors(share, *batch).cpu() for batch in self.latents.batches(BATCH, device)])

    def _batch_errors(self, share: float, x0: Tensor, x1: Tensor, labels: Tensor) -> Tensor:
        if isinstance(self.model, DiT):
            process = GaussianProcess()
            level = torch.full((len(x0),), round((1 - share) * len(process.levels)), device=x0.device)
            output = self.model(process.add_noise(x1, x0, level), process.model_levels(level), labels)
            return velocity_errors(output[:, : x0.shape[1]], x0, x0.shape[1])
        schedule = Schedule.of(self.variant)
        local = schedule.local_times(torch.full((len(x0),), share * schedule.end, dtype=torch.float64))
        times = LocalTimes(*(t.to(x0) for t in (local.t_tex, local.t_sem)))
        path = sample_path(x0, x1, times, self.composite.n_texture)
        predicted = self.model(path.x_t, times.t_tex, times.t_sem, labels).prediction
        return velocity_errors(predicted, path.velocity, self.composite.n_texture)


class ValidationCurve:
    """The file of validation losses; a row that is lost, or of other held-out latents, is computed again from its snapshot."""

    def __init__(self, path: Path, loss: ValidationLoss) -> None:
        self.path, self.loss = path, loss
        self._latents = path.with_suffix(".latents")

    def add(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Evaluate weights, put their row in its place, and return it."""
        row = self.loss(weights)
        table = self._table()
        table = pd.concat([table[table["step"] != step], pd.DataFrame([{"step": step, **row}])]).sort_values("step")
        with atomic_path(self.path) as temporary:
            table.to_csv(temporary, index=False)
        self._latents.write_text(self.loss.digest)
        return row

    def complete(self, snapshots: Sequence[Snapshot]) -> None:
        """Add the rows of snapshots that have none."""
        known = set(self._table()["step"])
        for snapshot in snapshots:
            if snapshot.step not in known:
                self.add(snapshot.step, load_file(snapshot.path))

    def _table(self) -> pd.DataFrame:
        current = self.path.is_file() and self._latents.is_file() and self._latents.read_text() == self.loss.digest
        return pd.read_csv(self.path) if current else pd.DataFrame({"step": []})


def write_empty_validation(path: Path) -> None:
    """Write the file of a training without validation."""
    pd.DataFrame(columns=["step", *PARTS]).to_csv(path, index=False)
