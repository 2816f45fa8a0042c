import pytest

from sfd_core.cli.experiment import parse_assignment, parse_value
from sfd_core.host.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("2e-3", 0.002), ("true", True), ("null", None), ("[0.9, 0.99]", [0.9, 0.99]), ("cosine+mse", "cosine+mse")],
)
def test_values_are_read_as_the_parameter_file_would_hold_them(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_an_assignment_splits_at_its_first_equals_sign() -> None:
    assert parse_assignment("report.title=a=b") == ("report.title", "a=b")


def test_an_assignment_without_equals_sign_is_an_error() -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignment("train.optimisation.steps")
