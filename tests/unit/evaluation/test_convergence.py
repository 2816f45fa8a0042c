import math
from pathlib import Path

import pandas as pd
import pytest

from sfd_core.evaluation.convergence import read_curves, speed_up
from sfd_core.host.errors import DataError


def write_curve(folder: Path, variant: str, values: list[float], samples: int = 500) -> None:
    steps = [100 * 2**index for index in range(len(values))]
    table = {"step": steps, "images_seen": [64 * s for s in steps], "seconds": [s / 10 for s in steps]}
    table |= {"flops": [1e9 * s for s in steps], "samples": [samples] * len(steps), "fd_x": values, "precision_x": values}
    for stage, file, columns in (
        ("evaluate", "curve.csv", set(table) - {"seconds"}),
        ("train", "history.csv", {"step", "seconds"}),
    ):
        (folder / stage / variant).mkdir(parents=True)
        pd.DataFrame({name: table[name] for name in table if name in columns}).to_csv(
            folder / stage / variant / file, index=False
        )


@pytest.fixture
def curves(tmp_path: Path) -> pd.DataFrame:
    write_curve(tmp_path, "slow", [100.0, 80.0, 60.0])
    write_curve(tmp_path, "fast", [90.0, 50.0, 20.0])
    write_curve(tmp_path, "instant", [10.0, 9.0, 8.0])
    return read_curves(tmp_path, ["slow", "fast", "instant"])


def reach(curves: pd.DataFrame, variant: str, target: str):
    return next(entry for entry in speed_up(curves, "fd_x", [target]) if entry.variant == variant)


def test_costs_are_interpolated_in_their_logarithm(curves: pd.DataFrame) -> None:
    found = reach(curves, "fast", "slow")
    share = (90 - 60) / (90 - 50)
    assert found.target_value == 60
    assert found.steps == pytest.approx(100 * 2**share)
    assert found.images_seen == pytest.approx(64 * found.steps)
    assert found.flops == pytest.approx(1e9 * found.steps)
    assert found.seconds == pytest.approx(found.steps / 10)
    assert not found.at_most


def test_a_target_that_was_never_reached_has_no_cost(curves: pd.DataFrame) -> None:
    found = reach(curves, "slow", "fast")
    assert (found.steps, found.images_seen, found.flops, found.seconds) == (None, None, None, None)


def test_a_target_reached_by_the_first_snapshot_is_an_upper_bound(curves: pd.DataFrame) -> None:
    found = reach(curves, "instant", "slow")
    assert (found.steps, found.at_most) == (100, True)


def test_a_variant_reaches_its_own_final_distance_where_its_curve_first_does(curves: pd.DataFrame, tmp_path: Path) -> None:
    assert reach(curves, "slow", "slow").steps == pytest.approx(400)
    write_curve(tmp_path / "more", "bounces", [100.0, 20.0, 60.0])
    assert reach(read_curves(tmp_path / "more", ["bounces"]), "bounces", "bounces").steps == pytest.approx(100 * 2**0.5)


def test_all_pairs_are_reported(curves: pd.DataFrame) -> None:
    assert len(speed_up(curves, "fd_x")) == 9


def test_distances_of_different_sample_counts_are_not_compared(tmp_path: Path) -> None:
    write_curve(tmp_path, "a", [3.0, 2.0], samples=500)
    write_curve(tmp_path, "b", [3.0, 2.0], samples=1500)
    with pytest.raises(DataError, match="mix fd_x of 500, 1500 samples"):
        speed_up(read_curves(tmp_path, ["a", "b"]), "fd_x")


def test_missing_and_incomplete_curves_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a/curve.csv is no readable curve"):
        read_curves(tmp_path, ["a"])
    (tmp_path / "evaluate" / "a").mkdir(parents=True)
    (tmp_path / "evaluate" / "a" / "curve.csv").write_text("step,seconds\n1,2\n")
    with pytest.raises(DataError, match="lacks columns images_seen, flops, samples"):
        read_curves(tmp_path, ["a"])


def test_a_curve_without_its_training_has_no_seconds(tmp_path: Path) -> None:
    write_curve(tmp_path, "a", [3.0, 2.0])
    (tmp_path / "train" / "a" / "history.csv").unlink()
    curves = read_curves(tmp_path, ["a"])
    assert curves["seconds"].isna().all()
    assert reach(curves, "a", "a").seconds is None


def test_nothing_is_interpolated_from_a_snapshot_without_a_distance_or_without_a_cost(tmp_path: Path) -> None:
    write_curve(tmp_path, "gap", [100.0, math.nan, 50.0])
    write_curve(tmp_path, "start", [100.0, 50.0, 40.0])
    write_curve(tmp_path, "target", [90.0, 70.0, 60.0])
    curves = read_curves(tmp_path, ["gap", "start", "target"])
    curves.loc[(curves["variant"] == "start") & (curves["step"] == 100), ["step", "images_seen", "flops", "seconds"]] = 0
    for variant, steps in (("gap", 400), ("start", 200)):
        found = reach(curves, variant, "target")
        assert (found.steps, found.images_seen, found.flops, found.seconds) == (steps, 64 * steps, 1e9 * steps, steps / 10)
