"""A trained denoiser on disk: weights, shapes, statistics and the identity of its training latents.

Folder: `model.json`, `statistics.safetensors`, `snapshots/step-*.safetensors` (averaged weights), `history.csv`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_core.experiment.params import VariantParams
from sfd_core.host.errors import ConfigError, DataError, IdentityError
from sfd_core.host.paths import atomic_dir, file_digest, write_json
from sfd_core.latents.composite import Composite, LatentStatistics
from sfd_core.latents.identity import STATISTICS_FILE, LatentIdentity
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.factory import LatentSpec, build_denoiser
from sfd_core.models.denoisers.lightningdit import LightningDiT, clocks_of

MODEL_FILE = "model.json"


@dataclass(frozen=True)
class SnapshotRecord:
    """Averaged (EMA) weights of one step."""

    step: int
    images_seen: int
    file: str
    """Relative to the artifact's folder."""


SNAPSHOT_FIELDS = tuple(column.name for column in fields(SnapshotRecord))
PLAIN = ("variant_name", "classes", "parameters", "flops_per_image", "target_flops_per_image", "knows_null_class")


@dataclass(frozen=True)
class Denoiser:
    """A trained denoiser ready for sampling: one snapshot in evaluation mode."""

    model: LightningDiT | DiT
    variant: VariantParams
    latent: LatentSpec
    composite: Composite
    classes: Sequence[str]
    """Empty if it was trained without labels."""
    identity: LatentIdentity
    snapshot: SnapshotRecord
    knows_null_class: bool = True
    """Whether it was also trained without labels."""

    @property
    def null_class(self) -> int:
        """The label for no class."""
        return len(self.classes)


@dataclass(frozen=True)
class DenoiserManifest:
    """What `model.json` holds."""

    variant_name: str
    variant: VariantParams
    latent: LatentSpec
    classes: Sequence[str]
    identity: LatentIdentity
    parameters: int
    flops_per_image: int
    """Of one forward pass."""
    snapshots: Sequence[SnapshotRecord]
    target_flops_per_image: int = 0
    """Of what computes an image's REPA targets in every step; 0 where they are stored."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of the statistics and of every snapshot; artifacts of earlier versions have none."""
    knows_null_class: bool = True
    """See `Denoiser`; artifacts of earlier versions do not say it."""

    @property
    def training_flops_per_image(self) -> int:
        """Of a forward pass and, backwards, twice as many, and of the REPA targets."""
        return 3 * self.flops_per_image + self.target_flops_per_image

    def write(self, folder: Path) -> None:
        """Write `model.json` into `folder`, with the hashes of the files that lie there."""
        plain = {name: getattr(self, name) for name in PLAIN}
        plain |= {
            "variant": self.variant.model_dump(mode="json"),
            "latent": asdict(self.latent),
            "identity": asdict(self.identity),
            "snapshots": [asdict(snapshot) for snapshot in self.snapshots],
            "files": {name: file_digest(folder / name) for name in (STATISTICS_FILE, *(kept.file for kept in self.snapshots))},
        }
        write_json(folder / MODEL_FILE, plain)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `model.json` of `folder`. Raises `DataError` if it is missing or damaged."""
        try:
            plain = json.loads((folder / MODEL_FILE).read_text())
            return cls(
                variant_name=plain["variant_name"],
                variant=VariantParams.model_validate(plain["variant"]),
                latent=LatentSpec(**plain["latent"]),
                classes=plain["classes"],
                identity=LatentIdentity(**plain["identity"]),
                parameters=plain["parameters"],
                flops_per_image=plain["flops_per_image"],
                target_flops_per_image=plain.get("target_flops_per_image", 0),
                knows_null_class=plain.get("knows_null_class", True),
                snapshots=[SnapshotRecord(*(snapshot[name] for name in SNAPSHOT_FIELDS)) for snapshot in plain["snapshots"]],
                files=plain.get("files", {}),
            )
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no trained denoiser ({MODEL_FILE} is missing); run `dvc repro` or give another folder"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / MODEL_FILE} is damaged ({error}); restore it with `dvc checkout`") from error


def write_averaged(manifest: DenoiserManifest, folder: Path, weights: Mapping[str, Tensor], step: int, out: Path) -> None:
    """Write an artifact with other weights of the denoiser in `folder`, after `step` steps, atomically.

    Raises `ConfigError` if `out` exists, and `DataError` if the weights are of another network.
    """
    if out.exists():
        raise ConfigError(f"{out} already exists; remove it or give another folder")
    last = manifest.snapshots[-1]
    record = SnapshotRecord(step, step * last.images_seen // last.step, f"snapshots/step-{step:08d}.safetensors")
    with atomic_dir(out) as temporary:
        (temporary / "snapshots").mkdir()
        save_file(dict(weights), temporary / record.file)
        _load_network(manifest, temporary / record.file)
        shutil.copyfile(folder / STATISTICS_FILE, temporary / STATISTICS_FILE)
        replace(manifest, snapshots=[record]).write(temporary)


def snapshot_digest(folder: Path, snapshot: SnapshotRecord) -> str:
    """Return the sha256 of a snapshot of the artifact in `folder`. Raises `DataError` if its file cannot be read."""
    try:
        return file_digest(folder / snapshot.file)
    except OSError as error:
        raise DataError(f"{folder} lacks snapshot {snapshot.step} ({error}); restore it with `dvc checkout`") from error


def load_denoiser(folder: Path, step: int | None = None) -> Denoiser:
    """Load the snapshot of `step`, by default the last, of the artifact in `folder`.

    Raises `DataError` for missing, damaged or exchanged files or a step without a snapshot, and `IdentityError` if the
    statistics have other channels than the denoiser.
    """
    manifest = DenoiserManifest.read(folder)
    snapshot = _snapshot(manifest, folder, step)
    statistics = folder / STATISTICS_FILE
    for name in (STATISTICS_FILE, snapshot.file):
        path, recorded = folder / name, manifest.files.get(name)
        if recorded and path.is_file() and file_digest(path) != recorded:
            raise DataError(f"{path} does not match its recorded hash; restore it with `dvc checkout`")
    composite = Composite(LatentStatistics.load(statistics))
    if composite.channels != manifest.latent.channels:
        raise IdentityError(f"{statistics} has {composite.channels} channels, but the denoiser {manifest.latent.channels}")
    model = _load_network(manifest, folder / snapshot.file)
    model.eval().requires_grad_(False)
    return Denoiser(
        model=model,
        variant=manifest.variant,
        latent=manifest.latent,
        composite=composite,
        classes=manifest.classes,
        identity=manifest.identity,
        snapshot=snapshot,
        knows_null_class=manifest.knows_null_class,
    )


def _snapshot(manifest: DenoiserManifest, folder: Path, step: int | None) -> SnapshotRecord:
    if step is None:
        return manifest.snapshots[-1]
    for snapshot in manifest.snapshots:
        if snapshot.step == step:
            return snapshot
    kept = ", ".join(str(snapshot.step) for snapshot in manifest.snapshots)
    raise DataError(f"{folder} has no snapshot of step {step}; choose one of {kept}")


def _load_network(manifest: DenoiserManifest, path: Path) -> LightningDiT | DiT:
    try:
        weights = load_file(path)
        model = build_denoiser(manifest.variant, manifest.latent, len(manifest.classes), clocks_of(weights))
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path} holds no weights of this denoiser ({error}); restore it with `dvc checkout`") from error
    return model
