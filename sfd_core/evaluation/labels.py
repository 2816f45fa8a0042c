"""Which classes are drawn. Balanced against random labels alone is worth 0.1 FID, so a protocol names the rule."""

import numpy as np
from numpy.typing import NDArray

from sfd_core.host.errors import ConfigError
from sfd_core.host.seeding import derive_seed

CLASS_BALANCED = "class-balanced"


def class_balanced_labels(count: int, classes: int) -> NDArray[np.int64]:
    """Return `count` labels in [0, classes), each class equally often up to one, cycling so that every prefix is balanced too.

    Label i depends on i alone (50 per class for 50,000 of ImageNet). Raises `ConfigError` if a number is not positive.
    """
    if count < 1 or classes < 1:
        raise ConfigError(f"{count} labels of {classes} classes cannot be drawn; both must be positive")
    return np.arange(count, dtype=np.int64) % classes


def random_rows(count: int, available: int, *seed: int | str) -> NDArray[np.int64]:
    """Return `min(count, available)` different rows of `available` in random order; a smaller count gives a prefix."""
    order = np.random.default_rng(derive_seed(*seed)).permutation(available)
    return order[:count].astype(np.int64)
