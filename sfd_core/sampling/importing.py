"""Converts public checkpoints to the format of trained denoisers, so that they can be sampled and evaluated.

A public file holds weights only. Statistics, classes and the identity of the latents come from the output of the `encode` stage
or from the statistics file of the public code. The user gives the offset and the number of training steps.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.experiment.params import RepaParams, VariantParams
from sfd_core.experiment.sizes import MODEL_SIZES, ModelSize, SizeName
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import atomic_dir, file_digest, require_disk, write_json
from sfd_core.latents.composite import ChannelStatistics, LatentStatistics, load_statistics
from sfd_core.latents.identity import STATISTICS_FILE, LatentIdentity, open_training_latents
from sfd_core.latents.stored import StoredLatent
from sfd_core.models.denoisers.factory import LatentSpec, flops_per_image, parameter_count
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.public.denoiser import lightningdit_from
from sfd_core.models.public.weights import read_public_checkpoint, read_torch_file
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.sampling.artifact import DenoiserManifest, SnapshotRecord

Kind = Literal["sfd", "autoguidance", "lightningdit"]

COMPOSITE: dict[Kind, bool] = {"sfd": True, "autoguidance": True, "lightningdit": False}
"""Whether a kind generates semantics too; an AutoGuidance model is an SFD model that was stopped early."""

UNKNOWN = {"name": "published"}
"""Identity of the unknown encoders when only statistics were published."""


@dataclass(frozen=True)
class LatentSource:
    """The training latents of a public denoiser."""

    statistics: LatentStatistics
    identity: LatentIdentity
    grid: int | None
    """None if only statistics are known."""
    classes: Sequence[str] | None

    @classmethod
    def of_encode(cls, folder: Path) -> "LatentSource":
        """Read the output of the `encode` stage. Raises `DataError` or `IdentityError` if its files do not belong together."""
        latents, identity = open_training_latents(folder, verify=False)
        named = load_statistics(folder / STATISTICS_FILE)
        statistics = LatentStatistics(named["texture"], named["vae"])
        return cls(statistics, identity, StoredLatent(latents, "z_tex").grid, latents.meta["classes"])

    @classmethod
    def of_statistics(cls, files: Sequence[Path], texture_vae: Path) -> "LatentSource":
        """Read statistics of the public code, texture first, from one file or two.

        The texture VAE in `texture_vae` will decode the samples and gives the number of texture channels. Raises `DataError` if
        a file holds no statistics or texture has another number of channels.
        """
        vae, vae_identity = load_texture_vae(texture_vae)
        channels = vae.shape.channels
        parts = [read_public_statistics(file) for file in files]
        mean, std = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std"))
        if len(mean) < channels or (len(files) > 1 and len(parts[0].mean) != channels):
            raise DataError(
                f"{files[0]} has statistics of {len(parts[0].mean)} channels, but the texture VAE in {texture_vae} has "
                f"{channels}; give the statistics of its latents, texture first"
            )
        semantic = ChannelStatistics(mean[channels:], std[channels:]) if len(mean) > channels else None
        statistics = LatentStatistics(ChannelStatistics(mean[:channels], std[:channels]), semantic)
        identity = LatentIdentity(vae_identity, UNKNOWN, UNKNOWN, _digest(mean, std), UNKNOWN["name"])
        return cls(statistics, identity, None, None)


@dataclass(frozen=True)
class ImportOptions:
    """Options that a weights file does not contain."""

    kind: Kind
    delta_t: float
    """Offset delta_t of its training."""
    step: int
    batch_size: int
    """Images per training step."""
    num_classes: int | None
    """Number of classes, named by number; None uses the names of the latents, or the number of classes in the file."""


def read_public_statistics(path: Path) -> ChannelStatistics:
    """Read `latents_stats.pt` of LightningDiT's and SFD's public code: `mean` and `std`, tensors of shape (1, C, 1, 1).

    Raises `DataError` if the file is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; download the statistics or correct the path")
    loaded = read_torch_file(path)
    mean, std = loaded.get("mean"), loaded.get("std")
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor) or mean.numel() != max(mean.shape, default=0):
        raise DataError(
            f"{path} holds {', '.join(str(key) for key in loaded)} instead of tensors mean and std of shape (1, C, 1, 1); "
            "give the latents_stats.pt of the latents"
        )
    return ChannelStatistics(mean.float().flatten(), std.float().flatten())


