"""Public denoisers as artifacts: what others published is sampled and judged as if it was trained here.

A file holds weights only. Statistics, classes and the identity of the latents come from the output of the `encode` stage, or
from the statistics that the public code wrote; the offset, and how far the training had come, are told.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import RepaParams, VariantParams
from sfd_core.experiment.sizes import MODEL_SIZES, ModelSize, SizeName
from sfd_core.host.errors import ConfigError, DataError, IdentityError
from sfd_core.host.paths import atomic_dir, file_digest, require_disk, write_json
from sfd_core.latents.composite import ChannelStatistics, LatentStatistics, load_statistics
from sfd_core.latents.identity import IDENTITY_FILE, STATISTICS_FILE, LatentIdentity, read_latent_identity
from sfd_core.latents.stored import StoredLatent
from sfd_core.models.denoisers.factory import LatentSpec, flops_per_image, parameter_count
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.public.denoiser import lightningdit_from
from sfd_core.models.public.weights import read_public_checkpoint, read_torch_file
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.sampling.artifact import DenoiserManifest, SnapshotRecord

Kind = Literal["sfd", "autoguidance", "lightningdit"]

COMPOSITE: dict[Kind, bool] = {"sfd": True, "autoguidance": True, "lightningdit": False}
"""Whether a kind generates semantics beside texture; an AutoGuidance model is an SFD that was stopped early."""

UNKNOWN = {"name": "published"}
"""Identity of what made the latents of which only statistics were published."""


@dataclass(frozen=True)
class LatentSource:
    """The latents that a public denoiser was trained on."""

    statistics: LatentStatistics
    identity: LatentIdentity
    grid: int | None
    """None where only statistics are known."""
    classes: Sequence[str] | None

    @classmethod
    def of_encode(cls, folder: Path) -> "LatentSource":
        """Read the output of the `encode` stage. Raises `DataError` or `IdentityError` if its files are not of one encoding."""
        identity = read_latent_identity(folder)
        latents = ShardReader(folder / "train", verify=False)
        if latents.digest != identity.latents:
            raise IdentityError(
                f"{folder / 'train'} is not the shard that {folder / IDENTITY_FILE} names; run `dvc repro encode`"
            )
        named = load_statistics(folder / STATISTICS_FILE)
        statistics = LatentStatistics(named["texture"], named["vae"])
        return cls(statistics, identity, StoredLatent(latents, "z_tex").grid, latents.meta["classes"])

    @classmethod
    def of_statistics(cls, files: Sequence[Path], texture_vae: Path) -> "LatentSource":
        """Read statistics that the public code wrote, of texture and then semantics, in one file or in two.

        The texture VAE in `texture_vae` decodes the samples and says how many channels texture has. Raises `DataError` if a
        file holds no statistics or texture has another number of channels.
        """
        vae, vae_identity = load_texture_vae(texture_vae)
        channels = vae.shape.channels
        parts = [read_public_statistics(file) for file in files]
        mean, std = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std"))
        if len(mean) < channels or (len(files) > 1 and len(parts[0].mean) != channels):
            raise DataError(
                f"{files[0]} has statistics of {len(parts[0].mean)} channels, but the texture VAE in {texture_vae} makes "
                f"{channels}; name the statistics of its latents, texture first"
            )
        semantic = ChannelStatistics(mean[channels:], std[channels:]) if len(mean) > channels else None
        statistics = LatentStatistics(ChannelStatistics(mean[:channels], std[:channels]), semantic)
        identity = LatentIdentity(vae_identity, UNKNOWN, UNKNOWN, _digest(mean, std), UNKNOWN["name"])
        return cls(statistics, identity, None, None)


@dataclass(frozen=True)
class ImportOptions:
    """What a file of weights does not say."""

    kind: Kind
    delta_t: float
    """By how much global time semantics led texture in training."""
    step: int
    batch_size: int
    """Images a step of its training."""
    num_classes: int | None
    """Classes get their numbers as names; None takes the names of the latents, or the numbers of as many as the file has."""


def read_public_statistics(path: Path) -> ChannelStatistics:
    """Read `latents_stats.pt` of LightningDiT's and SFD's public code: `mean` and `std`, tensors of shape (1, C, 1, 1).

    Raises `DataError` if the file is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; download the statistics or mend the path")
    loaded = read_torch_file(path)
    mean, std = loaded.get("mean"), loaded.get("std")
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor) or mean.numel() != max(mean.shape, default=0):
        raise DataError(
            f"{path} holds {', '.join(str(key) for key in loaded)} where tensors mean and std of shape (1, C, 1, 1) were "
            "expected; name the latents_stats.pt of the latents"
        )
    return ChannelStatistics(mean.float().flatten(), std.float().flatten())


