"""What a person is told of a long training."""

import pytest

from sfd_core.training import progress
from sfd_core.training.progress import Progress, forecast


def test_a_forecast_says_hours_and_cost() -> None:
    words = forecast(5400, 1000, 2.0)
    assert words.startswith("forecast: 1,000 more steps take 1.5 hours, until 2")
    assert words.endswith("cost 3.00 (SFD_HOUR_PRICE)")
    assert "cost" not in forecast(5400, 1000, None)


def test_it_comes_once_after_200_steps_of_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SHORT", 0.0)
    monkeypatch.setenv("SFD_HOUR_PRICE", "1")
    with Progress("sfd", 1000, start=100) as shown:
        shown.show(299, 1.0, 1.0)
        assert "forecast" not in capsys.readouterr().err
        shown.show(300, 1.0, 1.0)
        assert "sfd: forecast: 700 more steps take" in capsys.readouterr().err
        shown.show(400, 1.0, 1.0)
        assert "forecast" not in capsys.readouterr().err