def import_denoiser(file: Path, options: ImportOptions, source: LatentSource, out: Path) -> DenoiserManifest:
    """Write a public denoiser to the folder `out` atomically and return its manifest.

    Raises `DataError` if the file is no such denoiser or does not match the latents, and `ConfigError` for options that do
    not match the file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists; remove it or give another folder")
    model = lightningdit_from(read_public_checkpoint(file))
    statistics = _statistics(model, options.kind, source.statistics, file)
    variant = _variant(model, options, file)
    classes = _classes(model, options, source, file)
    if source.grid not in {None, model.grid}:
        raise DataError(
            f"{file} has a {model.grid}x{model.grid} latent grid, but the encoded latents have "
            f"{source.grid}x{source.grid}; encode images at its training resolution"
        )
    semantic_channels = 0 if statistics.semantic is None else len(statistics.semantic.mean)
    parameters = parameter_count(model)
    require_disk(out, 5 * parameters, f"importing {file}")
    record = SnapshotRecord(options.step, options.step * options.batch_size, f"snapshots/step-{options.step:08d}.safetensors")
    manifest = DenoiserManifest(
        variant_name=f"{options.kind}-{variant.size}",
        variant=variant,
        latent=LatentSpec(len(statistics.texture.mean), semantic_channels, model.grid, 0),
        classes=classes,
        identity=source.identity,
        parameters=parameters,
        flops_per_image=flops_per_image(model),
        snapshots=[record],
    )
    with atomic_dir(out) as folder:
        (folder / "snapshots").mkdir()
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / record.file)
        statistics.save(folder / STATISTICS_FILE)
        manifest.write(folder)
        write_json(folder / "origin.json", {"file": file.name, "sha256": file_digest(file), "options": asdict(options)})
    return manifest


def _statistics(model: LightningDiT, kind: Kind, known: LatentStatistics, file: Path) -> LatentStatistics:
    """Return the statistics of the latents that the denoiser generates, after checking the number of channels."""
    texture = len(known.texture.mean)
    semantic = 0 if known.semantic is None else len(known.semantic.mean)
    wanted = texture + semantic if COMPOSITE[kind] else texture
    if COMPOSITE[kind] and model.in_channels == texture:
        raise DataError(f"{file} generates {texture} channels, which is texture only; import it as lightningdit")
    if COMPOSITE[kind] and known.semantic is None:
        raise DataError(
            f"{file} generates {model.in_channels} channels, but got statistics of {texture} texture channels only; give "
            "those of the semantic latent too, after texture"
        )
    if not COMPOSITE[kind] and model.embedders == 2:
        raise DataError(f"{file} has the two time embedders of SFD and generates semantics too; import it as sfd")
    if model.in_channels != wanted:
        raise DataError(
            f"{file} generates {model.in_channels} channels, but {kind} needs {wanted}: the latents have {texture} texture and "
            f"{semantic} semantic channels; give the latents of its training"
        )
    return known if COMPOSITE[kind] else LatentStatistics(known.texture, None)


def _variant(model: LightningDiT, options: ImportOptions, file: Path) -> VariantParams:
    """Describe the network; training-only settings are those of the published long recipe."""
    if COMPOSITE[options.kind] and model.embedders == 1 and options.delta_t > 0:
        raise ConfigError(
            f"delta_t is {options.delta_t}, but {file} has one time embedder, so it was trained without offset; "
            "give --delta-t 0"
        )
    return VariantParams(
        model="lightningdit",
        size=_size_name(model, file),
        patch=model.patch,
        semantic="vae" if COMPOSITE[options.kind] else "none",
        delta_t=options.delta_t if COMPOSITE[options.kind] else 0.0,
        semantic_weight=2.0,
        cosine_weight=1.0,
        repa=RepaParams(weight=0.0, mode="cosine", targets="encoder", block=2, width=2048),
        mask_clamped=False,
        learning_rate=1e-4,
        seed=0,
    )


def _size_name(model: LightningDiT, file: Path) -> SizeName:
    width = model.pos_embed.shape[-1]
    found = ModelSize(len(model.blocks), width, width // model.feat_rope.freqs_cos.shape[1])
    for name, size in MODEL_SIZES.items():
        if size == found:
            return name
    raise DataError(
        f"{file} has depth {found.depth}, width {found.width} and {found.heads} heads, which is none of the sizes "
        f"{', '.join(MODEL_SIZES)} of sfd_core/experiment/sizes.py; give another file"
    )


def _classes(model: LightningDiT, options: ImportOptions, source: LatentSource, file: Path) -> list[str]:
    numbered = options.num_classes is not None or source.classes is None
    count = options.num_classes if options.num_classes is not None else model.num_classes
    names = [str(number) for number in range(count)] if numbered else list(source.classes or [])
    if len(names) != model.num_classes:
        raise DataError(
            f"{file} has {model.num_classes} classes, but got {len(names)}; give the latents of its training or --num-classes"
        )
    return names


def _digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()
