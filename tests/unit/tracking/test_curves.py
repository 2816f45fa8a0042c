from pathlib import Path

import pytest

from sfd_core.tracking.curves import Curve, Point, metric_name


def test_rows_become_points(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("step,images_seen,seconds,loss\n5,40,2.5,0.75\n")
    assert list(Curve(tmp_path / "c.csv", "train").points()) == [
        Point("train/images_seen", 5, 40.0, 2.5),
        Point("train/seconds", 5, 2.5, 2.5),
        Point("train/loss", 5, 0.75, 2.5),
    ]


def test_what_is_not_finite_or_not_yet_whole_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("step,seconds,loss,mse\n1,1,nan,inf\n2,2,,0.5\n3,3,0.1,0.")
    points = list(Curve(tmp_path / "c.csv", "t").points())
    assert [(point.key, point.step) for point in points] == [("t/seconds", 1), ("t/seconds", 2), ("t/mse", 2)]


def test_an_absent_curve_has_no_points(tmp_path: Path) -> None:
    assert list(Curve(tmp_path / "c.csv", "train").points()) == []


def test_names_take_the_characters_that_mlflow_takes() -> None:
    assert metric_name("evaluate", "precision@3 (k=3)") == "evaluate/precision_3 _k_3_"


def test_hours_and_cost_are_forecast_from_the_first_200_steps_of_a_long_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFD_HOUR_PRICE", "2.5")
    path = tmp_path / "c.csv"
    path.write_text("step,seconds\n100,50\n200,90\n300,900\n")
    forecast = [Point("forecast/hours", 200, 5.0, 90.0), Point("forecast/cost", 200, 12.5, 90.0)]
    assert list(Curve(path, "train", steps=40_000).points())[3:] == forecast
    monkeypatch.delenv("SFD_HOUR_PRICE")
    assert list(Curve(path, "train", steps=40_000).points())[3:] == forecast[:1]
    assert len(list(Curve(path, "train", steps=1000).points())) == len(list(Curve(path, "train").points())) == 3
    path.write_text("step,seconds\n100,50\n")
    assert len(list(Curve(path, "train", steps=40_000).points())) == 1
