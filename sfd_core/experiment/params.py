"""Every value of an experiment, typed and checked before any compute. `params.yaml` holds them all: no hidden defaults.

The groups of `Params` are the stages of `dvc.yaml`; `variants` names the denoisers that are trained and compared.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfd_core.experiment.sizes import MODEL_SIZES, SizeName
from sfd_core.host.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]

LABELS = {"twemoji": ("category", "subcategory"), "folder": ("folder",), "tar": ("folder", "stored"), "parquet": ("stored",)}
"""What a class can be in each source of images."""
ExtractorName = Literal["inception", "dinov2", "efficientnet_lite2", "efficientnet_lite0"]


class Group(BaseModel):
    """Base of all groups: immutable, strictly typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Optimisation(Group):
    """How one network is optimised with AdamW."""

    steps: Positive
    """Optimiser steps."""
    batch_size: Positive
    """Images a step."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Linear warm-up from zero."""
    decay_steps: Annotated[int, Field(ge=0)]
    """Length of the cosine decay at the end of training; 0 keeps the rate constant."""
    final_rate: Fraction
    """Rate at the end of the decay, as a share of the learning rate."""
    betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    weight_decay: NonNegative
    clip_norm: NonNegative
    """Largest gradient norm; 0 leaves gradients alone."""
    precision: Literal["float32", "bfloat16"]
    checkpoint_every: Positive
    """Steps between resumable checkpoints."""
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} exceed steps {self.steps}; shorten them"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        return self


class PrepareParams(Group):
    """Images: where they come from, their size, their classes and the held-out split."""

    source: Literal["twemoji", "folder", "tar", "parquet"]
    path: str | None
    """Root of the class folders for `folder`; for `tar` and `parquet` one file, a folder of files, or a pattern such as
    `data/train-*.parquet`; null for twemoji."""
    held_out_path: str | None
    """Images like those of `path`, of the same classes, that no training sees (ImageNet's validation set); null holds out a
    share of `path`."""
    labels: Literal["category", "subcategory", "folder", "stored"]
    """What a class is: an emoji's category or subcategory, the folder an image lies in (folder, tar), or the number stored
    with it (WebDataset shards in tar files, parquet)."""
    resolution: Positive
    """Side of the square images in pixels."""
    copies: Positive
    """Renderings of each training image; the first is plain, the others are shifted and scaled (twemoji only)."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | None
    """Share of the images, chosen by a hash of their names, that no training sees; null with a `held_out_path`."""
    skip_unreadable: bool
    """Skip (and name) files that are no readable image instead of stopping."""
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.source == "twemoji") != (self.path is None):
            raise ValueError(f"source {self.source!r} with path {self.path!r}: a folder needs a path, twemoji none")
        if self.labels not in LABELS[self.source]:
            raise ValueError(
                f"labels {self.labels!r} do not exist for source {self.source!r}, only {' and '.join(LABELS[self.source])}"
            )
        if self.source == "twemoji" and self.held_out_path is not None:
            raise ValueError(f"held_out_path is {self.held_out_path!r}, but twemoji has no held-out set; set it to null")
        if (self.held_out is None) == (self.held_out_path is None):
            raise ValueError(
                f"held_out {self.held_out} with held_out_path {self.held_out_path!r}: give the share of path that is held out "
                "or the path of held-out images, and set the other to null"
            )
        if self.source != "twemoji" and self.copies != 1:
            raise ValueError(f"copies is {self.copies}, but only twemoji can be rendered more than once; set it to 1")
        return self


Downsampling = Literal[4, 8, 16, 32]
"""Pixels per latent position along one side."""


class TrainedVAEParams(Group):
    """An image VAE that the stage trains: a PCA of patches plus a convolutional residual."""

    kind: Literal["trained"]
    channels: Positive
    """Channels of the texture latent."""
    downsampling: Downsampling
    width: Positive
    """Channels of the convolutional residual, normalised in eight groups."""
    depth: Positive
    """Residual blocks on the latent grid, in the encoder and in the decoder."""
    kl_weight: NonNegative
    learning_rate: PositiveFloat
    optimisation: Optimisation

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % 8:
            raise ValueError(f"width {self.width} is not a multiple of its 8 normalisation groups; choose 8, 16, 24, ...")
        return self


class PublishedVAEParams(Group):
    """A published image VAE: nothing is trained, its file is read, converted and checked."""

    name: Annotated[str, Field(min_length=1)]
    """What it is called, such as `sd-vae-f16d32-50ep`; part of the latents' identity, with the hash of the weights."""
    channels: Positive
    """Channels of the texture latent; the file must have as many."""
    downsampling: Downsampling


