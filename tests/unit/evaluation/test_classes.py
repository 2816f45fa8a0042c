"""How samples spread over classes, told by a linear classifier."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sfd_core.evaluation.classes import COLUMNS, class_table

CLASSES = ["sun", "moon", "star"]
REAL = np.repeat(np.arange(3), [60, 30, 10])


def features(labels: np.ndarray, seed: int) -> Tensor:
    """Features in which every class has a direction of its own."""
    noise = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise + torch.eye(8)[torch.from_numpy(labels)]


def reference() -> Tensor:
    return torch.stack([features(REAL, 0), features(REAL, 1)], dim=1)


def test_shares_are_those_of_the_classes_that_samples_are_of() -> None:
    drawn = np.repeat(np.arange(3), [10, 0, 30])
    table = class_table(features(drawn, 2), reference(), REAL, CLASSES)
    assert table["class"].tolist() == CLASSES
    assert table["real"].tolist() == [0.6, 0.3, 0.1]
    assert table["samples"].tolist() == [0.25, 0.0, 0.75]
    assert table["recognised"].tolist() == [1.0, 1.0, 1.0]


def test_a_class_that_cannot_be_told_from_another_is_not_recognised() -> None:
    same = torch.randn(100, 2, 8, generator=torch.Generator().manual_seed(0))
    table = class_table(features(REAL, 2), same, REAL, CLASSES)
    assert table["recognised"].iloc[2] < 0.5


@pytest.mark.parametrize("classes", [["all"], CLASSES])
def test_images_of_one_label_have_no_table(classes: list[str]) -> None:
    table = class_table(features(REAL, 2), reference(), np.zeros(100, np.int64), classes)
    assert table.empty
    assert list(table.columns) == list(COLUMNS)
