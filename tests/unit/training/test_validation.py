"""The validation loss: what its definition says, of any weights, whatever else was evaluated before."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from denoisers import variant
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.experiment.params import VariantParams
from sfd_core.latents.composite import ChannelStatistics, Composite, LatentStatistics
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser
from sfd_core.training.checkpoint import Snapshot
from sfd_core.training.tasks import validation
from sfd_core.training.tasks.validation import ValidationCurve, ValidationLoss

IMAGES, GRID = 70, 4
KINDS = {
    "sfd": {},
    "texture": {"semantic": "none", "delta_t": 0.0},
    "dit": {"model": "dit", "semantic": "none", "delta_t": 0.0, "cosine_weight": 0.0},
}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("held_out")
    random = np.random.default_rng(0)
    fields = {name: FieldSpec("float32", (2, 3, GRID, GRID)) for name in ("z_tex", "z_sem")}
    with ShardWriter(folder / "shard", fields | {"label": FieldSpec("int64", ())}, {}) as writer:
        values = {name: random.standard_normal((IMAGES, *spec.shape), dtype=np.float32) for name, spec in fields.items()}
        writer.append(**values, label=np.arange(IMAGES) % 2)
    return ShardReader(folder / "shard")


def weights_of(params: VariantParams, seed: int) -> Mapping[str, Tensor]:
    model = build_denoiser(params, spec(params), 2)
    source = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=source) * ("pos_embed" not in name and "freqs" not in name)
        for name, value in model.state_dict().items()
    }


def spec(params: VariantParams) -> LatentSpec:
    return LatentSpec(3, 0 if params.semantic == "none" else 3, GRID, 0)


def loss_of(params: VariantParams, latents: ShardReader, images: int = IMAGES) -> ValidationLoss:
    plain = ChannelStatistics(torch.zeros(3), torch.ones(3))
    composite = Composite(LatentStatistics(plain, None if params.semantic == "none" else plain))
    return ValidationLoss(build_denoiser(params, spec(params), 2), params, composite, latents, images)


def test_the_velocity_error_is_the_mean_over_ten_times_of_the_path(latents: ShardReader) -> None:
    loss = loss_of(variant(), latents)
    found = loss(weights_of(variant(), 1))
    errors = []
    for k in range(10):
        u = 1.3 * (k + 0.5) / 10
        t_tex, t_sem = max(u - 0.3, 0.0), min(u, 1.0)
        t = torch.tensor([t_tex] * 3 + [t_sem] * 3)[:, None, None]
        x_t = t * loss.latents.x1 + (1 - t) * loss.latents.x0
        times = (torch.full((IMAGES,), t_tex), torch.full((IMAGES,), t_sem))
        with torch.no_grad():
            squared = (
                loss.model(x_t, *times, torch.arange(IMAGES) % 2).prediction - (loss.latents.x1 - loss.latents.x0)
            ).square()
        errors.append([squared[:, :3].mean().item(), squared[:, 3:].mean().item()])
    assert list(found.values()) == pytest.approx(np.mean(errors, axis=0).tolist(), rel=1e-5)


def test_dits_error_is_that_of_epsilon_at_ten_levels(latents: ShardReader) -> None:
    params = variant(**KINDS["dit"])
    loss = loss_of(params, latents)
    found = loss(weights_of(params, 1))
    errors = []
    for level in range(50, 1000, 100):
        alpha_bar = GaussianProcess().alpha_bar[level].item()
        x = alpha_bar**0.5 * loss.latents.x1 + (1 - alpha_bar) ** 0.5 * loss.latents.x0
        with torch.no_grad():
            output = loss.model(x, torch.full((IMAGES,), float(level)), torch.arange(IMAGES) % 2)
        errors.append((output[:, :3] - loss.latents.x0).square().mean().item())
    assert found == {"texture": pytest.approx(np.mean(errors), rel=1e-5)}


@pytest.mark.parametrize("kind", KINDS)
def test_it_depends_on_the_weights_alone(kind: str, latents: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    params = variant(**KINDS[kind])
    first = loss_of(params, latents)(weights_of(params, 1))
    monkeypatch.setattr(validation, "BATCH", 7)
    again = loss_of(params, latents)
    other = again(weights_of(params, 2))
    assert again(weights_of(params, 1)) == pytest.approx(first, rel=1e-5)
    assert other != pytest.approx(first, rel=1e-3)


def test_a_lost_row_comes_back_from_its_snapshot(latents: ShardReader, tmp_path: Path) -> None:
    curve = ValidationCurve(tmp_path / "validation.csv", loss_of(variant(), latents, images=8))
    snapshots = []
    for step in (20, 10):  # a resumed training repeats steps
        weights = weights_of(variant(), step)
        curve.add(step, weights)
        curve.add(step, weights)
        path = tmp_path / f"{step}.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
        snapshots.insert(0, Snapshot(step, path))
    whole = pd.read_csv(curve.path)
    assert whole["step"].tolist() == [10, 20]
    whole[whole["step"] == 10].to_csv(curve.path, index=False)
    curve.complete(snapshots)
    pd.testing.assert_frame_equal(pd.read_csv(curve.path), whole)


def test_rows_of_other_held_out_latents_are_computed_again(latents: ShardReader, tmp_path: Path) -> None:
    weights = weights_of(variant(), 1)
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "10.safetensors")
    path, loss = tmp_path / "validation.csv", loss_of(variant(), latents)
    ValidationCurve(path, loss).add(10, weights)
    loss.digest, loss.latents = "0" * 64, dataclasses.replace(loss.latents, x1=2 * loss.latents.x1)
    ValidationCurve(path, loss).complete([Snapshot(10, tmp_path / "10.safetensors")])
    assert pd.read_csv(path)[["texture", "semantic"]].iloc[0].tolist() == pytest.approx(list(loss(weights).values()))