class LDMVAEParams(PublishedVAEParams):
    """An AutoencoderKL in the format of latent diffusion, such as SD-VAE f16d32, VA-VAE f16d32 or Stable Diffusion's f8d4."""

    kind: Literal["ldm"]
    weights: Annotated[str, Field(min_length=1)]
    """Path of the checkpoint; the network's sizes are read off its weights."""


class DiffusersVAEParams(PublishedVAEParams):
    """An AutoencoderKL in the format of diffusers."""

    kind: Literal["diffusers"]
    weights: Annotated[str, Field(min_length=1)]
    """Folder that holds `config.json`, the file of weights beside one, or a repository of the Hugging Face hub."""
    subfolder: str | None
    """Folder of the VAE inside `weights`, such as `vae`; null where it lies at the top."""


TextureVAEParams = TrainedVAEParams | LDMVAEParams | DiffusersVAEParams
"""The image VAE: pixels to the texture latent and back."""

KINDS: Mapping[str, tuple[str, ...]] = {"texture_vae": ("trained", "ldm", "diffusers")}
"""Groups that are one of several kinds, told apart by their key `kind`."""


class EncoderParams(Group):
    """A frozen encoder and how images reach it."""

    encoder: str
    """A timm model name."""
    weights: str
    """`package` (weights shipped by an installed package), `hub`, or the path of a local file."""
    input_size: Positive
    """Side in pixels that images are resized to before the encoder."""
    grid: Positive
    """Side of the token grid."""
    precision: Literal["float32", "bfloat16"]
    """Of the encoder's layers; tokens are kept as float16 either way."""


class FeaturesParams(EncoderParams):
    """Patch tokens of the frozen semantic encoder."""

    batch_size: Positive
    """Images the encoder sees at once."""
    store: bool
    """Keep all tokens on disk (4 C g^2 bytes an image: 1 TB for ImageNet and DINOv2-B), or only their statistics: later stages
    then compute them again, which needs the encoder's weights and, when training, time for it."""


class SemanticVAEParams(Group):
    """The compressor of patch tokens (SFD, arXiv 2512.04926, section 3.1), and the PCA that ReDi uses in its place."""

    weights: str | None
    """Path of a published checkpoint that is read instead of training; null trains."""
    standardise: bool
    """Give every token channel mean 0 and deviation 1 first; the paper's and its public weights take raw tokens."""
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
        if self.weights is not None and self.standardise:
            raise ValueError("standardise is true, but published weights take raw tokens; set it to false, or weights to null")
        return self


class EncodeParams(Group):
    """Latents of all images, frozen on disk."""

    posterior: Literal["sample", "moments"]
    """`sample` (the paper): one sample of each VAE's posterior is stored. `moments`: its mean and standard deviation are, twice
    the bytes, and every training step draws a fresh sample. PCA has no posterior and is stored as it is."""
    dtype: Literal["float16", "float32"]
    batch_size: Positive
    seed: Seed
    """Seed of the posterior sample that is frozen; with `moments`, of the one that everything but training draws."""


class TrainParams(Group):
    """What all variants' trainings share."""

    optimisation: Optimisation
    """Each variant names its own learning rate."""
    snapshots: Positive
    """EMA snapshots kept, evenly spaced over the training; the last is the final one."""
    ema_decay: Fraction
    ema_warmup: bool
    """Decay min(ema_decay, (1 + step) / (10 + step)) instead of ema_decay from the start."""
    class_dropout: Fraction
    """Share of labels replaced by the null class."""
    flips: bool
    """Choose between an image and its mirror image at load."""


