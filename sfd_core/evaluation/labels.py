"""Which classes are drawn. Balanced against random labels alone is worth 0.1 FID, so a protocol names the rule."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfd_core.errors import ConfigError
from sfd_core.seeding import derive_seed

CLASS_BALANCED = "class-balanced"
CLASS_PROPORTIONAL = "class-proportional"


def class_balanced_labels(count: int, classes: int) -> NDArray[np.int64]:
    """Return `count` labels in [0, classes), each class equally often up to one, cycling so that every prefix is balanced too.

    Label i depends on i alone (50 per class for 50,000 of ImageNet). Raises `ConfigError` if a number is not positive.
    """
    if count < 1 or classes < 1:
        raise ConfigError(f"{count} labels of {classes} classes cannot be drawn; both must be positive")
    return np.arange(count, dtype=np.int64) % classes


def class_proportional_labels(count: int, class_counts: Sequence[int]) -> NDArray[np.int64]:
    """Return `count` labels in the proportions of `class_counts`, up to one image a class, in every prefix.

    For data whose classes differ in size: balanced labels would there be a distance of their own between perfect samples and
    the reference. Greedy largest deficit (Hamilton's rule step by step); equal to `class_balanced_labels` for equal counts.
    Raises `ConfigError` if nothing can be drawn.
    """
    weights = np.asarray(class_counts, dtype=np.float64)
    if count < 1 or not len(weights) or weights.min() < 0 or weights.sum() <= 0:
        raise ConfigError(f"{count} labels in proportions {list(class_counts)} cannot be drawn; both must be positive")
    shares = weights / weights.sum()
    drawn = np.zeros(len(weights))
    labels = np.empty(count, dtype=np.int64)
    for index in range(count):
        labels[index] = int(np.argmax(np.round(shares * (index + 1) - drawn, 9)))
        drawn[labels[index]] += 1
    return labels


def random_rows(count: int, available: int, *seed: int | str) -> NDArray[np.int64]:
    """Return `min(count, available)` different rows of `available` in random order; a smaller count gives a prefix."""
    order = np.random.default_rng(derive_seed(*seed)).permutation(available)
    return order[:count].astype(np.int64)
