"""Which points a sweep has, and which it refuses before anything starts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from emoji import emoji_values

from sfd_core.experiment.estimates import WEIGHTS_A_BLOCK, outlook, project_rates
from sfd_core.experiment.grid import CURRENT, Space, base_values, plan_points, shared_groups
from sfd_core.experiment.params import parse_params
from sfd_core.experiment.presets import load_preset
from sfd_core.host.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
VALUES: dict[str, Any] = emoji_values()


def plan(variants: tuple[str, ...] = ("sfd",), grid: Any = None, seeds: tuple[int, ...] = (), changes: Any = None) -> Any:
    return plan_points(VALUES, Space(variants, grid or {}, seeds, changes or {}), "code", ROOT)


def test_points_are_every_combination_each_an_experiment_of_its_own() -> None:
    before = copy.deepcopy(VALUES)
    points = plan(grid={"delta_t": [0.0, 0.3], "repa.weight": [0.0, 0.5]}, seeds=(0, 1))
    assert len(points) == len({point.key for point in points}) == len({point.name for point in points}) == 8
    for point in points:
        params = parse_params(point.values)
        assert params.active == ["sfd"] == list(params.variants)
        variant = params.variants["sfd"]
        assert point.settings == {"delta_t": variant.delta_t, "repa.weight": variant.repa.weight, "seed": variant.seed}
    assert points[0].name == "sfd-delta_t-0-weight-0-seed-0"
    assert before == VALUES


def test_points_whose_values_read_alike_or_are_long_have_names_of_their_own_that_git_takes() -> None:
    titles = ["a b", "a_b", *(f"{'long ' * 60}{number}" for number in range(2)), "other"]
    names = [point.name for point in plan(grid={"report.title": titles})]
    assert len(set(names)) == len(titles)
    assert max(map(len, names)) < 250
    assert names[-1] == "sfd-title-other-seed-0"


def test_a_key_depends_on_what_shapes_the_point_and_on_nothing_else() -> None:
    (point,) = plan(grid={"delta_t": [0.3]})
    other = copy.deepcopy(VALUES)
    other["variants"]["dit"]["learning_rate"] = 1.0
    other["active"] = ["dit"]
    (same,) = plan_points(other, Space(["sfd"], {"delta_t": [0.3]}, [0], {}), "code", ROOT)
    assert same.key == point.key
    (other_code,) = plan_points(VALUES, Space(["sfd"], {"delta_t": [0.3]}, [], {}), "another", ROOT)
    (other_steps,) = plan(grid={"delta_t": [0.3]}, changes={"train.optimisation.steps": 600})
    assert len({point.key, other_code.key, other_steps.key}) == 3


def test_points_share_stages_unless_what_varies_comes_before_training() -> None:
    assert len(shared_groups(plan(("sfd", "sync"), seeds=(0, 1)))) == 1
    assert len(shared_groups(plan(grid={"train.optimisation.batch_size": [32, 64]}))) == 1
    assert len(shared_groups(plan(grid={"semantic_vae.kl_weight": [1e-7, 1e-6]}, seeds=(0, 1)))) == 2
    assert len(shared_groups(plan(grid={"evaluate.final_samples": [500, 1000]}))) == 2


def test_drawn_values_go_together() -> None:
    draws = [{"delta_t": 0.1, "learning_rate": 0.004}, {"delta_t": 0.4, "learning_rate": 0.002}]
    points = plan_points(VALUES, Space(["sfd"], {}, [0, 1], {}, draws), "code", ROOT)
    variants = [point.values["variants"]["sfd"] for point in points]
    assert [(variant["delta_t"], variant["learning_rate"], variant["seed"]) for variant in variants] == [
        (0.1, 0.004, 0),
        (0.1, 0.004, 1),
        (0.4, 0.002, 0),
        (0.4, 0.002, 1),
    ]
    with pytest.raises(ConfigError, match="is swept and also set"):
        plan_points(VALUES, Space(["sfd"], {}, [], {"delta_t": 0.3}, draws), "code", ROOT)


def test_a_change_of_a_variant_holds_for_every_variant() -> None:
    points = plan(("sfd", "sync"), changes={"learning_rate": 0.004})
    assert [point.values["variants"][point.variant]["learning_rate"] for point in points] == [0.004, 0.004]


def test_only_variants_that_have_the_swept_value_are_swept() -> None:
    assert [point.name for point in plan(("dit", "sfd", "repa"), {"delta_t": [0.0, 0.3]})] == [
        "sfd-delta_t-0-seed-0", "sfd-delta_t-0p3-seed-0",
    ]  # fmt: skip
    assert [point.variant for point in plan(("dit", "sfd"), {"train.snapshots": [2]})] == ["dit", "sfd"]


@pytest.mark.parametrize(
    ("grid", "having"),
    [
        ({"prediction": ["velocity", "data"]}, ["lightningdit", "sync"]),
        ({"inner": [None, {"block": 2, "weight": 0.5}]}, ["lightningdit", "sync"]),
        ({"path": [None, [[0, 0], [0, 0.5], [1, 1]]]}, ["sync"]),
    ],
)
def test_a_value_that_a_variant_refuses_is_not_swept_in_it(grid: dict[str, Any], having: list[str]) -> None:
    points = plan(("dit", "lightningdit", "sync"), grid)
    assert list(dict.fromkeys(point.variant for point in points)) == having
    assert len(points) == 2 * len(having)


def test_no_variants_are_all_that_are_active() -> None:
    assert [point.variant for point in plan(())] == VALUES["active"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"grid": {"delta_t": [0.3, 1.5]}}, r"sfd-delta_t-1p5.*\n.*delta_t.*less than or equal to 1"),
        ({"grid": {"delta_t": []}}, "delta_t has no value"),
        ({"grid": {"train.steps": [1]}}, r"train\.steps: unknown key"),
        ({"grid": {"seed": [1]}}, "seed is swept by the list of seeds"),
        ({"grid": {"size": ["huge"]}}, "sfd-size-huge"),
        ({"variants": ("dit",), "grid": {"delta_t": [0.3]}}, "delta_t cannot vary in dit"),
        ({"variants": ("dit",), "changes": {"delta_t": 0.3}}, "there is no semantic latent"),
        ({"variants": ("nobody",)}, "unknown variant 'nobody'"),
        ({"grid": {"delta_t": [0.1]}, "changes": {"delta_t": 0.2}}, "swept and also set"),
        ({"grid": {"delta_t": [n / 2000 for n in range(1001)]}}, "1,001 points"),
        ({"changes": {"prepare.resolution": 63}}, "63"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(**asked)


def test_inputs_that_are_missing_are_told_before_anything_starts() -> None:
    changes = {"prepare.source": "folder", "prepare.path": "nowhere", "prepare.labels": "folder", "prepare.copies": 1}
    with pytest.raises(DataError, match=r"nowhere \(prepare.path\)"):
        plan(changes=changes)


def test_a_preset_is_a_base_and_an_unknown_one_is_named() -> None:
    assert base_values("emoji", ROOT) == VALUES
    assert parse_params(base_values(CURRENT, ROOT)).active
    with pytest.raises(ConfigError, match="unknown preset 'emojis'"):
        base_values("emojis", ROOT)


def test_hours_are_estimated_from_finished_points_and_bytes_from_weights() -> None:
    points = plan(grid={"train.optimisation.steps": [1200, 2400]})
    none = outlook(points, {})
    assert [row["hours"] for row in none.table] == [None, None]
    assert "2 points, 0 finished; 2 to do: hours unknown" in none.words
    told = outlook(points, {points[0].key: {"training": {"seconds": 360.0}}})
    assert [row["status"] for row in told.table] == ["finished", "missing"]
    assert [row["hours"] for row in told.table] == [0.0, 0.2]
    weights = WEIGHTS_A_BLOCK * 4 * 128**2
    assert told.table[1]["gigabytes"] == pytest.approx(4 * 4 * weights / 1e9, abs=5e-4)


def test_without_finished_points_hours_come_from_trainings_of_the_project(tmp_path: Path) -> None:
    assert VALUES["train"]["optimisation"]["steps"] * VALUES["train"]["optimisation"]["batch_size"] == 76_800
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(VALUES))
    (tmp_path / "outputs" / "train" / "sfd").mkdir(parents=True)
    (tmp_path / "outputs" / "train" / "sfd" / "metrics.json").write_text('{"seconds": 360.0, "images_seen": 76800}')
    told = outlook(plan(grid={"size": ["tiny", "S"]}), {}, project_rates(tmp_path))
    larger = 12 * 384**2 / (4 * 128**2)
    assert [row["hours"] for row in told.table] == pytest.approx([0.1, 0.1 * larger], abs=5e-3)


def test_values_that_look_alike_are_points_of_different_names() -> None:
    points = plan(grid={"delta_t": [0.3, 0.3000000001, 0.30]})
    assert [point.name for point in points] == ["sfd-delta_t-0p3-seed-0", "sfd-delta_t-0p3000000001-seed-0"]


def test_another_image_at_a_path_makes_other_points_also_where_the_path_is_swept(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / "0.png").write_bytes(b"image")
    space = Space(["sfd"], {"prepare.path": ["one", "two"]}, [0], {"prepare.held_out_path": None, "prepare.held_out": 0.1})
    values = load_preset("cifar10", ROOT / "presets").values
    one, two = plan_points(values, space, "code", tmp_path)
    assert one.key != two.key
    (tmp_path / "two" / "cat" / "1.png").write_bytes(b"image")
    again = plan_points(values, space, "code", tmp_path)
    assert (again[0].key == one.key, again[1].key == two.key) == (True, False)
