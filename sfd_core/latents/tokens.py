"""Patch tokens of the images of a part: stored, or computed on request.

The `features` stage writes either a shard of tokens or only `tokens.json`, which says how to compute them. `open_tokens`
handles both. Both give float16 values; a computed token differs from a stored one only by the rounding of another batch size.
For REPA, `sfd_core.latents.decoded_tokens` can decode tokens from semantic latents instead.
Shapes: N images, C channels of a token, g side of the token grid.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import EncoderParams
from sfd_core.host.errors import DataError, IdentityError, NumericsError
from sfd_core.host.paths import write_json

if TYPE_CHECKING:
    from sfd_core.models.encoders.encoder import Encoder

RECIPE = "tokens.json"
Rows = NDArray[np.int64] | Sequence[int]


class RepaTargets(Protocol):
    """Tokens that a training aligns hidden states with, by row."""

    @property
    def digest(self) -> str:
        """Identity of the tokens."""

    @property
    def channels(self) -> int:
        """Channels C of a token."""

    def read(self, rows: Rows, mirrored: Tensor) -> Tensor:
        """Read what `tokens` needs of the images at `rows`, or of their mirror images where `mirrored` (N,), bool.

        A thread can do so in advance, and move it to the device.
        """

    def tokens(self, read: Tensor) -> Tensor:
        """Return the float16 tokens (N, C, g, g) of what was read; too large ones are infinite, as a check would wait."""


class TokenSource(RepaTargets, Protocol):
    """Tokens of an encoder, of the images of one part, by row."""

    @property
    def encoder(self) -> dict[str, Any]:
        """Identity of the encoder."""

    @property
    def prepare(self) -> str:
        """Digest of the shard of images."""

    @property
    def grid(self) -> int:
        """Side g of the token grid."""

    def __len__(self) -> int:
        """Return the number of images."""

    def pairs(self, rows: Rows) -> Tensor:
        """Return float16 tokens (N, 2, C, g, g) of the images at `rows` and of their mirror images."""


class StoredTokens:
    """Tokens read from a shard."""

    def __init__(self, shard: ShardReader) -> None:
        self._meta, self._tokens = shard.meta, shard["tokens"]
        self._sides = self._tokens.flattened()
        self.digest = shard.digest
        self.channels, self.grid = self._tokens.shape[2], self._tokens.shape[3]

    @property
    def encoder(self) -> dict[str, Any]:
        return dict(self._meta["encoder"])

    @property
    def prepare(self) -> str:
        return str(self._meta["prepare"])

    def __len__(self) -> int:
        return len(self._tokens)

    def pairs(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self._tokens.take(np.asarray(rows)))

    def read(self, rows: Rows, mirrored: Tensor) -> Tensor:
        return torch.from_numpy(self._sides.take(2 * np.asarray(rows) + mirrored.numpy()))

    def tokens(self, read: Tensor) -> Tensor:
        return read


class ComputedTokens:
    """Tokens that the encoder computes from the stored images; they stay on its device."""

    def __init__(self, encoder: "Encoder", images: ShardReader, batch_size: int, digest: str) -> None:
        self._encoder, self._images, self._batch_size = encoder, images["image"], batch_size
        self.encoder: dict[str, Any] = encoder.identity
        self.prepare = images.digest
        self.digest = digest
        self.channels, self.grid = encoder.channels, encoder.grid

    def __len__(self) -> int:
        return len(self._images)

    def pairs(self, rows: Rows) -> Tensor:
        images = torch.from_numpy(self._images.take(np.asarray(rows)))
        return torch.stack([rounded(self._compute(side)) for side in (images, images.flip(-1))], dim=1)

    def read(self, rows: Rows, mirrored: Tensor) -> Tensor:
        images = torch.from_numpy(self._images.take(np.asarray(rows)))
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

    def tokens(self, read: Tensor) -> Tensor:
        return self._compute(read).half()

    def _compute(self, images: Tensor) -> Tensor:
        return torch.cat([self._encoder.tokens(batch) for batch in torch.split(images, self._batch_size)])


@dataclass(frozen=True)
class TokenRecipe:
    """How to compute the tokens of a part that are not stored."""

    params: EncoderParams
    """Parameters of the `features` stage; weights are loaded again from `weights`."""
    batch_size: int
    encoder: dict[str, Any]
    """Identity of the encoder."""
    prepare: str
    """Digest of the shard of images."""

    def write(self, folder: Path) -> None:
        """Write the recipe into `folder`."""
        folder.mkdir(exist_ok=True)
        params = self.params.model_dump(mode="json", include=set(EncoderParams.model_fields))
        values = {"params": params, "batch_size": self.batch_size, "encoder": self.encoder, "prepare": self.prepare}
        write_json(folder / RECIPE, values)


def open_tokens(folder: Path, images: Path | ShardReader, device: torch.device, verify: bool = True) -> TokenSource:
    """Open the tokens of one part of the `features` stage; if none are stored, compute them from `images` on `device`.

    Without `verify`, stored tokens are not compared with their hashes. Raises `DataError` if there are neither tokens nor a
    recipe, `IdentityError` if images or encoder differ from those of the `features` stage, and the errors of `load_encoder`
    and `ShardReader`.
    """
    path = folder / RECIPE
    if not path.is_file():
        return StoredTokens(ShardReader(folder, verify))
    text = path.read_bytes()
    try:
        values = json.loads(text)
        recipe = TokenRecipe(**values | {"params": EncoderParams.model_validate(values["params"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no token recipe ({type(error).__name__}); run `dvc repro features`") from error
    shard = ShardReader(images, verify) if isinstance(images, Path) else images
    if shard.digest != recipe.prepare:
        raise IdentityError(f"{path} belongs to other images than those in {shard.path}; run `dvc repro features`")
    # imported on use: timm takes seconds, and most trainings need no encoder
    from sfd_core.models.encoders.encoder import load_encoder  # noqa: PLC0415

    encoder = load_encoder(recipe.params)
    if encoder.identity != recipe.encoder:
        raise IdentityError(
            f"{path} was written with the encoder {recipe.encoder}, but features.weights {recipe.params.weights} now gives "
            f"{encoder.identity}; restore its weights or run `dvc repro features`"
        )
    return ComputedTokens(encoder.to(device), shard, recipe.batch_size, hashlib.sha256(text).hexdigest())


def target_flops(targets: RepaTargets) -> int:
    """Return the floating-point operations that the tokens of one image take, counted as by `flops_per_image`, but done."""
    with FlopCounterMode(display=False) as counter:
        targets.tokens(targets.read([0], torch.tensor([False])))
    return int(counter.get_total_flops())


def rounded(tokens: Tensor, what: str = "tokens") -> Tensor:
    """Return tokens as float16. Raises `NumericsError` (which calls them `what`) for values too large for it."""
    found = tokens.half()
    if not bool(torch.isfinite(found).all()):
        raise NumericsError(
            f"{what} reach {tokens.abs().max().item():.3g}, too large for float16, or are NaN; check the encoder's weights"
        )
    return found
