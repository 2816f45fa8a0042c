import pytest

from sfd_core.experiment.numbers import number_name
from sfd_core.reporting import text


@pytest.mark.parametrize(
    ("name", "kind", "extractor", "title"),
    [
        ("fid", "fd", "inception", "FID"),
        ("kid_inception", "kid", "inception", "KID"),
        ("fd_efficientnet_lite2", "fd", "efficientnet_lite2", "Fréchet distance"),
        ("precision_dinov2", "precision", "dinov2", "Precision"),
    ],
)
def test_only_inception_is_called_fid(name: str, kind: str, extractor: str, title: str) -> None:
    parsed = number_name(name)
    assert parsed is not None
    assert (parsed.kind, parsed.extractor, parsed.title) == (kind, extractor, title)


@pytest.mark.parametrize("name", ["step", "images_seen", "seconds", "flops", "samples", "fd_", "loss"])
def test_other_columns_are_no_numbers(name: str) -> None:
    assert number_name(name) is None


def test_precision_recall_and_inception_score_rise() -> None:
    higher = {
        name for name in ("fid", "is", "kid_dinov2", "precision_dinov2", "recall_dinov2") if number_name(name).higher_is_better
    }
    assert higher == {"is", "precision_dinov2", "recall_dinov2"}


@pytest.mark.parametrize(
    ("value", "written"), [(2155.6, "2,156"), (12.34, "12.3"), (99.96, "100"), (0.1, "0.100"), (0.00002, "2.0e-05"), (0, "0")]
)
def test_numbers_keep_three_digits(value: float, written: str) -> None:
    assert text.number(value) == written


def test_large_numbers_have_no_exponent() -> None:
    assert [text.rounded(value) for value in (0.01234, 1.5, 99.96, 1234.5, 4.567e6)] == [
        "0.0123",
        "1.5",
        "100",
        "1,230",
        "4,570,000",
    ]


def test_costs_have_units() -> None:
    assert [text.flops(value) for value in (1.63e13, 9.996e14, 999.6)] == ["16.3 TFLOP", "1 PFLOP", "1 kFLOP"]
    assert [text.duration(seconds) for seconds in (12.3, 225, 7200, 3.9e6)] == ["12.3 s", "3 min 45 s", "2 h", "1,080 h"]
