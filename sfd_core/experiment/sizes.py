"""Sizes of the denoisers and of DiT's process; separate from params.py, so that stages depend on them but not on the checks."""

from dataclasses import dataclass
from typing import Literal

SHAPES_RESULTS = True

SizeName = Literal["tiny", "S", "B", "L", "XL", "XXL", "1p6B"]


@dataclass(frozen=True)
class ModelSize:
    """Depth, width and number of heads of a transformer."""

    depth: int
    width: int
    heads: int


MODEL_SIZES: dict[SizeName, ModelSize] = {
    "tiny": ModelSize(depth=4, width=128, heads=4),
    "S": ModelSize(depth=12, width=384, heads=6),
    "B": ModelSize(depth=12, width=768, heads=12),
    "L": ModelSize(depth=24, width=1024, heads=16),
    "XL": ModelSize(depth=28, width=1152, heads=16),
    "XXL": ModelSize(depth=24, width=1536, heads=24),
    "1p6B": ModelSize(depth=28, width=1792, heads=28),
}
"""`tiny` is for the default preset; the others are from arXiv 2512.04926 and its public weights."""

TRAINING_LEVELS = 1000
"""Noise levels of DiT's process; its sampler takes no more steps."""
