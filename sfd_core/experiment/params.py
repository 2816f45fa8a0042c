"""Every value of an experiment, typed and checked before any compute. `params.yaml` holds all of them; there are no defaults.

A setting that may be left out means then what the code did before there was a choice. This never changes, as DVC compares what
is written: another default would run nothing again. A new setting that is to have another value is written.

The groups of `Params` are the stages of `dvc.yaml`. `variants` defines the denoisers.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfd_core.experiment.sizes import MODEL_SIZES, SizeName
from sfd_core.experiment.values import parse_yaml, read_utf8
from sfd_core.host.errors import ConfigError
from sfd_core.host.names import NAME_RULE, Name

Positive = Annotated[int, Field(ge=1)]
Samples = Annotated[int, Field(ge=5)]
"""Precision and recall with k = 3 cannot be told of fewer images."""
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Offset = Annotated[float, Field(ge=-1, le=1)]
Precision = Literal["float32", "bfloat16"]
Corners = TypeVar("Corners", bound=Sequence[Sequence[float]])
Weighting = Literal["uniform", "logit_normal", "likelihood"]
Seed = Annotated[int, Field(ge=0, lt=2**62)]
"""Also a folder's name."""

SHORT = reprlib.Repr()
"""Shows a given value; one that anchors multiply may be larger than the memory."""
SHORT.maxlevel, SHORT.maxdict, SHORT.maxlist, SHORT.maxstring, SHORT.maxlong, SHORT.maxother = 3, 10, 20, 200, 60, 200

LABELS = {
    "twemoji": ("category", "subcategory"),
    "avatars": ("style",),
    "folder": ("folder",),
    "tar": ("folder", "stored"),
    "parquet": ("stored",),
}
"""Possible labels of each image source."""
LATENTS = ("prepare", "texture_vae", "features", "semantic_vae", "encode")
"""Groups that determine the latents."""
ExtractorName = Literal["inception", "dinov2", "efficientnet_lite2", "efficientnet_lite0"]


class Group(BaseModel):
    """Base of all groups: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def monotone_path(corners: Corners) -> Corners:
    """Return corners (t_tex, t_sem); raises `ValueError` unless they lead from (0, 0) to (1, 1) without a step back."""
    if [tuple(corner) for corner in (*corners[:1], *corners[-1:])] != [(0, 0), (1, 1)]:
        raise ValueError(f"the path {list(corners)} must begin with [0, 0] (noise) and end with [1, 1] (data)")
    for before, corner in pairwise(corners):
        if corner[0] < before[0] or corner[1] < before[1]:
            raise ValueError(f"the path steps back to {list(corner)}; local times must not fall")
    return corners


PathCorners = Annotated[
    list[Annotated[list[Fraction], Field(min_length=2, max_length=2)]], Field(min_length=2), AfterValidator(monotone_path)
]
AnyGroup = TypeVar("AnyGroup", bound=Group)


class Optimisation(Group):
    """How one network is optimised."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices of a denoiser's blocks, AdamW for the rest. May be left out."""

    steps: Positive
    """Optimiser steps."""
    batch_size: Positive
    """Images a step."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Linear warm-up from zero."""
    decay_steps: Annotated[int, Field(ge=0)]
    """Steps of the cosine decay at the end of training; 0 keeps the rate constant."""
    final_rate: Fraction
    """Rate after the decay, as a fraction of the learning rate."""
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)]
    weight_decay: NonNegative
    clip_norm: NonNegative
    """Largest gradient norm; 0 disables clipping."""
    precision: Precision
    checkpoint_every: Positive
    """Steps between resumable checkpoints."""
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} exceed steps {self.steps}; reduce them"
            )
        return self


def _require_adamw(optimisation: Optimisation) -> None:
    if optimisation.optimizer != "adamw":
        raise ValueError(f"optimisation.optimizer is {optimisation.optimizer}, which is for denoisers alone; set it to adamw")