def import_denoiser(file: Path, options: ImportOptions, source: LatentSource, out: Path) -> DenoiserManifest:
    """Write the artifact of a public denoiser to the folder `out` in one atomic step and return its manifest.

    Raises `DataError` if the file is no such denoiser or does not fit the latents, `ConfigError` for options that do not
    fit the file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; remove it or name another folder")
    model = lightningdit_from(read_public_checkpoint(file))
    statistics = _statistics(model, options.kind, source.statistics, file)
    variant = _variant(model, options, file)
    classes = _classes(model, options, source, file)
    if source.grid not in {None, model.grid}:
        raise DataError(
            f"{file} generates latents on a {model.grid}x{model.grid} grid, but the encoded ones have "
            f"{source.grid}x{source.grid}; encode images at the resolution that it was trained with"
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
    """Return the statistics of the parts that the denoiser generates, having checked that there are as many channels."""
    texture = len(known.texture.mean)
    semantic = 0 if known.semantic is None else len(known.semantic.mean)
    wanted = texture + semantic if COMPOSITE[kind] else texture
    if COMPOSITE[kind] and model.in_channels == texture:
        raise DataError(f"{file} generates {texture} channels, which is texture alone; import it as lightningdit")
    if COMPOSITE[kind] and known.semantic is None:
        raise DataError(
            f"{file} generates {model.in_channels} channels, but statistics of texture's {texture} alone were given; name the "
            "semantic latent's too, after texture's"
        )
    if not COMPOSITE[kind] and model.embedders == 2:
        raise DataError(f"{file} has the two clocks of SFD and generates semantics beside texture; import it as sfd")
    if model.in_channels != wanted:
        raise DataError(
            f"{file} generates {model.in_channels} channels, but the latents have {texture} of texture and {semantic} of "
            f"semantics, of which {kind} generates {wanted}; name the latents that it was trained on"
        )
    return known if COMPOSITE[kind] else LatentStatistics(known.texture, None)


def _variant(model: LightningDiT, options: ImportOptions, file: Path) -> VariantParams:
    """Describe the network; what only its training used is that of the published long recipe."""
    if COMPOSITE[options.kind] and model.embedders == 1 and options.delta_t > 0:
        raise ConfigError(
            f"delta_t is {options.delta_t}, but {file} has one clock for texture and semantics, so it was trained without "
            "offset; give --delta-t 0"
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
        f"{', '.join(MODEL_SIZES)} of sfd_core/experiment/sizes.py; name another file"
    )


def _classes(model: LightningDiT, options: ImportOptions, source: LatentSource, file: Path) -> list[str]:
    numbered = options.num_classes is not None or source.classes is None
    count = options.num_classes if options.num_classes is not None else model.num_classes
    names = [str(number) for number in range(count)] if numbered else list(source.classes or [])
    if len(names) != model.num_classes:
        raise DataError(
            f"{file} knows {model.num_classes} classes, but {len(names)} were given; name the latents that it was trained on, "
            "or --num-classes"
        )
    return names


def _digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()
