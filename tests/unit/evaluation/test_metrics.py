import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from sfd_core.evaluation import metrics
from sfd_core.evaluation.metrics import (
    FeatureMoments,
    FrechetReference,
    Reference,
    inception_score,
    kinds,
    neighbour_radii,
    number_name,
    score,
    settings,
)
from sfd_core.host.errors import DataError, NumericsError


def cloud(count: int, seed: int, width: int = 12, offset: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + offset


def reference_of(features: Tensor, spatial: Tensor | None = None) -> Reference:
    def fitted(values: Tensor) -> FrechetReference:
        moments = FeatureMoments()
        moments.update(values)
        return FrechetReference.of(moments)

    return Reference(features, neighbour_radii(features), fitted(features), None if spatial is None else fitted(spatial))


def test_the_reference_compared_with_itself_is_perfect() -> None:
    real = cloud(80, 0)
    values = score({"features": real}, reference_of(real), kid_subset_size=40)
    assert abs(values["fd"]) < 1e-6
    assert values["precision"] == values["recall"] == 1.0
    assert abs(values["kid"]) < 0.05 * score({"features": real + 1.0}, reference_of(real), 40)["kid"]


def test_inception_score_depends_on_the_order_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "IS_SPLIT", 10)
    cycling = 8 * torch.eye(10).repeat(10, 1)
    by_class = cycling[torch.arange(100).reshape(10, 10).T.flatten()]
    assert inception_score(by_class) == pytest.approx(1.0)
    assert inception_score(cycling) > 8.0
    assert "consecutive images in the drawn order" in settings("is", 50_000, 10_000, 1000)


def test_precision_and_recall_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = cloud(80, 0, width=3), cloud(130, 1, width=3, offset=0.7)
    whole = score({"features": drawn}, reference_of(real), kid_subset_size=20)
    monkeypatch.setattr(metrics, "DISTANCE_ROWS", 32)
    parts = score({"features": drawn}, reference_of(real), kid_subset_size=20)
    assert (parts["precision"], parts["recall"]) == (whole["precision"], whole["recall"])


@pytest.mark.parametrize(("count", "offset"), [(130, 0.0), (130, 0.7), (60, 3.0)])
def test_precision_and_recall_are_those_of_torch_fidelity(count: int, offset: float) -> None:
    real, drawn = cloud(80, 0, width=3), cloud(count, 1, width=3, offset=offset)
    values = score({"features": drawn}, reference_of(real), kid_subset_size=20)
    settings = {"prc_neighborhood": 3, "prc_batch_size": 10_000, "save_cpu_ram": False, "verbose": False}
    known = prc_features_to_metric(drawn, real, **settings)
    assert (values["precision"], values["recall"]) == pytest.approx((known["precision"], known["recall"]), abs=1e-7)


def test_spatial_distance_is_scored_where_there_is_a_spatial_layer() -> None:
    real, spatial = cloud(40, 0), cloud(40, 5, width=7)
    values = score({"features": real, "spatial": spatial + 1.0}, reference_of(real, spatial), 20)
    assert values["sfd"] == pytest.approx(7.0, rel=1e-4)
    assert "sfd" not in score({"features": real}, reference_of(real), 20)


def test_only_standard_inception_measures_fid() -> None:
    assert [number_name(kind, "inception") for kind in ("fd", "sfd", "is", "kid")] == ["fid", "sfid", "is", "kid_inception"]
    assert number_name("fd", "inception_custom") == "fd_inception_custom"
    assert number_name("sfd", "inception_custom") == "sfid_inception_custom"
    assert number_name("fd", "efficientnet_lite2") == "fd_efficientnet_lite2"
    assert number_name("precision", "dinov2") == "precision_dinov2"


def test_fewer_than_five_images_and_infinite_features_are_refused() -> None:
    reference = reference_of(cloud(40, 0))
    values = score({"features": cloud(5, 1)}, reference, 20)
    assert set(values) == {"fd", "kid", "precision", "recall"}
    assert 0 <= values["precision"] <= 1
    with pytest.raises(DataError, match="4 images cannot be measured"):
        score({"features": cloud(4, 1)}, reference, 20)
    broken = cloud(10, 1)
    broken[3] = torch.inf
    with pytest.raises(NumericsError, match="image 3"):
        score({"features": broken}, reference, 20)


def test_features_far_from_the_origin_lose_no_digits_in_precision_and_recall() -> None:
    """Distances do not change with the origin. Of numbers near 4096 float32 would leave a squared distance no digit."""
    real, drawn = ((64 * cloud(count, count, width=4)).round() / 64 for count in (80, 50))
    far = torch.tensor([4096.0, -4096.0, 4096.0, -4096.0])
    near = score({"features": drawn}, reference_of(real), kid_subset_size=20)
    moved = score({"features": drawn + far}, reference_of(real + far), kid_subset_size=20)
    for kind in ("precision", "recall"):
        assert 0 < near[kind] < 1
        assert moved[kind] == near[kind]


def test_kid_is_the_mean_over_100_subsets_drawn_with_seed_2020() -> None:
    real, drawn = cloud(40, 0, width=6), cloud(30, 1, width=6, offset=0.3)
    rng, estimates = np.random.RandomState(2020), []
    x, y = drawn.double().numpy(), real.double().numpy()
    for _ in range(100):
        a, b = x[rng.choice(30, 10, replace=False)], y[rng.choice(40, 10, replace=False)]
        k_aa, k_bb, k_ab = ((p @ q.T / 6 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        estimates.append((k_aa.sum() - np.trace(k_aa) + k_bb.sum() - np.trace(k_bb)) / 90 - 2 * k_ab.mean())
    assert score({"features": drawn}, reference_of(real), 10)["kid"] == pytest.approx(np.mean(estimates), rel=1e-5)


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