class PrepareParams(Group):
    """Images: source, size, classes and held-out split."""

    source: Literal["twemoji", "avatars", "folder", "tar", "parquet"]
    path: str | None
    """Root of the class folders for `folder`; for `tar` and `parquet` one file, a folder of files, or a pattern such as
    `data/train-*.parquet`; null for twemoji and avatars, which are drawn."""
    styles: Annotated[list[str], Field(min_length=1)] | None = None
    """Styles of the avatars, which are their classes; only for avatars, may be left out otherwise."""
    per_style: Positive | None = None
    """Avatars drawn of each style, of which equal ones are dropped; like `styles`."""
    held_out_path: str | None
    """Held-out images with the same classes as `path` (ImageNet's validation set); null holds out a fraction of `path`."""
    labels: Literal["category", "subcategory", "style", "folder", "stored"]
    """What a class is: the emoji's category or subcategory, the avatar's style, the image's folder (folder, tar), or the number
    stored with the image (WebDataset shards in tar files, parquet)."""
    resolution: Positive
    """Side of the square images, in pixels."""
    copies: Positive
    """Renderings per training image; the first is plain, the others are shifted and scaled (twemoji only)."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | None
    """Fraction of the images that is held out, chosen by a hash of their names; null with a `held_out_path`."""
    skip_unreadable: bool
    """Skip and report unreadable files instead of stopping."""
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        drawn = self.source in ("twemoji", "avatars")
        if drawn != (self.path is None):
            raise ValueError(
                f"source {self.source!r} with path {self.path!r}: files need a path, twemoji and avatars have none (null)"
            )
        if (self.source == "avatars") != (self.styles is not None) or (self.styles is None) != (self.per_style is None):
            raise ValueError(
                f"source {self.source!r} with styles {self.styles} and per_style {self.per_style}: avatars need both, other "
                "sources take neither"
            )
        if self.styles is not None and len(set(self.styles)) != len(self.styles):
            raise ValueError(f"styles names a style twice: {', '.join(self.styles)}")
        if self.labels not in LABELS[self.source]:
            raise ValueError(
                f"labels {self.labels!r} do not exist for source {self.source!r}; use {' or '.join(LABELS[self.source])}"
            )
        if drawn and self.held_out_path is not None:
            raise ValueError(f"held_out_path is {self.held_out_path!r}, but {self.source} has no held-out set; set it to null")
        if (self.held_out is None) == (self.held_out_path is None):
            raise ValueError(
                f"held_out {self.held_out} with held_out_path {self.held_out_path!r}: give the fraction of path that is held "
                "out or the path of held-out images, and set the other to null"
            )
        if self.source != "twemoji" and self.copies != 1:
            raise ValueError(f"copies is {self.copies}, but only twemoji has several renderings; set it to 1")
        return self


Downsampling = Literal[4, 8, 16, 32]
"""Pixels per latent position along one side."""


class TrainedVAEParams(Group):
    """An image VAE trained by the stage: a PCA of patches plus a convolutional residual."""

    kind: Literal["trained"]
    channels: Positive
    """Channels of the texture latent."""
    downsampling: Downsampling
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    """Channels of the convolutional residual; normalised in 8 groups."""
    depth: Positive
    """Residual blocks on the latent grid, in the encoder and in the decoder."""
    kl_weight: NonNegative
    learning_rate: PositiveFloat
    optimisation: Optimisation

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require_adamw(self.optimisation)
        values = 3 * self.downsampling**2
        if self.channels > values:
            raise ValueError(
                f"channels {self.channels} exceed the {values} values of a patch of {self.downsampling} pixels, whose "
                f"principal components they start from; set channels to {values} or less, or raise downsampling"
            )
        return self


class PublishedVAEParams(Group):
    """A published image VAE: its file is read, converted and checked, not trained."""

    name: Annotated[str, Field(min_length=1)]
    """Name, such as `sd-vae-f16d32-50ep`; with the hash of the weights, part of the identity of the latents."""
    channels: Positive
    """Channels of the texture latent; must match the file."""
    downsampling: Downsampling


class LDMVAEParams(PublishedVAEParams):
    """An AutoencoderKL in the format of latent diffusion, such as SD-VAE f16d32, VA-VAE f16d32 or Stable Diffusion's f8d4."""

    kind: Literal["ldm"]
    weights: Annotated[str, Field(min_length=1)]
    """Path of the checkpoint; its weights determine the network's sizes."""


class DiffusersVAEParams(PublishedVAEParams):
    """An AutoencoderKL, or a representation autoencoder (AutoencoderRAE), in the format of diffusers."""

    kind: Literal["diffusers"]
    weights: Annotated[str, Field(min_length=1)]
    """Folder with `config.json`, the weights file next to one, or a repository on the Hugging Face hub."""
    subfolder: str | None
    """Folder of the VAE inside `weights`, such as `vae`; null if it is at the top level."""


