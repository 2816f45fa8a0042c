"""Small denoisers with random weights, in memory and as artifacts on disk."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import RepaParams, VariantParams
from sfd_core.host.paths import file_digest, write_json
from sfd_core.latents.composite import ChannelStatistics, LatentStatistics, save_statistics
from sfd_core.latents.identity import IDENTITY_FILE, STATISTICS_FILE, LatentIdentity
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser, flops_per_image, parameter_count
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.sampling.artifact import Denoiser, DenoiserManifest, SnapshotRecord, load_denoiser

CLASSES = ["cat", "dog", "flag"]
SHAPE = TextureVAEShape(channels=4, downsampling=4, width=8, depth=1)
GRID = 4


def variant(**changes: object) -> VariantParams:
    """A composite variant with offset 0.3, changed as told."""
    values = {
        "model": "lightningdit", "size": "tiny", "patch": 2, "semantic": "vae", "delta_t": 0.3,
        "semantic_weight": 2.0, "cosine_weight": 1.0,
        "repa": RepaParams(weight=0.0, mode="cosine", targets="encoder", block=2, width=16), "mask_clamped": False,
        "learning_rate": 1e-3, "seed": 0,
    }  # fmt: skip
    return VariantParams.model_validate(values | changes)


def texture_vae(folder: Path, seed: int = 0) -> Path:
    """Write a texture VAE with random weights."""
    torch.manual_seed(seed)
    vae = TextureVAE(SHAPE)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    vae.save(folder)
    return folder


def artifact(folder: Path, vae: Path, params: VariantParams, seed: int = 0, classes: Sequence[str] = CLASSES) -> Path:
    """Write a denoiser whose every weight is random, so that nothing is zero by initialisation."""
    _, identity = load_texture_vae(vae)
    spec = LatentSpec(SHAPE.channels, 0 if params.semantic == "none" else 2, GRID, 0)
    model = build_denoiser(params, spec, len(classes))
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05, generator=source)
    (folder / "snapshots").mkdir(parents=True)
    save_file(model.state_dict(), folder / "snapshots" / "step-00000007.safetensors")
    semantic = None if spec.semantic_channels == 0 else _statistics(spec.semantic_channels)
    LatentStatistics(_statistics(SHAPE.channels), semantic).save(folder / STATISTICS_FILE)
    DenoiserManifest(
        variant_name="test",
        variant=params,
        latent=spec,
        classes=classes,
        identity=LatentIdentity(dict(identity), {"name": "s"}, {"name": "e"}, "statistics", "latents"),
        parameters=parameter_count(model),
        flops_per_image=flops_per_image(model),
        snapshots=[SnapshotRecord(7, 56, "snapshots/step-00000007.safetensors")],
    ).write(folder)
    return folder


def write_latents(
    folder: Path,
    latents: Mapping[str, np.ndarray],
    statistics: Mapping[str, ChannelStatistics],
    texture_vae: Mapping[str, str],
    **meta: object,
) -> LatentIdentity:
    """Write what the encode stage writes of training images, whose labels cycle; return its identity."""
    rows = len(next(iter(latents.values())))
    fields = {name: FieldSpec(str(values.dtype), values.shape[1:]) for name, values in latents.items()}
    with ShardWriter(folder / "train", fields | {"label": FieldSpec("int64", ())}, {"classes": CLASSES} | meta) as writer:
        writer.append(**latents, label=np.arange(rows) % len(CLASSES))
    save_statistics(folder / STATISTICS_FILE, statistics)
    digests = file_digest(folder / STATISTICS_FILE), ShardReader(folder / "train").digest
    identity = LatentIdentity(dict(texture_vae), {"name": "s"}, {"name": "e"}, *digests)
    write_json(folder / IDENTITY_FILE, asdict(identity))
    return identity


def trained_on(folder: Path, encode: Path) -> None:
    """Write into `encode` the identity of the latents that the denoiser in `folder` was trained on."""
    encode.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / STATISTICS_FILE, encode / STATISTICS_FILE)
    manifest = DenoiserManifest.read(folder)
    identity = replace(manifest.identity, statistics=file_digest(encode / STATISTICS_FILE))
    write_json(encode / IDENTITY_FILE, asdict(identity))
    replace(manifest, identity=identity).write(folder)


def denoiser(folder: Path, params: VariantParams) -> Denoiser:
    """Write and load a denoiser."""
    return load_denoiser(artifact(folder / "train", texture_vae(folder / "vae"), params))


def _statistics(channels: int) -> ChannelStatistics:
    return ChannelStatistics(torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels))
