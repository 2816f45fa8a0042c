"""Seconds of a Fréchet distance against a fixed reference, ours and torch-fidelity's, of the same features."""

import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from sfd_core.evaluation.metrics import FeatureMoments, FrechetReference
from sfd_core.host.seeding import generator

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

IMAGES = [1_000, 5_000]
FEATURES = 2048
"""Of Inception."""


def features(images: int, seed: int) -> Tensor:
    """Return correlated features (images, FEATURES) as networks make them: few directions hold most of the variance."""
    source = generator(seed, "features")
    scales = torch.arange(1, FEATURES + 1) ** -0.5
    mixed = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator(0, "mix")))[0]
    return (torch.randn(images, FEATURES, generator=source) * scales) @ mixed


@pytest.mark.parametrize("images", IMAGES)
def test_frechet_distance_against_torch_fidelity(
    benchmark: BenchmarkFixture, remark: Callable[[str], None], images: int
) -> None:
    real, generated = features(10_000, seed=1), features(images, seed=2)
    moments = FeatureMoments()
    moments.update(real)
    reference, statistics = FrechetReference.of(moments), fid_features_to_statistics(real)
    began = time.perf_counter()
    theirs = fid_statistics_to_metric(statistics, fid_features_to_statistics(generated), verbose=False)
    seconds = time.perf_counter() - began
    distance = benchmark.pedantic(lambda: reference.distance(generated), rounds=3, warmup_rounds=1)
    their_distance = float(next(iter(theirs.values())))
    assert distance == pytest.approx(their_distance, rel=1e-4)
    if benchmark.stats is not None:
        ratio = seconds / benchmark.stats.stats.median
        benchmark.extra_info.update(torch_fidelity_seconds=seconds, distance=distance, torch_fidelity_distance=their_distance)
        remark(f"torch-fidelity takes {seconds:.1f} s for the same number, {ratio:.0f} times as long")
