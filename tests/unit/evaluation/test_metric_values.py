"""Numbers against values worked out by hand or by NumPy, with the settings of the published protocols as plain literals."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from sfd_core.evaluation.bootstrap import resampled_distances
from sfd_core.evaluation.metrics import FrechetReference, Reference, inception_score, kinds, neighbour_radii, score, settings
from sfd_core.evaluation.neighbours import Nearest, nearest_images, neighbour_sheet
from sfd_core.host.errors import NumericsError


def cloud(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_of(features: Tensor) -> FrechetReference:
    return FrechetReference.of_statistics(features.mean(0), torch.from_numpy(np.cov(features.numpy(), rowvar=False)))


def test_distance_of_diagonal_normals_is_the_sum_over_axes() -> None:
    """With diagonal covariances: sum of (m1 - m2)^2 + (s1 - s2)^2. Four points at m +- s sqrt(3) / 2 ... have it unbiased."""
    reference = FrechetReference.of_statistics(torch.tensor([1.0, -2.0]), torch.diag(torch.tensor([4.0, 9.0])))
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    drawn = torch.tensor([3.0, 5.0]) + corners * torch.tensor([1.0, 2.0]) * (3 / 4) ** 0.5
    assert reference.distance(drawn) == pytest.approx((3 - 1) ** 2 + (5 + 2) ** 2 + (1 - 2) ** 2 + (2 - 3) ** 2, rel=1e-12)


def test_two_images_are_enough_for_a_distance() -> None:
    real, drawn = cloud(50, 0), cloud(2, 1)
    cross = np.linalg.eigvals(np.cov(real.numpy(), rowvar=False) @ np.cov(drawn.numpy(), rowvar=False))
    expected = ((real.mean(0) - drawn.mean(0)) ** 2).sum().item()
    expected += np.trace(np.cov(real.numpy(), rowvar=False)) + np.trace(np.cov(drawn.numpy(), rowvar=False))
    expected -= 2 * np.sqrt(np.clip(cross.real, 0, None)).sum()
    assert reference_of(real).distance(drawn) == pytest.approx(expected, rel=1e-6)
    assert resampled_distances(drawn, reference_of(real), torch.tensor([[0, 1]])).item() == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_one_image_drawn_again_and_again_is_that_of_a_point() -> None:
    real, drawn = cloud(50, 0), cloud(3, 1)
    point = resampled_distances(drawn, reference_of(real), torch.tensor([[1, 1, 1]])).item()
    expected = ((real.mean(0) - drawn[1]) ** 2).sum().item() + np.trace(np.cov(real.numpy(), rowvar=False))
    assert point == pytest.approx(expected, rel=1e-5)


def test_kid_is_the_mean_over_100_subsets_drawn_with_seed_2020() -> None:
    real, drawn = cloud(40, 0).float(), cloud(30, 1).float() + 0.3
    rng, estimates = np.random.RandomState(2020), []
    x, y = drawn.double().numpy(), real.double().numpy()
    for _ in range(100):
        a, b = x[rng.choice(30, 10, replace=False)], y[rng.choice(40, 10, replace=False)]
        k_aa, k_bb, k_ab = ((p @ q.T / 6 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        estimates.append((k_aa.sum() - np.trace(k_aa) + k_bb.sum() - np.trace(k_bb)) / 90 - 2 * k_ab.mean())
    reference = Reference(real, neighbour_radii(real), reference_of(real.double()), None)
    assert score({"features": drawn}, reference, 10)["kid"] == pytest.approx(np.mean(estimates), rel=1e-5)


def test_five_images_are_the_fewest_that_are_judged() -> None:
    real = cloud(40, 0).float()
    reference = Reference(real, neighbour_radii(real), reference_of(real.double()), None)
    values = score({"features": cloud(5, 1).float()}, reference, 20)
    assert set(values) == {"fd", "kid", "precision", "recall"}
    assert 0 <= values["precision"] <= 1


def test_a_split_of_the_inception_score_has_5000_images() -> None:
    """Ten certain classes in the first 5,000 images score 10, one class in the rest 1; the mean of the two is 5.5."""
    logits = torch.cat([60 * torch.eye(10).repeat(500, 1), 60 * torch.eye(10)[:1].repeat(40, 1)])
    assert inception_score(logits) == pytest.approx(5.5, rel=1e-6)


def test_settings_name_the_constants_of_each_number() -> None:
    assert settings("kid", 50_000, 10_000, 1000) == (
        "mean of 100 subsets of 1000, cubic kernel, seed 2020; 10000 reference images"
    )
    assert settings("is", 50_000, 10_000, 1000).startswith("mean over splits of 5000 consecutive")
    assert settings("is", 40, 10_000, 1000).startswith("mean over splits of 40 consecutive")
    assert settings("precision", 40, 60, 1000) == settings("recall", 40, 60, 1000) == "k = 3; 60 reference images"
    assert "subsets of 60," in settings("kid", 100, 60, 1000)


def test_layers_decide_which_numbers_there_are() -> None:
    plain = ["fd", "kid", "precision", "recall"]
    assert kinds(["features"]) == plain
    assert kinds(["features", "logits"]) == [*plain, "is"]
    assert kinds(["features", "spatial"]) == [*plain, "sfd"]
    assert kinds(["features", "logits", "spatial"]) == [*plain, "is", "sfd"]


def test_all_training_images_can_be_neighbours_and_come_nearest_first() -> None:
    reference = torch.tensor([[[4.0, 0.0], [9.0, 0.0]], [[8.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 7.0]]])
    found = nearest_images(torch.zeros(1, 2), reference, np.array([10, 20, 30]), k=3)
    assert found.rows.tolist() == [[20, 30, 10]]
    assert found.mirrored.tolist() == [[True, False, False]]
    np.testing.assert_allclose(found.distances, [[1.0, 3.0, 4.0]], rtol=1e-5)


@pytest.mark.parametrize("gap", [2, 4])
def test_a_sheet_has_a_row_for_each_image_and_white_between_all(gap: int) -> None:
    chance = np.random.default_rng(0)
    images = chance.integers(0, 255, (2, 3, 5, 5), dtype=np.uint8)
    train = chance.integers(0, 255, (2, 2, 3, 5, 5), dtype=np.uint8)
    nearest = Nearest(np.array([[1, 2], [3, 4]]), np.array([[False, True], [True, False]]), np.zeros((2, 2), np.float32))
    sheet = neighbour_sheet(images, train, nearest, *([] if gap == 4 else [gap]))
    white = lambda height, width: np.full((height, width, 3), 255, np.uint8)  # noqa: E731
    width = 3 * (5 + gap) + 2 * gap
    rows = [white(gap, width)]
    for image, drawn, mirrored in zip(images, train, nearest.mirrored, strict=True):
        shown = [tile[..., ::-1] if turned else tile for tile, turned in zip(drawn, mirrored, strict=True)]
        first, *others = (tile.transpose(1, 2, 0) for tile in (image, *shown))
        between = [part for tile in others for part in (white(5, gap), tile)]
        rows += [np.concatenate([white(5, gap), first, white(5, gap), *between, white(5, gap)], axis=1), white(gap, width)]
    np.testing.assert_array_equal(sheet, np.concatenate(rows))


def test_statistics_in_half_the_precision_are_compared_in_float64() -> None:
    real, drawn = cloud(50, 0), cloud(20, 1).float()
    mean, covariance = real.mean(0).float(), torch.from_numpy(np.cov(real.numpy(), rowvar=False)).float()
    reference = FrechetReference.of_statistics(mean, covariance)
    assert reference.mean.dtype == reference.factor.dtype == torch.float64
    exact = FrechetReference.of_statistics(mean.double(), covariance.double())
    assert reference.distance(drawn) == exact.distance(drawn.double())


@pytest.mark.parametrize("block", [16, 8192])
def test_images_that_differ_in_one_direction_alone_have_a_distance(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding makes some of the eigenvalues that are zero negative; they have no root."""
    monkeypatch.setattr(sys.modules[FrechetReference.__module__], "BLOCK", block)
    real, along = cloud(50, 0), cloud(60, 1, width=1)
    direction = cloud(1, 2)
    drawn = along @ direction
    covariance = np.cov(real.numpy(), rowvar=False)
    own = np.cov(drawn.numpy(), rowvar=False)
    # of a covariance v v^T the root of the product has the trace sqrt(v^T S v)
    v = direction[0].numpy() * along.std().item()
    expected = ((real.mean(0) - drawn.mean(0)) ** 2).sum().item() + np.trace(covariance) + np.trace(own)
    expected -= 2 * np.sqrt(v @ covariance @ v)
    assert reference_of(real).distance(drawn) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_distance_of_features_that_are_not_finite_is_refused(bad: float) -> None:
    drawn = cloud(10, 1)
    drawn[[3, 7], 2] = bad
    with pytest.raises(NumericsError, match="image 3 and 1 others"):
        reference_of(cloud(50, 0)).distance(drawn)