TextureVAEParams = TrainedVAEParams | LDMVAEParams | DiffusersVAEParams
"""The image VAE: pixels to the texture latent and back."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "texture_vae": ("trained", "ldm", "diffusers"),
    "times": ("global", "own", "independent"),
    "schedule": ("least_cost", "learned"),
    "studies": ("offsets", "corners", "error_field", "guidance"),
}
"""Groups with several variants, selected by their key `kind`."""


class EncoderParams(Group):
    """A frozen encoder and its input."""

    encoder: str
    """A timm model name."""
    weights: str
    """`package` (weights shipped by an installed package), `hub`, or the path of a local file."""
    input_size: Positive
    """Side in pixels that images are resized to before the encoder."""
    grid: Positive
    """Side of the token grid."""
    precision: Precision
    """Precision of the encoder's layers; tokens are always stored as float16."""


class FeaturesParams(EncoderParams):
    """Patch tokens of the frozen semantic encoder."""

    batch_size: Positive
    """Images per forward pass of the encoder."""
    store: bool
    """Store all tokens (4 C g^2 bytes per image: 1 TB for ImageNet and DINOv2-B), or only their statistics. In the second case
    later stages compute tokens again, which needs the encoder's weights and makes training slower."""


class SemanticVAEParams(Group):
    """The compressor of patch tokens (SFD, arXiv 2512.04926, section 3.1), and the PCA that ReDi uses instead."""

    weights: str | None
    """Path of a published checkpoint to use instead of training; null trains."""
    standardise: bool
    """Normalise every token channel to mean 0 and deviation 1 first; the paper and its public weights use raw tokens."""
    channels: Positive
    width: Positive
    depth: Positive
    heads: Positive
    kl_weight: NonNegative
    pca_channels: Positive
    learning_rate: PositiveFloat
    optimisation: Optimisation

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of its {self.heads} heads")
        _require_adamw(self.optimisation)
        if self.weights is not None and self.standardise:
            raise ValueError(
                "standardise is true, but published weights take raw tokens; set standardise to false or weights to null"
            )
        return self


class EncodeParams(Group):
    """Latents of all images, stored on disk."""

    posterior: Literal["sample", "moments"]
    """`sample` (the paper) stores one sample of each VAE's posterior. `moments` stores its mean and standard deviation, twice
    the bytes, and every training step draws a new sample. PCA has no posterior; its coordinates are stored."""
    dtype: Literal["float16", "float32"]
    texture_energy_power: Fraction = 0.0
    """Normalised texture channels have a deviation proportional to (share of the pixel energy that they decode to)^power: 0,
    which may be left out, whitens them; with 0.5 they differ as much as the pixels that they stand for."""
    batch_size: Positive
    seed: Seed
    """Seed of the stored posterior sample; with `moments`, of the sample that is used everywhere except in training."""


class TrainParams(Group):
    """Training settings that all variants share."""

    optimisation: Optimisation
    """Each variant has its own learning rate."""
    snapshots: Positive
    """Number of EMA snapshots, evenly spaced; the last one is at the final step."""
    ema_decay: BelowOne
    power_emas: list[Annotated[float, Field(gt=0, lt=0.288)]] = []
    """Relative widths of power-function averages stored at every snapshot, from which `sfd ema` makes averages of any width
    (arXiv 2312.02696, section 3); two, such as 0.05 and 0.1, are enough. May be left out."""
    ema_warmup: bool
    """Decay min(ema_decay, (1 + step) / (10 + step)) instead of ema_decay from the start."""
    conditional: bool = True
    """Whether denoisers see the labels; may be left out. Without, every image has the null class in training and sampling."""
    class_dropout: BelowOne
    """Fraction of labels replaced by the null class; classifier-free guidance needs some."""
    flips: bool
    """Randomly mirror images when they are loaded."""
    validation_images: Annotated[int, Field(ge=0)] = 0
    """Held-out images of the validation loss, which is taken at every snapshot; 0, which may be left out, takes none."""


