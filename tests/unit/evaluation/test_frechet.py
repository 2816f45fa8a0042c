import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from sfd_core.evaluation import metrics
from sfd_core.evaluation.bootstrap import resampled_distances
from sfd_core.evaluation.metrics import FeatureMoments, FrechetReference
from sfd_core.host.errors import DataError, NumericsError


def correlated(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) * torch.logspace(0, -2, width)
    return torch.relu(torch.randn(count, width, generator=generator) @ mix + 0.1 * seed)


def reference_of(features: Tensor) -> FrechetReference:
    moments = FeatureMoments()
    for batch in torch.split(features, 64):
        moments.update(batch)
    return FrechetReference.of(moments)


def fidelity_distance(drawn: Tensor, real: Tensor) -> float:
    """What torch-fidelity's own functions say: they round float32 means, and of few images add roots of noise."""
    statistics = fid_features_to_statistics(drawn), fid_features_to_statistics(real)
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


@pytest.mark.parametrize(
    ("images", "samples", "width"),
    [
        (400, 20, 48),
        (400, 90, 48),
        (400, 300, 48),
        (1000, 600, 256),
        (1000, 100, 256),
        (100, 600, 256),
        (30, 40, 48),
        pytest.param(5_000, 3_000, 2_048, marks=pytest.mark.slow),
    ],
)
def test_distance_equals_torch_fidelity(images: int, samples: int, width: int) -> None:
    real, drawn = correlated(images, width, seed=1), correlated(samples, width, seed=2)
    mine = reference_of(real).distance(drawn)
    assert mine == pytest.approx(fidelity_distance(drawn, real), rel=1e-6)
    assert mine == pytest.approx(fidelity_distance(drawn.double(), real.double()), rel=1e-7)


def test_many_images_are_taken_block_by_block_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = correlated(400, 48, seed=1), correlated(300, 48, seed=2)
    whole = reference_of(real).distance(drawn)
    monkeypatch.setattr(metrics, "BLOCK", 64)
    assert reference_of(real).distance(drawn) == pytest.approx(whole, rel=1e-9)


def test_a_reference_of_given_statistics_is_that_of_the_features() -> None:
    real, drawn = correlated(400, 12, seed=1).double(), correlated(90, 12, seed=2)
    given = FrechetReference.of_statistics(real.mean(0), torch.from_numpy(np.cov(real.numpy(), rowvar=False)))
    assert given.distance(drawn) == pytest.approx(reference_of(real).distance(drawn), rel=1e-9)


def test_moments_do_not_depend_on_batches_and_survive_a_large_offset() -> None:
    features = correlated(150, 16, seed=4).double() + 1e6
    moments = FeatureMoments()
    for batch in torch.split(features, 7):
        moments.update(batch)
    np.testing.assert_allclose(moments.mean.numpy(), features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(features.numpy(), rowvar=False), rtol=1e-6, atol=1e-8)


def test_factor_gives_the_covariance_back() -> None:
    features = correlated(150, 16, seed=5)
    factor = reference_of(features).factor.numpy()
    np.testing.assert_allclose(factor @ factor.T, np.cov(features.double().numpy(), rowvar=False), atol=1e-9)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="no features"):
        _ = FeatureMoments().mean
    with pytest.raises(DataError, match="0 images have no covariance"):
        _ = FeatureMoments().covariance
    with pytest.raises(DataError, match="at least two images, got 1"):
        reference_of(correlated(9, 4, seed=1)).distance(torch.zeros(1, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features = correlated(10, 4, seed=1)
    features[[3, 7], 2] = bad
    for measure in (FeatureMoments().update, reference_of(correlated(50, 4, seed=2)).distance):
        with pytest.raises(NumericsError, match="image 3 and 1 others"):
            measure(features)


def test_two_images_are_the_fewest_that_have_a_covariance() -> None:
    features = correlated(2, 4, seed=1).double()
    moments = FeatureMoments()
    moments.update(features[:1])
    with pytest.raises(DataError, match="1 images have no covariance"):
        _ = moments.covariance
    moments.update(features[1:])
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(features.numpy(), rowvar=False), atol=1e-12)


def test_distance_of_diagonal_normals_is_the_sum_over_axes() -> None:
    """With diagonal covariances: sum of (m1 - m2)^2 + (s1 - s2)^2. Four points at m +- s sqrt(3) / 2 ... have it unbiased."""
    reference = FrechetReference.of_statistics(torch.tensor([1.0, -2.0]), torch.diag(torch.tensor([4.0, 9.0])))
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    drawn = torch.tensor([3.0, 5.0]) + corners * torch.tensor([1.0, 2.0]) * (3 / 4) ** 0.5
    assert reference.distance(drawn) == pytest.approx((3 - 1) ** 2 + (5 + 2) ** 2 + (1 - 2) ** 2 + (2 - 3) ** 2, rel=1e-12)


def test_two_images_are_enough_for_a_distance() -> None:
    real, drawn = correlated(50, 6, seed=1).double(), correlated(2, 6, seed=2).double()
    covariances = np.cov(real.numpy(), rowvar=False), np.cov(drawn.numpy(), rowvar=False)
    expected = ((real.mean(0) - drawn.mean(0)) ** 2).sum().item() + sum(map(np.trace, covariances))
    expected -= 2 * np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
    assert reference_of(real).distance(drawn) == pytest.approx(expected, rel=1e-6)
    assert resampled_distances(drawn, reference_of(real), torch.tensor([[0, 1]])).item() == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_one_image_drawn_again_and_again_is_that_of_a_point() -> None:
    real, drawn = correlated(50, 6, seed=1).double(), correlated(3, 6, seed=2).double()
    point = resampled_distances(drawn, reference_of(real), torch.tensor([[1, 1, 1]])).item()
    expected = ((real.mean(0) - drawn[1]) ** 2).sum().item() + np.trace(np.cov(real.numpy(), rowvar=False))
    assert point == pytest.approx(expected, rel=1e-5)


def test_statistics_in_half_the_precision_are_compared_in_float64() -> None:
    real, drawn = correlated(50, 6, seed=1), correlated(20, 6, seed=2)
    mean, covariance = real.mean(0), torch.from_numpy(np.cov(real.numpy(), rowvar=False)).float()
    reference = FrechetReference.of_statistics(mean, covariance)
    assert reference.mean.dtype == reference.factor.dtype == torch.float64
    exact = FrechetReference.of_statistics(mean.double(), covariance.double())
    assert reference.distance(drawn) == exact.distance(drawn.double())


@pytest.mark.parametrize("block", [16, 8192])
def test_images_that_differ_in_one_direction_alone_have_a_distance(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding makes some of the eigenvalues that are zero negative; they have no root."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    source = torch.Generator().manual_seed(0)
    along, direction = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in ((60, 1), (1, 6)))
    real, drawn = correlated(50, 6, seed=1).double(), along @ direction
    covariance = np.cov(real.numpy(), rowvar=False)
    # of a covariance v v^T the root of the product has the trace sqrt(v^T S v)
    v = direction[0].numpy() * along.std().item()
    expected = ((real.mean(0) - drawn.mean(0)) ** 2).sum().item() + np.trace(covariance) + v @ v
    expected -= 2 * np.sqrt(v @ covariance @ v)
    assert reference_of(real).distance(drawn) == pytest.approx(expected, rel=1e-6)
