"""Artifacts refuse what does not belong to them."""

import json
from pathlib import Path

import pytest
import torch
from denoisers import artifact, texture_vae, variant
from safetensors.torch import load_file

from sfd_core.host.errors import ConfigError, DataError, IdentityError
from sfd_core.latents.composite import LatentStatistics
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.sampling.artifact import DenoiserManifest, load_denoiser, snapshot_digest, write_averaged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact(tmp_path / "train", texture_vae(tmp_path / "vae"), variant())


def test_a_round_trip_keeps_everything(folder: Path) -> None:
    denoiser = load_denoiser(folder)
    assert denoiser.variant == variant()
    assert denoiser.null_class == 3
    assert denoiser.snapshot.step == 7
    assert not denoiser.model.training


def test_averaged_weights_make_an_artifact_of_their_own(folder: Path, tmp_path: Path) -> None:
    manifest = DenoiserManifest.read(folder)
    weights = {name: 2 * value for name, value in load_file(folder / "snapshots" / "step-00000007.safetensors").items()}
    write_averaged(manifest, folder, weights, 5, tmp_path / "averaged")
    denoiser = load_denoiser(tmp_path / "averaged")
    assert (denoiser.snapshot.step, denoiser.snapshot.images_seen) == (5, 40)
    assert denoiser.identity == load_denoiser(folder).identity
    for name, value in denoiser.model.state_dict().items():
        assert torch.equal(value, weights[name])
    with pytest.raises(ConfigError, match="already exists"):
        write_averaged(manifest, folder, weights, 5, tmp_path / "averaged")
    with pytest.raises(DataError, match="no weights of this denoiser"):
        write_averaged(manifest, folder, dict(list(weights.items())[1:]), 5, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.json is missing"):
        load_denoiser(tmp_path / "nothing")


def test_an_unknown_step_lists_those_that_were_kept(folder: Path) -> None:
    with pytest.raises(DataError, match="choose one of 7"):
        load_denoiser(folder, step=8)


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    plain = json.loads((folder / "model.json").read_text())
    del plain["latent"]
    (folder / "model.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match="damaged"):
        load_denoiser(folder)


def test_truncated_weights_are_named(folder: Path) -> None:
    weights = folder / "snapshots" / "step-00000007.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=weights.name):
        load_denoiser(folder)


def test_statistics_of_other_channels_are_refused(folder: Path) -> None:
    statistics = LatentStatistics.load(folder / "statistics.safetensors")
    LatentStatistics(statistics.texture, None).save(folder / "statistics.safetensors")
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | {"files": {}}))
    with pytest.raises(IdentityError, match="4 channels"):
        load_denoiser(folder)


@pytest.mark.parametrize("name", ["statistics.safetensors", "snapshots/step-00000007.safetensors"])
def test_a_file_of_another_denoiser_is_noticed(tmp_path: Path, folder: Path, name: str) -> None:
    other = artifact(tmp_path / "other", texture_vae(tmp_path / "other_vae", seed=1), variant(), seed=1)
    statistics = LatentStatistics.load(other / "statistics.safetensors")
    LatentStatistics(statistics.texture.scaled(2 * statistics.texture.std), statistics.semantic).save(
        other / "statistics.safetensors"
    )
    (other / name).replace(folder / name)
    with pytest.raises(DataError, match=f"{name} does not match its recorded hash"):
        load_denoiser(folder)


def test_an_artifact_of_an_earlier_version_without_hashes_is_read(folder: Path) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["files"]
    (folder / "model.json").write_text(json.dumps(manifest))
    assert load_denoiser(folder).snapshot.step == 7


def test_changed_weights_of_the_texture_vae_are_noticed(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    texture_vae(tmp_path / "other", seed=1)
    (tmp_path / "other" / "model.safetensors").replace(vae / "model.safetensors")
    with pytest.raises(DataError, match="recorded hash"):
        load_texture_vae(vae)


def test_a_lost_snapshot_is_named_before_anything_is_drawn(folder: Path) -> None:
    snapshot = load_denoiser(folder).snapshot
    assert len(snapshot_digest(folder, snapshot)) == 64
    (folder / snapshot.file).unlink()
    with pytest.raises(DataError, match=r"lacks snapshot 7 .*; restore it with `dvc checkout`"):
        snapshot_digest(folder, snapshot)
