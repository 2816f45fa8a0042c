"""The study of solvers: the target first, nothing drawn twice, differences that are paired, budgets that follow from them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from measured_together import SAMPLER, points_drawn
from PIL import Image
from safetensors.torch import load_file

from sfd_core.evaluation.bootstrap import resampled_distances, resampled_rows
from sfd_core.evaluation.rerun import Measurement
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.studies import solvers as solver_study
from sfd_core.studies.solvers import plan_solvers, run_solvers, smallest_budgets
from sfd_core.studies.study import Point

SAMPLES = 6


@pytest.fixture(autouse=True)
def few_exact_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_study, "EXACT_EVALUATIONS", 40)


def run(measuring: Measurement, points: list[Point], out: Path) -> tuple[pd.DataFrame, int]:
    """Return the table and how many points were drawn."""
    return points_drawn(out, lambda: run_solvers(measuring, points, SAMPLES, out))


def test_the_target_comes_first_and_no_combination_twice() -> None:
    points = plan_solvers(SAMPLER, ["dopri5", "euler", "ab2"], [8, 4], target=8)
    assert [(point.sampler.solver, point.sampler.evaluations) for point in points] == [
        ("euler", 8),
        ("euler", 4),
        ("ab2", 4),
        ("ab2", 8),
        ("dopri5", 8),
    ]
    assert {point.sampler.seed for point in points} == {SAMPLER.seed}


def test_points_are_kept_and_compared_with_the_target_image_by_image(measuring: Measurement, tmp_path: Path) -> None:
    points = plan_solvers(SAMPLER, ["euler", "heun", "ab2"], [6], target=12)
    table, drawn = run(measuring, points, tmp_path / "out")
    again, none = run(measuring, points, tmp_path / "out")
    assert (drawn, none) == (4, 0)
    pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "solvers.csv"), table, check_dtype=False)
    assert table["solver"].tolist() == ["euler", "euler", "heun", "ab2"]
    assert table["evaluations"].tolist() == [12, 6, 6, 6]
    target = table.iloc[0]
    assert (target["difference"], target["difference_from"], target["difference_to"]) == (0, 0, 0)
    others = table.iloc[1:]
    assert others["fd_efficientnet_lite0"].nunique() == 3
    assert (others["difference"] == others["fd_efficientnet_lite0"] - target["fd_efficientnet_lite0"]).all()
    assert (others["difference_from"] < others["difference_to"]).all()
    assert (table["error"] > 0).all()
    assert target["error"] < others["error"].iloc[0]
    kept = [load_file((tmp_path / "out" / "points" / file).with_suffix(".safetensors")) for file in table["file"]]
    (exact,) = (tmp_path / "out" / "points").glob("*-exact.safetensors")
    errors = [float((file["latents"] - load_file(exact)["latents"]).square().mean().sqrt()) for file in kept]
    assert table["error"].tolist() == pytest.approx(errors)
    frechet = measuring.evaluator.references[measuring.evaluator.main].frechet
    rows = resampled_rows(SAMPLES, 200, SAMPLER.seed)
    target_distances, *distances = (resampled_distances(file["features"], frechet, rows) for file in kept)
    bounds = [np.quantile((found - target_distances).numpy(), [0.025, 0.975]) for found in distances]
    np.testing.assert_allclose(others[["difference_from", "difference_to"]], bounds)
    with Image.open(tmp_path / "out" / "solvers.png") as picture:
        assert min(picture.size) > 200


def test_a_budget_too_small_is_refused_before_anything_is_drawn(measuring: Measurement, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot cover"):
        run(measuring, plan_solvers(SAMPLER, ["ab2", "heun"], [4], target=8), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="heun with 1 evaluations cannot be drawn"):
        plan_solvers(SAMPLER, ["heun"], [1], target=8)


def test_lost_features_are_named(measuring: Measurement, tmp_path: Path) -> None:
    points = plan_solvers(SAMPLER, ["ab2"], [4], target=4)
    run(measuring, points, tmp_path / "out")
    # the exact solution is drawn again without a word
    lost = next(file for file in (tmp_path / "out" / "points").glob("*.safetensors") if "exact" not in file.name)
    lost.unlink()
    with pytest.raises(DataError, match=lost.name):
        run(measuring, points, tmp_path / "out")


def test_a_budget_counts_only_if_all_larger_ones_do() -> None:
    rows = [("euler", 100, 0.0), ("euler", 50, 5.1), ("ab2", 6, -0.1), ("ab2", 10, 5.1), ("ab2", 16, 4.9), ("ab2", 25, -1.0)]
    rows += [("heun", 50, 5.1)]
    table = pd.DataFrame(rows, columns=["solver", "evaluations", "difference_to"])
    table["fid"], table["fd_other"] = 1000.0, 50_000.0  # the differences are of the first extractor
    table.loc[1:, "fid"] = 900.0  # and relative to the target, which is the first point
    assert smallest_budgets(table) == {"euler": 100, "ab2": 16, "heun": None}
