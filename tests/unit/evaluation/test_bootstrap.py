import pytest
import torch

from sfd_core.evaluation.bootstrap import resampled_distances, resampled_rows
from sfd_core.evaluation.metrics import FeatureMoments, FrechetReference


@pytest.mark.parametrize("dimensions", [5, 40])
def test_a_resample_has_the_distance_of_its_images(dimensions: int) -> None:
    source = torch.Generator().manual_seed(0)
    moments = FeatureMoments()
    moments.update(torch.randn(90, dimensions, generator=source) * 2 + 7)
    reference = FrechetReference.of(moments)
    features = torch.randn(24, dimensions, generator=source) + 6
    rows = torch.cat([torch.arange(24)[None], resampled_rows(24, 3, seed=1)])
    expected = [reference.distance(features[row]) for row in rows]
    assert resampled_distances(features, reference, rows).tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == 4


def test_rows_are_of_the_seed() -> None:
    rows = resampled_rows(50, 20, seed=3)
    assert torch.equal(rows, resampled_rows(50, 20, seed=3))
    assert not torch.equal(rows, resampled_rows(50, 20, seed=4))
    assert rows.shape == (20, 50)
    assert (rows.min(), rows.max()) == (0, 49)