class EngineParams(Group):
    """How networks are computed on this machine. Results are equal up to rounding: nothing is run again when it changes."""

    sharding: Literal["none", "fsdp"]
    """With several processes: each has a copy of the denoiser, its average and its optimiser (DDP), or a share (FSDP)."""
    micro_batch: Positive | None
    """Most images that a process takes through a network at once; gradients of several add up. null takes its whole share."""
    activation_checkpointing: bool
    """Compute the denoiser's activations again in the backward pass instead of keeping them."""
    compile: bool
    """Compile the denoiser's blocks, in training and for sampling (torch.compile): takes a minute and needs a C++ compiler."""
    checkpoint_seconds: PositiveFloat
    """Most seconds between resumable checkpoints, whatever `checkpoint_every` says."""
    keep_last: Annotated[int, Field(ge=2)]
    """Newest checkpoints that a training in progress keeps; if one is damaged the one before is used."""
    keep_every: Positive | None
    """Besides, keep the checkpoint of every so many steps, after the training too; null keeps none."""
    milestones: list[Positive]
    """Besides, keep the checkpoints of these steps."""

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of `step` outlives the training."""
        return step in self.milestones or (self.keep_every is not None and step % self.keep_every == 0)

    def for_small_networks(self) -> Self:
        """Return the same for a network that is neither cut in shards nor compiled: the VAEs."""
        plain = {"sharding": "none", "activation_checkpointing": False, "compile": False, "keep_every": None, "milestones": []}
        return self.model_copy(update=plain)


class RepaParams(Group):
    """Alignment of a hidden state with the encoder's patch tokens (REPA)."""

    weight: NonNegative
    """0 switches it off."""
    mode: Literal["cosine", "cosine+mse"]
    targets: Literal["encoder", "semantic"]
    """`encoder` (the paper): the encoder's tokens, stored or computed (`features.store`). `semantic`: what the Semantic VAE
    decodes of the stored semantic latent, which needs neither 4 C g^2 bytes an image nor the encoder."""
    block: Positive
    """The hidden state after this block is projected."""
    width: Positive
    """Hidden width of the three-layer projector."""


class VariantParams(Group):
    """One denoiser and how it is trained and sampled."""

    model: Literal["lightningdit", "dit"]
    size: SizeName
    patch: Positive
    """Latent positions per token along one side."""
    semantic: Literal["none", "vae", "pca"]
    """The semantic latent generated beside the texture latent: none, the Semantic VAE's, or PCA (ReDi)."""
    delta_t: Fraction
    """By how much global time semantics lead texture."""
    semantic_weight: NonNegative
    """beta: factor of the semantic channels in the mse term."""
    cosine_weight: NonNegative
    repa: RepaParams
    mask_clamped: bool
    """Ablation: leave a part out of the loss where its time is clamped."""
    learning_rate: PositiveFloat
    seed: Seed

    @property
    def family(self) -> Literal["gaussian", "flow"]:
        """`gaussian`: DiT's discrete noise levels, epsilon and learned variance; `flow`: velocity."""
        return "gaussian" if self.model == "dit" else "flow"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.semantic == "none" and self.delta_t > 0:
            raise ValueError(
                f"delta_t is {self.delta_t} but no semantic latent can lead; set semantic to vae or pca, or delta_t to 0"
            )
        if self.model == "dit" and (self.semantic != "none" or self.repa.weight > 0):
            raise ValueError("model dit is the texture-only DiT baseline: set semantic to none and repa.weight to 0")
        depth = MODEL_SIZES[self.size].depth
        if self.repa.weight > 0 and self.repa.block > depth:
            raise ValueError(f"repa.block {self.repa.block} is beyond the {depth} blocks of size {self.size}")
        if self.repa.weight > 0 and self.repa.targets == "semantic" and self.semantic == "pca":
            raise ValueError(
                "repa.targets semantic are decoded by the Semantic VAE, but semantic is pca, which does without one; "
                "set repa.targets to encoder or semantic to vae"
            )
        return self


class GuidanceParams(Group):
    """Guidance of one part: v = v_ref + scale (v_main - v_ref) while the part's own time is inside the interval."""

    scale: NonNegative
    """1 leaves the velocity alone."""
    interval: Annotated[list[float], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval {self.interval} must be two times with 0 <= first < second <= 1")
        return self


class SamplerParams(Group):
    """How images are drawn from a denoiser."""

    solver: Literal["euler", "heun", "ab2", "dopri5"]
    """For velocity models."""
    gaussian_solver: Literal["ddpm", "ddim"]
    """For DiT."""
    evaluations: Positive
    """Network evaluations along the grid (dopri5 chooses its own number and reports it)."""
    shift: PositiveFloat
    """Timestep shift s: t' = s t / (1 + (s - 1) t); 1 leaves the grid alone."""
    guidance: Literal["none", "cfg", "autoguidance"]
    guide: str | None
    """Folder of the weak model's training output, for autoguidance."""
    texture: GuidanceParams
    semantic: GuidanceParams
    batch_size: Positive
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.guidance == "autoguidance") != (self.guide is not None):
            raise ValueError(
                f"guidance {self.guidance!r} with guide {self.guide!r}: autoguidance needs a guide, nothing else does"
            )
        if self.solver == "heun" and self.evaluations < 2:
            raise ValueError(f"heun takes two evaluations a step, but evaluations is {self.evaluations}; use at least 2")
        return self


