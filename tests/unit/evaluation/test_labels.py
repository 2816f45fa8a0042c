import numpy as np
import pytest

from sfd_core.errors import ConfigError
from sfd_core.evaluation.labels import class_balanced_labels, class_proportional_labels, random_rows


def test_every_prefix_of_balanced_labels_is_balanced() -> None:
    labels = class_balanced_labels(1003, 10)
    for count in (1, 9, 10, 500, 1003):
        counts = np.bincount(labels[:count], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_fifty_a_class_for_imagenet() -> None:
    assert set(np.bincount(class_balanced_labels(50_000, 1000))) == {50}


def test_proportional_labels_keep_the_shares_in_every_prefix() -> None:
    counts = [258, 12, 700, 1, 0]
    labels = class_proportional_labels(971, counts)
    assert np.bincount(labels, minlength=5).tolist() == counts
    for prefix in (10, 100, 500):
        drawn = np.bincount(labels[:prefix], minlength=5)
        assert np.abs(drawn - prefix * np.array(counts) / 971).max() < 2


def test_proportional_labels_of_equal_classes_are_balanced_labels() -> None:
    np.testing.assert_array_equal(class_proportional_labels(103, [7] * 10), class_balanced_labels(103, 10))


@pytest.mark.parametrize("draw", [lambda: class_balanced_labels(0, 3), lambda: class_proportional_labels(4, [0, 0])])
def test_nothing_to_draw_is_refused(draw: object) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        draw()  # type: ignore[operator]


def test_fewer_random_rows_are_a_prefix_of_more() -> None:
    many, few = random_rows(100, 60, 0, "a"), random_rows(20, 60, 0, "a")
    assert len(many) == len(set(many.tolist())) == 60
    np.testing.assert_array_equal(many[:20], few)
    assert not np.array_equal(few, random_rows(20, 60, 0, "b"))
