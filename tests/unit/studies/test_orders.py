from pathlib import Path

import pandas as pd
import pytest
from denoisers import artifact, texture_vae, variant
from evaluators import small_evaluator
from measured_together import SAMPLER, lay_out, measurement, points_drawn
from PIL import Image

from sfd_core.evaluation.measurement import UNLABELLED, Order
from sfd_core.evaluation.rerun import Measurement
from sfd_core.host.errors import ConfigError
from sfd_core.host.processes import ALONE
from sfd_core.sampling.pipeline import Pipeline
from sfd_core.studies.orders import plan_corners, plan_offsets, run_orders

ANY_ORDER = variant(times={"kind": "independent", "absent": 0.1})
POINTS = plan_offsets(SAMPLER, [1, 0.3, -1, 0.3])


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offsets")
    artifact(path / "train", texture_vae(path / "vae"), ANY_ORDER)
    small_evaluator(path)
    return path


def test_every_offset_is_a_point_once_in_rising_order() -> None:
    assert [point.sampler.delta_t for point in POINTS] == [-1, 0.3, 1]
    with pytest.raises(ConfigError, match="offset 2 cannot be drawn"):
        plan_offsets(SAMPLER, [2])


def test_each_offset_is_sampled_along_its_path_and_kept(measuring: Measurement, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table, drawn = points_drawn(out, lambda: run_orders("offsets", measuring, POINTS, 6, out))
    assert drawn == 3
    assert table["delta_t"].tolist() == [-1, 0.3, 1]
    distance = next(name for name in table.columns if name.startswith("fd_"))
    assert table[distance].nunique() == 3
    assert table["sampler"].tolist() == [f"euler, offset {offset}" for offset in (-1.0, 0.3, 1.0)]
    # along the offset of its training it draws what it draws anyway
    numbers, _ = measuring.run(Order([0, 1, 2] * 2, SAMPLER), "samples") or ({}, None)
    assert numbers[distance].value == table[distance].iloc[1]
    with Image.open(out / "offsets.png") as picture:
        assert min(picture.size) > 300
    again, drawn = points_drawn(out, lambda: run_orders("offsets", measuring, POINTS, 6, out))
    assert drawn == 0
    pd.testing.assert_frame_equal(again, table)


@pytest.mark.parametrize("kind", ["offsets", "corners"])
def test_points_of_another_number_of_evaluations_are_another_curve(kind: str, measuring: Measurement, tmp_path: Path) -> None:
    plan = {
        "offsets": lambda base, time: plan_offsets(base, [time]),
        "corners": lambda base, time: plan_corners(base, [0, time]),
    }
    more = SAMPLER.model_copy(update={"evaluations": 6})
    first = run_orders(kind, measuring, plan[kind](SAMPLER, 0.3), 6, tmp_path)
    other = run_orders(kind, measuring, plan[kind](more, 0.5), 6, tmp_path)
    back = run_orders(kind, measuring, plan[kind](more, 0.3), 6, tmp_path)
    assert first is not None
    assert other is not None
    assert back is not None
    assert set(other["evaluations"]) == set(back["evaluations"]) == {6}
    assert len(back) > len(other) == len(first)


def test_a_denoiser_of_one_path_has_no_curve(tmp_path: Path) -> None:
    lay_out(tmp_path)
    measuring = measurement(tmp_path)
    with pytest.raises(ConfigError, match="trained with times of kind global, which know one path"):
        run_orders("offsets", measuring, POINTS, 6, tmp_path / "out")


def test_a_guide_of_one_path_guides_no_curve(measuring: Measurement, studied: Path, tmp_path: Path) -> None:
    guide = artifact(tmp_path / "guide", studied / "vae", variant())
    pipeline = Pipeline.from_artifact(studied / "train", studied / "vae", guide=guide)
    guided = Measurement(studied / "train", pipeline, measuring.evaluator, ALONE)
    scale = SAMPLER.texture.model_copy(update={"scale": 2.0})
    sampler = SAMPLER.model_copy(update={"guidance": "autoguidance", "guide": str(guide), "texture": scale})
    with pytest.raises(ConfigError, match="its guide was trained with times of kind global, which know one path"):
        run_orders("offsets", guided, plan_offsets(sampler, [0.7]), 6, tmp_path / "out")


def test_numbers_of_a_denoiser_without_labels_say_so(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = artifact(tmp_path / "train", studied / "vae", ANY_ORDER, classes=[])
    evaluator = measurement(studied).evaluator
    unlabelled = Measurement(folder, Pipeline.from_artifact(folder, studied / "vae"), evaluator, ALONE)
    result = unlabelled.run(Order([0] * 6, SAMPLER), "samples")
    assert result is not None
    assert {number.protocol["labels"] for number in result[0].values()} == {UNLABELLED}


def test_every_corner_is_a_point_and_the_straight_path_stands_for_the_diagonal() -> None:
    points = plan_corners(SAMPLER, [1, 0, 0.25])
    corners = [(point.settings["t_tex"], point.settings["t_sem"]) for point in points]
    assert corners == [(0.5, 0.5), (0, 0.25), (0, 1), (0.25, 0), (0.25, 1), (1, 0), (1, 0.25)]
    assert points[2].sampler.path == [[0, 0], [0, 1], [1, 1]]
    with pytest.raises(ConfigError, match=r"corner 0/1\.5 cannot be drawn"):
        plan_corners(SAMPLER, [0, 1.5])


def test_corners_become_a_map(measuring: Measurement, tmp_path: Path) -> None:
    sampler = SAMPLER.model_copy(update={"evaluations": 4})
    table = run_orders("corners", measuring, plan_corners(sampler, [0, 1]), 6, tmp_path / "out")
    assert table is not None
    assert table[["t_tex", "t_sem"]].to_numpy().tolist() == [[0.5, 0.5], [0, 1], [1, 0]]
    assert table[next(name for name in table.columns if name.startswith("fd_"))].nunique() == 3
    with Image.open(tmp_path / "out" / "corners.png") as picture:
        assert min(picture.size) > 300
