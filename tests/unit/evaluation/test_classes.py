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


def test_samples_are_told_by_ridge_regression_with_a_regularisation_of_100() -> None:
    """In closed form, W = (X^T X + 100 I)^-1 X^T Y, of standardised features X and centred targets Y of 1 and -1."""
    real, drawn = features(REAL, 0).double().numpy(), torch.randn(4000, 8, generator=torch.Generator().manual_seed(3)).numpy()
    mean, deviation, targets = real.mean(0), real.std(0), 2 * np.eye(3)[REAL] - 1
    x = (real - mean) / deviation
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(8), x.T @ (targets - targets.mean(0)))
    told = ((drawn - mean) / deviation @ weights + targets.mean(0)).argmax(1)
    table = class_table(torch.from_numpy(drawn), reference(), REAL, CLASSES)
    assert table["samples"].tolist() == (np.bincount(told, minlength=3) / 4000).tolist()


def test_the_classifier_is_fitted_with_images_and_tried_with_their_mirror_images() -> None:
    drawn, mirrored = np.repeat(np.arange(3), [10, 0, 30]), (REAL + 1) % 3
    table = class_table(features(drawn, 2), torch.stack([features(REAL, 0), features(mirrored, 1)], dim=1), REAL, CLASSES)
    assert table["samples"].tolist() == [0.25, 0.0, 0.75]
    assert table["recognised"].tolist() == [0.0, 0.0, 0.0]


def test_a_class_of_one_image_and_one_without_any_have_shares() -> None:
    labels = np.repeat(np.arange(2), [59, 1])
    images = torch.stack([features(labels, 0), features(labels, 0)], dim=1)
    table = class_table(features(labels, 2), images + 50 * torch.eye(8)[torch.from_numpy(labels)][:, None], labels, CLASSES)
    assert table["real"].tolist() == pytest.approx([59 / 60, 1 / 60, 0])
    assert table["samples"].iloc[2] == 0
    assert table["recognised"].tolist() == [1.0, 1.0, 0.0]