class EngineParams(Group):
    """How networks run on this machine. Results are equal up to rounding, so changing this group runs nothing again."""

    sharding: Literal["none", "fsdp"]
    """With several processes, each holds the whole denoiser, EMA and optimiser (DDP) or a shard of them (FSDP)."""
    micro_batch: Positive | None
    """Most images per forward pass of a process; gradients accumulate. null uses the whole share of the process."""
    activation_checkpointing: bool
    """Recompute the denoiser's activations in the backward pass instead of storing them."""
    compile: bool
    """Compile the denoiser's blocks for training and sampling (torch.compile); takes a minute and needs a C++ compiler."""
    checkpoint_seconds: PositiveFloat
    """Most seconds between resumable checkpoints, in addition to `checkpoint_every`."""
    keep_last: Annotated[int, Field(ge=2)]
    """Number of checkpoints kept during training; if the newest is damaged, the one before it is used."""
    keep_every: Positive | None
    """Also keep every checkpoint at a multiple of this step, even after training; null keeps none."""
    milestones: list[Positive]
    """Also keep the checkpoints of these steps."""

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of `step` is kept after training."""
        return step in self.milestones or (self.keep_every is not None and step % self.keep_every == 0)

    def for_small_networks(self) -> Self:
        """Return the settings for the VAEs, which are neither sharded nor compiled."""
        plain = {"sharding": "none", "activation_checkpointing": False, "compile": False, "keep_every": None, "milestones": []}
        return self.model_copy(update=plain)


class RepaParams(Group):
    """Alignment of hidden states with the encoder's patch tokens (REPA)."""

    weight: NonNegative
    """0 disables REPA."""
    mode: Literal["cosine", "cosine+mse"]
    targets: Literal["encoder", "semantic"]
    """`encoder` (the paper): the encoder's tokens, stored or computed (`features.store`). `semantic`: tokens that the Semantic
    VAE decodes from the stored semantic latent, which needs neither 4 C g^2 bytes per image nor the encoder."""
    block: Positive
    """The hidden state after this block is aligned."""
    width: Positive
    """Hidden width of the three-layer projector."""


class InnerParams(Group):
    """A light head that predicts the velocity from an inner block, for internal guidance."""

    block: Positive
    """The hidden state after this block is read."""
    weight: PositiveFloat
    """Of the head's loss, which has the terms of the network's own."""


class GlobalTimes(Group):
    """Training times of the paper: one global time on the path."""

    kind: Literal["global"]


class IndependentTimes(Group):
    """Training times of any order: texture and semantics have independent times."""

    kind: Literal["independent"]
    absent: BelowOne
    """Share of the images whose semantics are pure noise, which semantic guidance needs."""


class OwnTimes(Group):
    """Training times of Latent Forcing (arXiv 2602.11401): each image trains one part, at a time of that part's own."""

    kind: Literal["own"]
    semantic_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images that train semantics."""
    handover_noise: Fraction
    """h: texture is trained with semantics at U(1 - h, 1) of their time on the path."""
    absent: BelowOne
    """Share of the images that train texture whose semantics are pure noise, which semantic guidance needs."""


TimesParams = GlobalTimes | OwnTimes | IndependentTimes
"""How training draws the local times of texture and semantics."""


class VariantParams(Group):
    """One denoiser and how it is trained and sampled."""

    model: Literal["lightningdit", "dit"]
    size: SizeName
    patch: Positive
    """Latent positions per token along one side."""
    semantic: Literal["none", "vae", "pca"]
    """The semantic latent generated beside the texture latent: none, the Semantic VAE's, or PCA (ReDi)."""
    delta_t: Offset
    """Offset in global time by which semantics lead texture; 1 finishes them first, a negative one lets texture lead."""
    path: PathCorners | None = None
    """Corners of the path, instead of an offset, from [0, 0] (noise) to [1, 1] (data). May be left out."""
    found_path: bool = False
    """Take the path that stage `schedule` finds. May be left out."""
    times: Annotated[TimesParams, Field(discriminator="kind")] = GlobalTimes(kind="global")
    """May be left out, as in parameter files and models from before there was a choice."""
    prediction: Literal["velocity", "data"] = "velocity"
    """What the network predicts; the loss is that of the velocity. `data` is JiT's and RAEv2's. May be left out."""
    semantic_weight: NonNegative
    """beta: weight of the semantic channels in the mse term."""
    cosine_weight: NonNegative
    repa: RepaParams
    inner: InnerParams | None = None
    """null, which may be left out, is no inner head."""
    mask_clamped: bool
    """Ablation: leave a latent out of the loss where its time is clamped."""
    learning_rate: PositiveFloat
    seed: Seed

    @property
    def family(self) -> Literal["gaussian", "flow"]:
        """`gaussian`: DiT's discrete noise levels, epsilon and learned variance; `flow`: velocity."""
        return "gaussian" if self.model == "dit" else "flow"

    def has(self, key: str) -> bool:
        """Whether the value of a dotted key can vary in this variant: texture alone has no offset, DiT no REPA."""
        group: Any = self
        for name in key.split("."):
            if not isinstance(group, Group) or name not in type(group).model_fields:
                return False
            group = getattr(group, name)
        of_semantics = {"delta_t", "path", "found_path", "times", "semantic_weight", "mask_clamped"}
        idle = of_semantics if self.semantic == "none" else set()
        idle |= {"mask_clamped"} if self.times.kind != "global" else set()
        idle |= {"semantic", "cosine_weight", "repa", "inner", "prediction"} if self.model == "dit" else set()
        return key.partition(".")[0] not in idle

    @model_validator(mode="after")
    def _check(self) -> Self:
        orders = [self.delta_t != 0, self.path is not None, self.found_path]
        if sum(orders) > 1:
            raise ValueError(f"delta_t is {self.delta_t}, but a path is given, too; set delta_t to 0 or path to null")
        if self.semantic == "none" and (any(orders) or self.times.kind != "global"):
            raise ValueError(
                f"delta_t is {self.delta_t}, path {self.path} and times {self.times.kind}, but there is no semantic latent; "
                "set semantic to vae or pca, or delta_t to 0, path to null and times to {kind: global}"
            )
        if self.mask_clamped and self.times.kind != "global":
            raise ValueError(f"mask_clamped has no meaning with times of kind {self.times.kind}; set it to false")
        others = self.repa.weight > 0 or self.cosine_weight > 0 or self.inner is not None or self.prediction != "velocity"
        if self.model == "dit" and (self.semantic != "none" or others):
            raise ValueError(
                "model dit is the texture-only DiT baseline: set semantic to none, repa.weight and cosine_weight to 0, "
                "and leave out inner and prediction"
            )
        depth = MODEL_SIZES[self.size].depth
        if self.inner is not None and self.inner.block >= depth:
            raise ValueError(f"inner.block {self.inner.block} is not inside the {depth} blocks of size {self.size}")
        if self.repa.weight > 0 and self.repa.block > depth:
            raise ValueError(f"repa.block {self.repa.block} is beyond the {depth} blocks of size {self.size}")
        if self.repa.weight > 0 and self.repa.targets == "semantic" and self.semantic == "pca":
            raise ValueError(
                "repa.targets is semantic, which needs the Semantic VAE, but semantic is pca; "
                "set repa.targets to encoder or semantic to vae"
            )
        return self


