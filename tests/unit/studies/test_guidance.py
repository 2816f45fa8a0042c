"""A guidance curve: every combination once, nothing drawn twice, a table that says how each point was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from measured_together import SAMPLER, points_drawn
from PIL import Image

from sfd_core.cli.studies import parse_interval
from sfd_core.evaluation.rerun import Measurement
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.studies.guidance import Parts, plan_points, run_curve
from sfd_core.studies.study import Point

GUIDED = SAMPLER.model_copy(update={"guidance": "cfg"})
WHOLE, LATE = (0.0, 1.0), (0.3, 1.0)
POINTS = plan_points(GUIDED, [1.0, 2.0], [WHOLE, LATE], [4])


def run(measuring: Measurement, points: list[Point], out: Path, parts: Parts = "both") -> tuple[pd.DataFrame, int]:
    """Return the table and how many points were drawn."""
    return points_drawn(out, lambda: run_curve(measuring, points, 6, out, parts))


def test_every_combination_is_a_point_and_scale_one_only_once() -> None:
    points = plan_points(GUIDED, [1.0, 1.5, 2.0], [WHOLE, LATE], [10, 20])
    found = {(*point.settings.values(), point.sampler.evaluations): point for point in points}
    assert len(found) == len(points) == 2 * (1 + 2 * 2)
    point = found[1.5, *LATE, 20]
    assert point.sampler.evaluations == 20
    assert (point.sampler.texture, point.sampler.semantic) == (point.sampler.semantic, point.sampler.texture)
    assert point.sampler.texture.interval == list(LATE)


def test_one_part_can_be_varied_alone() -> None:
    (point,) = plan_points(GUIDED, [1.5], [LATE], [10], parts="semantic")
    assert point.sampler.texture == GUIDED.texture
    assert (point.sampler.semantic.scale, point.sampler.semantic.interval) == (1.5, [0.3, 1.0])


def test_without_guidance_or_with_impossible_values_nothing_is_planned() -> None:
    with pytest.raises(ConfigError, match="choose --guidance cfg, autoguidance, internal or semantic"):
        plan_points(SAMPLER, [1.5], [WHOLE], [10])
    with pytest.raises(ConfigError, match="0 <= first < second <= 1"):
        plan_points(GUIDED, [1.5], [(0.8, 0.2)], [10])
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        plan_points(GUIDED, [-1.0], [WHOLE], [10])


def test_a_curve_is_resumable_point_by_point_and_draws_nothing_twice(measuring: Measurement, tmp_path: Path) -> None:
    _, first = run(measuring, POINTS[:1], tmp_path / "curve")
    before = (tmp_path / "curve" / "points").iterdir().__next__().stat().st_mtime_ns
    table, then = run(measuring, POINTS, tmp_path / "curve")
    assert (first, then) == (1, 2)
    assert any(file.stat().st_mtime_ns == before for file in (tmp_path / "curve" / "points").iterdir())
    again, none = run(measuring, POINTS, tmp_path / "curve")
    assert none == 0
    pd.testing.assert_frame_equal(again, table)


def test_the_table_says_how_each_point_was_measured(measuring: Measurement, tmp_path: Path) -> None:
    table, _ = run(measuring, POINTS, tmp_path / "curve")
    read = pd.read_csv(tmp_path / "curve" / "curve.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert table["scale"].tolist() == [1.0, 2.0, 2.0]
    assert table["fd_efficientnet_lite0"].nunique() == 3
    assert set(table["samples"]) == {6}
    assert set(table["evaluations"]) == {4}
    assert table["guidance"].str.startswith("cfg: ").all()
    for row in table.to_dict("records"):
        numbers = json.loads((tmp_path / "curve" / "points" / row["file"]).read_text())["final"]
        assert numbers["fd_efficientnet_lite0"]["value"] == row["fd_efficientnet_lite0"]
        assert numbers["fd_efficientnet_lite0"]["protocol"]["recipe"]["sampler"]["texture"]["scale"] == row["scale"]
    with Image.open(tmp_path / "curve" / "curve.png") as picture:
        assert min(picture.size) > 200


def test_another_call_adds_to_the_table_what_was_measured_alike(measuring: Measurement, tmp_path: Path) -> None:
    first, _ = run(measuring, plan_points(GUIDED, [1.0, 3.0], [WHOLE], [4]), tmp_path / "curve")
    both, drawn = run(measuring, plan_points(GUIDED, [1.0, 2.0], [WHOLE], [4]), tmp_path / "curve")
    assert drawn == 1
    assert list(both["scale"]) == [1.0, 2.0, 3.0]
    assert list(both["file"])[::2] == list(first["file"])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curve" / "curve.csv"), both, check_dtype=False)


def test_a_curve_never_joins_what_was_guided_otherwise(measuring: Measurement, tmp_path: Path) -> None:
    """Else one line would show two ways to guide, or two solvers."""
    run(measuring, plan_points(GUIDED, [3.0], [WHOLE], [4], "texture"), tmp_path, "texture")
    for changes in ({}, {"solver": "ab2"}, {"shift": 2.0}):
        base = GUIDED.model_copy(update=changes)
        table, drawn = run(measuring, plan_points(base, [2.0], [WHOLE], [4]), tmp_path)
        assert (list(table["scale"]), drawn) == ([2.0], 1)
    table, _ = run(measuring, plan_points(GUIDED, [4.0], [WHOLE], [4], "texture"), tmp_path, "texture")
    assert list(table["scale"]) == [4.0]


def test_a_folder_of_another_denoiser_is_left_alone(measuring: Measurement, tmp_path: Path) -> None:
    run(measuring, POINTS[:1], tmp_path)
    (file,) = (tmp_path / "points").glob("*.json")
    file.write_text(file.read_text().replace(measuring.weights, "ab" * 32))
    before = (tmp_path / "curve.csv").read_bytes()
    with pytest.raises(DataError, match=r"holds points of weights abababababab, but this denoiser has .*; give another folder"):
        run_curve(measuring, POINTS[1:2], 6, tmp_path)
    assert (tmp_path / "curve.csv").read_bytes() == before


def test_a_damaged_point_is_named(measuring: Measurement, tmp_path: Path) -> None:
    run(measuring, POINTS[:1], tmp_path / "curve")
    (file,) = (tmp_path / "curve" / "points").iterdir()
    file.write_text("{}")
    with pytest.raises(DataError, match=file.name):
        run(measuring, POINTS[:1], tmp_path / "curve")


def test_an_interval_is_two_times_with_a_comma() -> None:
    assert parse_interval("0.1,1") == (0.1, 1.0)
    with pytest.raises(ConfigError, match=r"such as 0\.1,1"):
        parse_interval("0.1")


def test_a_point_is_named_by_all_that_its_numbers_depend_on(measuring: Measurement) -> None:
    evaluator, seeded = measuring.evaluator, SAMPLER.model_copy(update={"seed": 1})
    ((name, reference),) = evaluator.references.items()
    other_images = replace(evaluator, references={name: replace(reference, digest="0" * 64)})
    smaller_subsets = replace(evaluator, kid_subset_size=evaluator.kid_subset_size - 1)
    keys = [measuring.key(SAMPLER, 6), measuring.key(SAMPLER, 7), measuring.key(seeded, 6)]
    keys += [replace(measuring, evaluator=other).key(SAMPLER, 6) for other in (other_images, smaller_subsets)]
    assert len(set(keys)) == 5
