"""Environment variables: read when they are asked for, and checked with a message that names them."""

import pytest

from sfd_core.host.errors import ConfigError
from sfd_core.host.machine import worker_name
from sfd_core.host.settings import Settings


def test_without_variables_every_setting_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(Settings.variable(name), raising=False)
    assert Settings.read() == Settings.model_construct()
    assert Settings.read().gpus_per_point == 1


def test_a_variable_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        monkeypatch.setenv("SFD_WORKER", name)
        assert worker_name() == name
    monkeypatch.setenv("SFD_WORKER", "")
    assert worker_name()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("SFD_GPUS_PER_POINT", "0", "must be a number of GPUs such as 1 or 8"),
        ("SFD_GPUS_PER_POINT", "many", "must be a number of GPUs such as 1 or 8"),
        ("SFD_PROCESSES", "-1", "must be a number of processes such as 1 or 8"),
        ("SFD_CHECKPOINTS", "s3:///prefix", "must be s3://BUCKET or s3://BUCKET/PREFIX"),
        ("SFD_VERIFY", "yes", "must be 'always'"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        Settings.read()
    assert str(caught.value) == f"{variable} is {value!r}, but {told}; set it right or unset it"
    assert caught.value.__context__ is None