class GuidanceParams(Group):
    """Guidance of one part: v = v_ref + scale (v_main - v_ref) while the part's own time is inside the interval."""

    scale: NonNegative
    """1 means no guidance."""
    interval: Annotated[list[float], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval {self.interval} must be two times with 0 <= first < second <= 1")
        return self


class SamplerParams(Group):
    """How images are sampled from a denoiser."""

    solver: Literal["euler", "heun", "ab2", "dopri5"]
    """For velocity models."""
    gaussian_solver: Literal["ddpm", "ddim"]
    """For DiT."""
    evaluations: Positive
    """Network evaluations per image (dopri5 chooses and reports its own number)."""
    shift: PositiveFloat
    """Timestep shift s: t' = s t / (1 + (s - 1) t); 1 means no shift."""
    delta_t: Offset | None = None
    """Offset to sample along; null is the variant's own. May be left out, as in older files."""
    path: PathCorners | None = None
    """Corners of the path to sample along, instead of an offset. May be left out."""
    guidance: Literal["none", "cfg", "autoguidance", "internal", "semantic"]
    """`internal`: extrapolate from the velocity of the inner head, in the same pass. `semantic`: extrapolate texture from its
    velocity without semantics, that of the guide if there is one."""
    guide: str | None
    """Folder of the weak model's training output, for AutoGuidance and, if wanted, semantic guidance."""
    guide_step: Positive | None = None
    """Snapshot of the weak model; null is its last. May be left out."""
    precision: Precision = "float32"
    """Of the networks; solver, times and guidance are float32. May be left out."""
    texture: GuidanceParams
    semantic: GuidanceParams
    batch_size: Positive
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = ("autoguidance", "semantic") if self.guide is not None else ("none", "cfg", "internal", "semantic")
        if self.guidance not in kinds:
            raise ValueError(
                f"guidance {self.guidance!r} with guide {self.guide!r}: autoguidance needs a guide, semantic may have one, "
                "other kinds take none"
            )
        if self.path is not None and self.delta_t is not None:
            raise ValueError(f"delta_t is {self.delta_t}, but a path is given, too; set one of them to null")
        if self.guide_step is not None and self.guide is None:
            raise ValueError(f"guide_step is {self.guide_step}, but there is no guide; set it to null")
        if self.guidance == "semantic" and self.semantic.scale != 1:
            raise ValueError(
                f"semantic.scale is {self.semantic.scale}, but semantic guidance acts on texture alone; set it to 1"
            )
        for part in ("texture", "semantic"):
            scale = getattr(self, part).scale
            if self.guidance == "none" and scale != 1:
                raise ValueError(
                    f"{part}.scale is {scale}, but guidance is none, which would ignore it; choose a guidance or 1"
                )
        if self.solver == "heun" and self.evaluations < 2:
            raise ValueError(f"evaluations is {self.evaluations}, but heun needs two per step; set it to 2 or more")
        return self


class ReferenceParams(Group):
    """The evaluators, and the statistics of real images that they compare with."""

    extractors: Annotated[list[ExtractorName], Field(min_length=1)]
    inception_weights: str | None
    """Path of torch-fidelity's Inception weights; null downloads them when `inception` is asked for."""
    adm_npz: str | None
    """Path of an ADM reference file, such as VIRTUAL_imagenet256_labeled.npz, for `inception`, as in published numbers; null
    compares with the training images."""
    batch_size: Positive

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.adm_npz is not None and "inception" not in self.extractors:
            raise ValueError(
                f"adm_npz {self.adm_npz!r} holds Inception's statistics, but extractors are {', '.join(self.extractors)}; "
                "add inception to them or set adm_npz to null"
            )
        return self


class EvaluateParams(Group):
    """How many samples are evaluated, and how they are drawn."""

    snapshot_samples: Samples
    """Samples at every snapshot but the last."""
    final_samples: Samples
    """Samples at the last snapshot."""
    kid_subset_size: Annotated[int, Field(ge=2)]
    """The unbiased kernel distance needs two images of either kind."""
    neighbours: Positive
    """Number of samples shown with their nearest training image. (k of precision and recall is always 3.)"""
    oracle: bool
    """Also generate texture from real images' semantics, with variants that finish semantics first or know any order."""
    sampler: SamplerParams


class OffsetStudy(Group):
    """The distance of one denoiser over the offset along which it is sampled."""

    kind: Literal["offsets"]
    variant: str
    """One with independent times: it alone knows every path."""
    offsets: Annotated[list[Offset], Field(min_length=1)]


class CornerStudy(Group):
    """The distance of one denoiser over the corner of a path of two straight pieces: a map of orders."""

    kind: Literal["corners"]
    variant: str
    """One with independent times."""
    times: Annotated[list[Fraction], Field(min_length=2)]
    """Local times of either part; every pair of them is a corner."""


class ErrorFieldParams(Group):
    """How an error field is measured and weighted."""

    points: Annotated[int, Field(ge=3)]
    """Local times of either part, evenly spaced from 0 to 1."""
    images: Positive
    """Held-out images, evenly spaced."""
    weighting: Weighting
    """Weight of an error over the part's own local time; `logit_normal` is the density of the training times."""


class ErrorFieldStudy(ErrorFieldParams):
    """The velocity errors of one denoiser over both local times, and its distance along the paths that cost least on them."""

    kind: Literal["error_field"]
    variant: str
    """One with independent times."""
    semantic_weights: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Weights of semantic errors relative to those of texture; each has a least-cost path."""


class GuidanceStudy(Group):
    """The distance of one denoiser over the guidance scale."""

    kind: Literal["guidance"]
    variant: str
    guidance: Literal["cfg", "autoguidance", "internal", "semantic"]
    guide_step: Positive | None
    """The guide is this snapshot of the same training; null for kinds without a guide."""
    parts: Literal["both", "texture", "semantic"]
    """What is guided."""
    scales: Annotated[list[NonNegative], Field(min_length=1)]


StudyParams = OffsetStudy | CornerStudy | ErrorFieldStudy | GuidanceStudy
"""A curve of one trained denoiser: every point is `evaluate.final_samples` samples of its last snapshot."""


class FoundSchedule(Group):
    """A path that a short training finds, the probe, for the variants that have `found_path`."""

    size: SizeName
    patch: Positive
    semantic: Literal["vae", "pca"]
    learning_rate: PositiveFloat
    """Constant after the warm-up; all else of the probe's training is as in `train`."""
    steps: Positive
    semantic_weight: PositiveFloat
    """Weight of semantic errors relative to those of texture."""
    seed: Seed


class LeastCostSchedule(FoundSchedule, ErrorFieldParams):
    """The path that costs least on the error field of a probe of any order."""

    kind: Literal["least_cost"]


class LearnedSchedule(FoundSchedule):
    """A path that is trained together with the probe."""

    kind: Literal["learned"]
    knots: Annotated[int, Field(ge=2)]
    """Straight pieces of the path."""
    kinetic: NonNegative
    """Weight of the kinetic energy, the mean squared speed of both parts."""


ScheduleParams = LeastCostSchedule | LearnedSchedule
"""How the path of variants with `found_path` is found."""


class ReportParams(Group):
    """What the report shows."""

    title: str
    baseline: str
    """The variant to which convergence is compared."""
    grid_images: Positive
    """Samples per variant in the grid, with equal seeds side by side."""


class Params(Group):
    """The whole experiment: one group per stage."""

    prepare: PrepareParams
    texture_vae: Annotated[TextureVAEParams, Field(discriminator="kind")]
    features: FeaturesParams
    semantic_vae: SemanticVAEParams
    encode: EncodeParams
    schedule: Annotated[ScheduleParams, Field(discriminator="kind")] | None
    """null where no variant has `found_path`."""
    train: TrainParams
    reference: ReferenceParams
    evaluate: EvaluateParams
    studies: dict[Name, Annotated[StudyParams, Field(discriminator="kind")]]
    """Curves of trained denoisers, by name; those of variants that are not active are not measured."""
    report: ReportParams
    engine: EngineParams
    active: Annotated[list[str], Field(min_length=1)]
    """The variants that are trained and compared."""
    variants: dict[Name, VariantParams]

    def given(self) -> dict[str, Any]:
        """Return the values as the parameter file gives them, without those that it left out: DVC compares what is written."""
        return self.model_dump(mode="json", exclude_unset=True)

    def active_studies(self) -> dict[str, StudyParams]:
        """Return the studies of active variants."""
        return {name: study for name, study in self.studies.items() if study.variant in self.active}

    def studies_of(self, variant: str) -> dict[str, StudyParams]:
        """Return the studies of one variant."""
        return {name: study for name, study in self.studies.items() if study.variant == variant}

    @property
    def latent_grid(self) -> int:
        """Side of the latent grid."""
        return self.prepare.resolution // self.texture_vae.downsampling

    def semantic_channels(self, variant: VariantParams) -> int:
        """Channels of the semantic latent that `variant` generates."""
        sizes = {"none": 0, "vae": self.semantic_vae.channels, "pca": self.semantic_vae.pca_channels}
        return sizes[variant.semantic]

    def variant(self, name: str) -> VariantParams:
        """Return the variant `name`. Raises `ConfigError` for an unknown one."""
        if name not in self.variants:
            raise ConfigError(f"unknown variant {name!r}; params.yaml defines {', '.join(self.variants)}")
        return self.variants[name]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_grids()
        self._check_variants()
        self._check_orders()
        self._check_studies()
        return self

    def _check_grids(self) -> None:
        resolution, factor = self.prepare.resolution, self.texture_vae.downsampling
        if resolution % factor:
            raise ValueError(f"prepare.resolution {resolution} is not a multiple of texture_vae.downsampling {factor}")
        if self.features.grid != self.latent_grid:
            raise ValueError(
                f"features.grid {self.features.grid} differs from the texture latent's grid {self.latent_grid} "
                f"(resolution {resolution} / downsampling {factor}); both latents must lie on one grid"
            )

    def _check_variants(self) -> None:
        for name in [*self.active, self.report.baseline, *(study.variant for study in self.studies.values())]:
            if name not in self.variants:
                raise ValueError(f"unknown variant {name!r}; variants defines {', '.join(self.variants)}")
        if len(set(self.active)) != len(self.active):
            raise ValueError(f"active names a variant twice: {', '.join(self.active)}")
        for name, variant in self.variants.items():
            if self.latent_grid % variant.patch:
                raise ValueError(f"variants.{name}.patch {variant.patch} does not divide the latent grid {self.latent_grid}")

    def _check_orders(self) -> None:
        """Require that every variant can be sampled in its order, and in that of the sampler."""
        if self.schedule is not None and self.latent_grid % self.schedule.patch:
            raise ValueError(f"schedule.patch {self.schedule.patch} does not divide the latent grid {self.latent_grid}")
        if isinstance(self.schedule, LearnedSchedule) and any(self.variants[name].found_path for name in self.active):
            self._check_phases(f"schedule.knots {self.schedule.knots}", self.schedule.knots)
        sampler = self.evaluate.sampler
        chosen = "path" if sampler.path is not None else "delta_t"
        order = getattr(sampler, chosen)
        if order is not None:
            self.check_budget(f"evaluate.sampler.{chosen}", order)
        for name in self.active:
            variant = self.variants[name]
            if variant.found_path and self.schedule is None:
                raise ValueError(f"variants.{name}.found_path is true, but schedule is null, so none is found; set schedule")
            if variant.found_path and self.schedule is not None and self.schedule.semantic != variant.semantic:
                raise ValueError(
                    f"variants.{name}.found_path is true, but schedule.semantic is {self.schedule.semantic} and the variant's "
                    f"semantic {variant.semantic}, so the path found would be that of other latents; set both to one"
                )
            own = "delta_t" if variant.path is None else "path"
            self.check_budget(f"variants.{name}.{own}", getattr(variant, own))
            if self.evaluate.oracle and variant.times.kind == "independent":
                self.check_budget("evaluate.oracle of the offset", 1.0)
            if order and variant.semantic == "none":
                raise ValueError(
                    f"evaluate.sampler.{chosen} is {order}, but active variant {name} has no semantics that could lead; "
                    "set it to null"
                )

    def _check_studies(self) -> None:
        for name, study in self.active_studies().items():
            if isinstance(study, OffsetStudy):
                for offset in study.offsets:
                    self.check_budget(f"studies.{name}.offsets", offset)
            if isinstance(study, CornerStudy):
                self.check_budget(f"studies.{name}.times", [[0, 0], study.times[:2], [1, 1]])
            if not isinstance(study, GuidanceStudy) and self.variants[study.variant].times.kind != "independent":
                raise ValueError(f"studies.{name}.variant {study.variant} has one path; name a variant with independent times")

    def check_budget(self, key: str, order: float | Sequence[Sequence[float]]) -> None:
        """Raise `ValueError` unless there is one interval per phase of an offset or path, as sampling will need."""
        lead = abs(order) if isinstance(order, float) else 0
        phases = len(order) - 1 if not isinstance(order, float) else 3 if 0 < lead < 1 else 1 + int(lead)
        self._check_phases(f"{key} {order}", phases)

    def _check_phases(self, path: str, phases: int) -> None:
        sampler = self.evaluate.sampler
        least, reason = (2 * phases, "two per phase with heun") if sampler.solver == "heun" else (phases, "one per phase")
        if sampler.evaluations < least:
            raise ValueError(
                f"evaluate.sampler.evaluations is {sampler.evaluations}, but {path} needs "
                f"at least {least} ({reason}). Set it to {least} or more."
            )


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file.

    Raises `ConfigError` that lists every bad value with the reason and the fix.
    """
    try:
        text = read_utf8(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; run this in the project folder or name a parameter file") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name a parameter file") from error
    return parse_params(parse_yaml(text, str(path)), source=str(path))


def parse_params(values: Any, source: str = "params") -> Params:
    """Check loaded values; see `load_params`."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(detail)}" for detail in error.errors())
        raise ConfigError(f"{source} is not a valid experiment:\n{lines}") from error


