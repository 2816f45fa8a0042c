import numpy as np
import pytest

from sfd_core.evaluation.labels import class_balanced_labels, random_rows
from sfd_core.host.errors import ConfigError


def test_every_prefix_of_balanced_labels_is_balanced() -> None:
    labels = class_balanced_labels(1003, 10)
    for count in (1, 9, 10, 500, 1003):
        counts = np.bincount(labels[:count], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_fifty_a_class_for_imagenet() -> None:
    assert set(np.bincount(class_balanced_labels(50_000, 1000))) == {50}


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        class_balanced_labels(0, 3)


def test_fewer_random_rows_are_a_prefix_of_more() -> None:
    many, few = random_rows(100, 60, 0, "a"), random_rows(20, 60, 0, "a")
    assert len(many) == len(set(many.tolist())) == 60
    np.testing.assert_array_equal(many[:20], few)
    assert not np.array_equal(few, random_rows(20, 60, 0, "b"))