class ReferenceParams(Group):
    """The judges, and the statistics of real images they compare with."""

    extractors: Annotated[list[ExtractorName], Field(min_length=1)]
    inception_weights: str | None
    """Path of torch-fidelity's Inception weights; null downloads them when `inception` is asked for."""
    adm_npz: str | None
    """Path of an ADM reference file, such as VIRTUAL_imagenet256_labeled.npz, that `inception` compares with instead of the
    training images, as published numbers do; null for the training images."""
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
    """How many samples are judged, when, and by what."""

    snapshot_samples: Positive
    """Images drawn at every snapshot but the last."""
    final_samples: Positive
    """Images drawn at the last snapshot."""
    kid_subset_size: Positive
    neighbours: Positive
    """Samples whose nearest training image is shown, and k of precision and recall is fixed at 3."""
    oracle: bool
    """Also generate texture from real semantic latents."""
    sampler: SamplerParams


class ReportParams(Group):
    """What the report shows."""

    title: str
    baseline: str
    """The variant that convergence is compared with."""
    grid_images: Positive
    """Samples of each variant in the grid, same seeds side by side."""


class Params(Group):
    """The whole experiment: one group a stage."""

    prepare: PrepareParams
    texture_vae: Annotated[TextureVAEParams, Field(discriminator="kind")]
    features: FeaturesParams
    semantic_vae: SemanticVAEParams
    encode: EncodeParams
    train: TrainParams
    reference: ReferenceParams
    evaluate: EvaluateParams
    report: ReportParams
    engine: EngineParams
    active: Annotated[list[str], Field(min_length=1)]
    """The variants that are trained and compared."""
    variants: dict[str, VariantParams]

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
        for name in [*self.active, self.report.baseline]:
            if name not in self.variants:
                raise ValueError(f"unknown variant {name!r}; variants defines {', '.join(self.variants)}")
        if len(set(self.active)) != len(self.active):
            raise ValueError(f"active names a variant twice: {', '.join(self.active)}")
        for name, variant in self.variants.items():
            if self.latent_grid % variant.patch:
                raise ValueError(f"variants.{name}.patch {variant.patch} does not divide the latent grid {self.latent_grid}")
        for name in self.active:
            self._check_budget(name, self.variants[name])

    def _check_budget(self, name: str, variant: VariantParams) -> None:
        """Refuse before any training what sampling would refuse after it: every phase of the schedule takes an interval."""
        sampler = self.evaluate.sampler
        intervals = sampler.evaluations // 2 if sampler.solver == "heun" else sampler.evaluations
        phases = 3 if 0 < variant.delta_t < 1 else 1 + int(variant.delta_t)
        if intervals < phases:
            raise ValueError(
                f"evaluate.sampler.evaluations {sampler.evaluations} with {sampler.solver} cannot cover the {phases} phases of "
                f"variants.{name}.delta_t {variant.delta_t}; use at least {phases * (2 if sampler.solver == 'heun' else 1)}"
            )


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file.

    Raises `ConfigError` that names every bad value, why it is bad, and what to do.
    """
    try:
        loaded = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; run in the project's folder or name a parameter file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return parse_params(loaded, source=str(path))


def parse_params(values: Any, source: str = "params") -> Params:
    """Check already loaded values; see `load_params`."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(detail)}" for detail in error.errors())
        raise ConfigError(f"{source} is not a valid experiment:\n{lines}") from error


def fingerprint(*values: Any) -> str:
    """Return a short hash of groups or plain values; equal values give equal hashes."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _explain(detail: Any) -> str:
    where = ".".join(_keys(detail["loc"])) or "the file"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key; check its spelling or remove it"
    if detail["type"] == "missing":
        return f"{where}: missing; every value of an experiment must be given"
    if detail["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return f"{where}.kind: must be one of {', '.join(KINDS[where])} (given: {detail['input'].get('kind')!r})"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] == "value_error" else f" (given: {detail['input']!r})"
    return f"{where}: {message}{given}"


def _keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the nested keys of a value; pydantic names a group's kind behind the group, but it is no key."""
    parts = [str(part) for part in location]
    return [part for before, part in pairwise(["", *parts]) if part not in KINDS.get(before, ())]
