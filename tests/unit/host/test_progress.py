import pytest

from sfd_core.host import progress
from sfd_core.host.progress import format_rate, with_progress


def test_items_pass_unchanged_and_the_last_line_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress(range(5), 18, "prepare train", step=4)) == list(range(5))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("prepare train: 18 images in ")


def test_a_long_wait_says_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    list(with_progress(range(3), 3, "features", unit="rows"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[0].startswith("features: 1 of 3 rows, ")
    assert said[0].endswith(" s left")


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(with_progress(range(3), 10, "features", step=4)) == [0, 1, 2]
    assert "10/10" in capsys.readouterr().err


def test_a_slow_rate_is_not_shown_as_none() -> None:
    assert [format_rate(rate) for rate in (0.1624, 1.55, 30.4, 12345.6)] == ["0.16", "1.6", "30", "12,346"]
