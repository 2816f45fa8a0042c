"""Random numbers that depend on names only, not on batch size, process count or earlier calls."""

import hashlib

import torch
from torch import Tensor

SHAPES_RESULTS = True


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and their order."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


NOISE_BLOCK = 64
"""Images per generator: a process draws only the blocks that overlap its share of the batch."""


def batch_noise(batch_size: int, part: slice, shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Return normal noise (n, *shape) for positions `part` of a batch; it depends on `key`, batch size and position only."""
    blocks = []
    for number in range(part.start // NOISE_BLOCK, -(-part.stop // NOISE_BLOCK)):
        first = number * NOISE_BLOCK
        source = generator(*key) if number == 0 else generator(*key, number)
        noise = torch.randn((min(NOISE_BLOCK, batch_size - first), *shape), generator=source)
        blocks.append(noise[max(part.start - first, 0) : part.stop - first])
    return torch.cat(blocks)


def sample_noise(seed: int, indices: list[int], shape: tuple[int, ...], purpose: str = "sample") -> Tensor:
    """Return standard normal noise (N, *shape); row k depends on `seed`, `purpose` and `indices[k]` only."""
    return torch.stack([torch.randn(shape, generator=generator(seed, purpose, index)) for index in indices])
