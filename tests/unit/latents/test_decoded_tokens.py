"""Targets of REPA decoded from semantic latents: the encoder's tokens as the Semantic VAE knows them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from denoisers import variant
from safetensors.torch import load_file
from small_stages import ENCODE, SEMANTIC_VAE, TRAIN, Stages, lay_out_compressed

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import EncodeParams, RepaParams
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.decoded_tokens import DecodedTokens, open_decoded_tokens
from sfd_core.latents.identity import read_latent_identity
from sfd_core.latents.tokens import RepaTargets
from sfd_core.models.vaes.semantic_vae import SemanticVAE
from sfd_core.sampling.artifact import DenoiserManifest
from sfd_core.stages.train import TrainFolders, TrainInputs, train_variant
from sfd_core.training.history import read_history

CPU = torch.device("cpu")
REPA = RepaParams(weight=0.5, mode="cosine+mse", targets="semantic", block=2, width=16)
MOMENTS = EncodeParams.model_validate({**ENCODE.model_dump(), "posterior": "moments"})


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return lay_out_compressed(tmp_path_factory.mktemp("stages"))


pytestmark = pytest.mark.usefixtures("in_an_empty_project")


def opened(folders: TrainFolders) -> DecodedTokens:
    return open_decoded_tokens(
        ShardReader(folders.encode / "train"), read_latent_identity(folders.encode), folders.semantic_vae, CPU
    )


@pytest.mark.parametrize(("params", "field"), [(ENCODE, "z_sem"), (MOMENTS, "z_sem_mean")], ids=["sample", "moments"])
def test_tokens_are_the_decoded_latents_in_the_encoder_s_own_scale(stages: Stages, params: EncodeParams, field: str) -> None:
    folders = stages.encode(params)
    vae = SemanticVAE(in_channels=64, channels=2, width=16, depth=1, heads=2)
    vae.load_state_dict(load_file(folders.semantic_vae / "model.safetensors"))
    shard = ShardReader(folders.encode / "train")
    with torch.no_grad():
        decoded = vae.eval().decode(torch.from_numpy(shard[field].array[[3, 7]]).flatten(0, 1).float()).numpy()
    scale = load_file(folders.semantic_vae / "pca.safetensors")
    mean, std = (scale[name].numpy()[:, None, None] for name in ("token_mean", "token_std"))
    assert np.abs(std - 1).mean() > 0.02, "standardised tokens must not pass for the encoder's"
    expected = (decoded * std + mean).reshape(2, 2, 64, 4, 4)
    source: RepaTargets = opened(folders)
    chosen = source.tokens(source.read([7, 3], torch.tensor([True, False])))
    assert chosen.dtype == torch.float16
    np.testing.assert_allclose(chosen.numpy().astype(np.float32), [expected[1, 1], expected[0, 0]], rtol=2e-3, atol=2e-3)


def test_they_have_the_shape_of_stored_ones_and_an_identity_of_their_own(stages: Stages) -> None:
    decoded, stored, mirrored = opened(stages.encode()), stages.tokens(True), torch.tensor([False, True])
    assert decoded.channels == stored.channels
    assert decoded.tokens(decoded.read([0, 1], mirrored)).shape == stored.tokens(stored.read([0, 1], mirrored)).shape
    assert decoded.digest not in (stored.digest, opened(stages.encode(MOMENTS)).digest)


@pytest.mark.parametrize("semantic", ["vae", "none"])
def test_a_variant_trains_on_them_without_encoder_features_and_images(stages: Stages, semantic: str, tmp_path: Path) -> None:
    chosen = variant(semantic=semantic, delta_t=0.3 if semantic == "vae" else 0.0, repa=REPA)
    folders = replace(stages.encode(MOMENTS), features=tmp_path / "nowhere", prepare=tmp_path / "nowhere")
    inputs = TrainInputs.open(chosen, folders)
    assert inputs.spec.token_channels == 64
    train_variant("v", chosen, TRAIN, inputs, tmp_path / "out")
    manifest = DenoiserManifest.read(tmp_path / "out")
    assert manifest.variant.repa.targets == "semantic"
    grid, width, channels = 16, 16, 64
    assert manifest.target_flops_per_image > 2 * grid * width * channels, "decoding ends in a matrix product of this size"
    assert manifest.training_flops_per_image == 3 * manifest.flops_per_image + manifest.target_flops_per_image
    assert read_history(tmp_path / "out" / "history.csv")[-1]["repa"] > 0
    aligned = chosen.model_copy(update={"repa": REPA.model_copy(update={"targets": "encoder"})})
    with pytest.raises(DataError, match="nowhere"):
        TrainInputs.open(aligned, folders)


def test_another_semantic_vae_than_the_latents_were_encoded_with_is_refused(stages: Stages, tmp_path: Path) -> None:
    folders = stages.encode()
    compressors, identity = SemanticCompressors.load(folders.semantic_vae)
    with torch.no_grad():
        compressors.vae.decoder[0].weight += 1  # type: ignore[operator]
    (tmp_path / "other").mkdir()
    compressors.save(tmp_path / "other", SEMANTIC_VAE, identity["encoder"])
    with pytest.raises(IdentityError, match=r"other holds Semantic VAE .* was encoded with .* run `dvc repro encode`"):
        TrainInputs.open(variant(repa=REPA), replace(folders, semantic_vae=tmp_path / "other"))
    with pytest.raises(DataError, match="holds no Semantic VAE"):
        TrainInputs.open(variant(repa=REPA), replace(folders, semantic_vae=tmp_path / "nowhere"))
    TrainInputs.open(variant(), replace(folders, semantic_vae=tmp_path / "nowhere"))


def test_pca_does_without_the_semantic_vae_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"repa\.targets is semantic, which needs the Semantic VAE, but semantic is pca"):
        variant(semantic="pca", repa=REPA)
    variant(semantic="pca", repa=REPA.model_copy(update={"weight": 0.0}))
    variant(semantic="pca", repa=REPA.model_copy(update={"targets": "encoder"}))
