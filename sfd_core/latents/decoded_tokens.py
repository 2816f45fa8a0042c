"""Patch tokens that the Semantic VAE decodes from stored semantic latents: REPA targets without stored tokens or the encoder.

N images, C channels of a token, g side of the token grid.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import fingerprint
from sfd_core.host.errors import IdentityError
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.identity import LatentIdentity
from sfd_core.latents.stored import StoredLatent
from sfd_core.latents.tokens import Rows, rounded


class DecodedTokens:
    """A `TokenSource` that decodes latents with the Semantic VAE; float16, in the encoder's scale, on the VAE's device.

    If a posterior is stored, its mean is decoded.
    """

    def __init__(self, latents: ShardReader, compressors: SemanticCompressors, digest: str) -> None:
        self._latents, self._compressors = StoredLatent(latents, "z_sem"), compressors
        self._length = len(latents)
        self.encoder: dict[str, Any] = dict(latents.meta["encoder"])
        self.prepare = str(latents.meta["prepare"])
        self.digest = digest
        self.channels, self.grid = compressors.vae.in_channels, self._latents.grid

    def __len__(self) -> int:
        return self._length

    def pairs(self, rows: Rows) -> Tensor:
        """Return float16 tokens (N, 2, C, g, g); see `TokenSource`."""
        sides = (torch.full((len(rows),), side, dtype=torch.bool) for side in (False, True))
        decoded = [self._decode(self.read(rows, mirrored)) for mirrored in sides]
        return torch.stack([rounded(side, "tokens decoded by the Semantic VAE") for side in decoded], dim=1)

    def read(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Read latents (N, c, g, g); see `TokenSource`."""
        return self._latents.central(np.asarray(rows), mirrored)

    def tokens(self, read: Tensor) -> Tensor:
        """Return float16 tokens (N, C, g, g) of latents (N, c, g, g); see `TokenSource`."""
        return self._decode(read).half()

    @torch.no_grad()
    def _decode(self, z_sem: Tensor) -> Tensor:
        statistics = self._compressors.statistics
        return statistics.denormalise(self._compressors.vae.decode(z_sem.to(statistics.mean.device)).float())


def open_decoded_tokens(
    latents: ShardReader, identity: LatentIdentity, semantic_vae: Path, device: torch.device
) -> DecodedTokens:
    """Return tokens that the Semantic VAE in `semantic_vae` decodes on `device` from latents of `identity`.

    Raises `IdentityError` if another Semantic VAE made the latents, `NumericsError` for latents that are not finite, and the
    errors of `SemanticCompressors.load`.
    """
    compressors, found = SemanticCompressors.load(semantic_vae)
    if found != identity.semantic_vae:
        raise IdentityError(
            f"{semantic_vae} holds Semantic VAE {fingerprint(found)}, but {latents.path} was encoded with "
            f"{fingerprint(identity.semantic_vae)}, so its latents cannot be decoded; run `dvc repro encode`"
        )
    StoredLatent(latents, "z_sem").require_finite()
    return DecodedTokens(latents, compressors.to(device), fingerprint(latents.digest, found))
