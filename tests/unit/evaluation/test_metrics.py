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


def test_too_few_images_and_nan_are_refused() -> None:
    reference = reference_of(cloud(40, 0))
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