def parse_sampler(values: Mapping[str, Any], source: str) -> SamplerParams:
    """Check the values of a sampler. Raises `ConfigError` that names those that are impossible."""
    return parse_group(SamplerParams, values, f"{source} cannot be drawn")


def parse_group(group: type[AnyGroup], values: Mapping[str, Any], what: str) -> AnyGroup:
    """Check the values of one group. Raises `ConfigError`, which begins with `what`, naming those that are impossible."""
    try:
        return group.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{what}: {'; '.join(_explain(detail) for detail in error.errors())}") from error


def fingerprint(*values: Any) -> str:
    """Return a short hash of groups or plain values; a setting that may be left out changes nothing at its default."""
    plain = [
        value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value for value in values
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _explain(detail: Any) -> str:
    where = ".".join(_keys(detail["loc"])) or "the file"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key; check its spelling or remove it"
    if detail["type"] == "missing":
        return f"{where}: missing; every value of an experiment must be given"
    if detail["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        kinds = ", ".join(KINDS[where.split(".")[0] if where.startswith("studies.") else where.rpartition(".")[2]])
        return f"{where}.kind: must be one of {kinds} (given: {detail['input'].get('kind')!r})"
    if detail["type"] == "string_pattern_mismatch":  # of names alone
        return f"{where.removesuffix('.[key]')}: cannot be a name; {NAME_RULE}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{where}: {message}" if detail["loc"] else message  # several values do not fit, and the message names them
    return f"{where}: {message} (given: {SHORT.repr(detail['input'])})"


def _keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the nested keys of a value without the `kind` that pydantic inserts."""
    parts = [str(part) for part in location]
    if parts[:1] == ["studies"]:
        return [*parts[:2], *parts[3:]]
    return [part for before, part in pairwise(["", *parts]) if part not in KINDS.get(before, ())]
