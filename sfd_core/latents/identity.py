"""The identity of latents, which must be equal for denoisers and latents that are used together."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfd_core.data.store.shards import ShardReader
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.host.paths import file_digest

IDENTITY_FILE, STATISTICS_FILE = "identity.json", "statistics.safetensors"


@dataclass(frozen=True)
class LatentIdentity:
    """Name and hash of the weights of everything that made the latents. Equal identities mean equal latents."""

    texture_vae: Mapping[str, Any]
    semantic_vae: Mapping[str, Any]
    encoder: Mapping[str, Any]
    statistics: str
    """Hash of the file of normalisation statistics."""
    latents: str
    """Digest of the shards of training latents."""
    posterior: str = "sample"
    """How posteriors are stored (`encode.posterior`); identities without this field are of stored samples."""

    def require(self, other: "LatentIdentity", purpose: str) -> None:
        """Raise `IdentityError` with the differences unless `other` is equal."""
        mine, theirs = asdict(self), asdict(other)
        differing = [name for name in mine if mine[name] != theirs[name]]
        if differing:
            details = "; ".join(f"{name} {_short(mine[name])} against {_short(theirs[name])}" for name in differing)
            raise IdentityError(
                f"{purpose}: these were made from different latents ({details}); train or encode again so that both have "
                "the same texture VAE, semantic encoder and statistics"
            )


def read_latent_identity(encode_dir: Path) -> LatentIdentity:
    """Read the identity of the `encode` stage and check the hash of its statistics."""
    path = encode_dir / IDENTITY_FILE
    try:
        identity = LatentIdentity(**json.loads(path.read_text()))
        statistics = file_digest(encode_dir / STATISTICS_FILE)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{encode_dir} holds no identity of latents ({error}); run `dvc repro encode`") from error
    if statistics != identity.statistics:
        raise DataError(f"{encode_dir / STATISTICS_FILE} does not match its recorded hash; run `dvc repro encode`")
    return identity


def open_latents(encode_dir: Path, part: str, identity: LatentIdentity, purpose: str, verify: bool = True) -> ShardReader:
    """Open `train` or `held_out` of the `encode` stage. Raises `IdentityError` if its latents are not those of `identity`."""
    read_latent_identity(encode_dir).require(identity, f"{purpose} with the latents in {encode_dir}")
    return ShardReader(encode_dir / part, verify)


def open_training_latents(encode_dir: Path, verify: bool) -> tuple[ShardReader, LatentIdentity]:
    """Open `train` of the `encode` stage. Raises `IdentityError` if its latents are not those of the identity beside them."""
    identity, latents = read_latent_identity(encode_dir), ShardReader(encode_dir / "train", verify)
    if latents.digest != identity.latents:
        raise IdentityError(f"{latents.path} is not the shard that {encode_dir / IDENTITY_FILE} names; run `dvc repro encode`")
    return latents, identity


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else f"{value.get('name', '?')}:{value.get('weights', '?')[:12]}"
    return text[:60]
