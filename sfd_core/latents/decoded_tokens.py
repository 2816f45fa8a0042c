"""Patch tokens that the Semantic VAE decodes from stored semantic latents: REPA targets without stored tokens or the encoder.

N images, C channels of a token, g side of the token grid.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import fingerprint
from sfd_core.host.errors import IdentityError
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.identity import LatentIdentity
from sfd_core.latents.stored import StoredLatent
from sfd_core.latents.tokens import Rows


class DecodedTokens:
    """`RepaTargets` that decode latents with the Semantic VAE; float16, in the encoder's scale, on the VAE's device.

    If a posterior is stored, its mean is decoded.
    """

    def __init__(self, latents: ShardReader, compressors: SemanticCompressors, digest: str) -> None:
        self._latents, self._compressors = StoredLatent(latents, "z_sem"), compressors
        self.digest, self.channels = digest, compressors.vae.in_channels

    def read(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Read latents (N, c, g, g); see `RepaTargets`."""
        return self._latents.central(np.asarray(rows), mirrored)

    def tokens(self, read: Tensor) -> Tensor:
        """Return float16 tokens (N, C, g, g) of latents (N, c, g, g); see `RepaTargets`."""
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
