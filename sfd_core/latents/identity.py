"""Where latents come from: what must be equal for two denoisers, or a denoiser and its latents, to be used together."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfd_core.host.errors import DataError, IdentityError
from sfd_core.host.paths import file_digest

IDENTITY_FILE, STATISTICS_FILE = "identity.json", "statistics.safetensors"


@dataclass(frozen=True)
class LatentIdentity:
    """Where latents come from: name and hash of the weights of all that made them. Equal identities, equal latents."""

    texture_vae: Mapping[str, Any]
    semantic_vae: Mapping[str, Any]
    encoder: Mapping[str, Any]
    statistics: str
    """Hash of the file of normalisation statistics."""
    latents: str
    """Digest of the shards of training latents."""
    posterior: str = "sample"
    """How the VAEs' posteriors are stored (`encode.posterior`); identities that do not say are of frozen samples."""

    def require(self, other: "LatentIdentity", purpose: str) -> None:
        """Raise `IdentityError` that names what differs unless `other` is the same."""
        mine, theirs = asdict(self), asdict(other)
        differing = [name for name in mine if mine[name] != theirs[name]]
        if differing:
            details = "; ".join(f"{name} {_short(mine[name])} against {_short(theirs[name])}" for name in differing)
            raise IdentityError(
                f"{purpose}: these were made from different latents ({details}); train or encode again so that both share "
                "one texture VAE, one semantic encoder and one set of statistics"
            )


def read_latent_identity(encode_dir: Path) -> LatentIdentity:
    """Read the identity that the `encode` stage wrote, and check that the statistics beside it are the ones it names."""
    path = encode_dir / IDENTITY_FILE
    try:
        identity = LatentIdentity(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); run `dvc repro encode`") from error
    if file_digest(encode_dir / STATISTICS_FILE) != identity.statistics:
        raise DataError(f"{encode_dir / STATISTICS_FILE} does not match its recorded hash; run `dvc repro encode`")
    return identity


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else f"{value.get('name', '?')}:{value.get('weights', '?')[:12]}"
    return text[:60]
