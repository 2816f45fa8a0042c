from pathlib import Path
from typing import Any

import pytest
from emoji import emoji

from sfd_core.experiment.params import parse_params
from sfd_core.host.errors import ConfigError
from sfd_core.workspace.dvc import Place
from sfd_core.workspace.experiments import Axis, experiment_dir, origin_values, plan_experiment, run_experiment

ROOT = Path(__file__).parents[3]
VALUES = emoji().model_dump(mode="json")


def test_changes_are_set_and_the_given_values_stay_as_they_are() -> None:
    plan = plan_experiment(VALUES, {"train.optimisation.steps": 7_000, "prepare.seed": 3})
    params = parse_params(plan.values)
    assert (params.train.optimisation.steps, params.prepare.seed) == (7_000, 3)
    assert emoji().model_dump(mode="json") == VALUES
    assert plan.origins == {name: name for name in VALUES["active"]}


@pytest.mark.parametrize("key", ["train.optimisation.step", "trian", "train.optimisation.steps.more", "prepare.seed.x"])
def test_an_unknown_key_is_an_error_that_names_it(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        plan_experiment(VALUES, {key: 1})


def test_every_active_variant_takes_every_value_and_keeps_its_name_where_it_has_it_already() -> None:
    plan = plan_experiment(VALUES | {"active": ["sync", "sfd"]}, {}, Axis("seed", (0, 1, 2)))
    params = parse_params(plan.values)
    assert params.active == ["sync", "sync-seed-1", "sync-seed-2", "sfd", "sfd-seed-1", "sfd-seed-2"]
    assert params.variants["sfd"] == emoji().variants["sfd"]
    assert params.variants["sfd-seed-2"].model_copy(update={"seed": 0}) == params.variants["sfd"]
    assert origin_values(plan, ["seed"])["sync-seed-1"] == {"variant": "sync", "seed": 1}


def test_a_table_names_every_value_that_was_varied() -> None:
    plan = plan_experiment(VALUES | {"active": ["sfd"]}, {}, Axis("cosine_weight", (0.0, 0.5)))
    assert [row["cosine_weight"] for row in origin_values(plan, ["seed"]).values()] == [0.0, 0.5]


def test_another_variant_of_a_made_up_name_is_not_replaced() -> None:
    taken = VALUES["variants"] | {"sfd-seed-1": VALUES["variants"]["sfd"] | {"delta_t": 0.7}}
    with pytest.raises(ConfigError, match="makes a variant sfd-seed-1, but another one has this name"):
        plan_experiment(VALUES | {"active": ["sfd"], "variants": taken}, {}, Axis("seed", (0, 1)))


def test_a_variant_without_the_value_is_skipped() -> None:
    plan = plan_experiment(VALUES, {"active": ["dit", "lightningdit", "sync", "sfd"]}, Axis("delta_t", (0.0, 0.3)))
    assert parse_params(plan.values).active == ["sync", "sync-delta_t-0p3", "sfd-delta_t-0p0", "sfd"]
    assert list(plan.skipped) == ["dit", "lightningdit"]
    assert not plan_experiment(VALUES, {}, Axis("seed", (0, 1))).skipped


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("delta_t", "delta_t cannot vary in dit; it can in sync, sfd"),
        ("repa.weight", "repa.weight cannot vary in dit; it can in lightningdit, sync"),
        ("repa.wieght", "repa.wieght cannot vary in dit; no variant has it"),
        ("train.snapshots", "'train.snapshots' is no value of a variant; those are model, size, patch"),
    ],
)
def test_an_axis_of_which_no_variant_has_anything_is_an_error(key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_experiment(VALUES, {"active": ["dit"]}, Axis(key, (0.0, 0.3)))


def test_studies_of_a_variant_come_along_with_every_value_of_it() -> None:
    study = {"kind": "guidance", "variant": "sfd", "guidance": "cfg", "guide_step": None, "parts": "both", "scales": [1.5]}
    studies = {"curve": study, "other": study | {"variant": "redi"}}
    plan = plan_experiment(VALUES | {"active": ["sfd"], "studies": studies}, {}, Axis("seed", (0, 1)))
    assert plan.values["studies"] == {"curve": study, "curve-seed-1": study | {"variant": "sfd-seed-1"}}
    assert list(parse_params(plan.values).active_studies()) == ["curve", "curve-seed-1"]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("learning_rate", (0.0005, 0.25)),
        ("repa.weight", (0.25, 0.125)),
        ("times", ({"kind": "independent", "absent": 0.05}, {"kind": "independent", "absent": 0.1})),
    ],
)
def test_made_up_names_are_names_of_variants(key: str, values: tuple[Any, ...]) -> None:
    plan = plan_experiment(VALUES | {"active": ["sfd"], "studies": {}}, {"variants.sfd.mask_clamped": False}, Axis(key, values))
    assert parse_params(plan.values).active == list(plan.origins)
    assert len(plan.origins) == 2


def test_an_impossible_experiment_writes_nothing(tmp_path: Path) -> None:
    before = (ROOT / "params.yaml").read_text()
    with pytest.raises(ConfigError, match="63"):
        plan_experiment(VALUES, {"prepare.resolution": 63})
    with pytest.raises(ConfigError, match="unknown variant 'nobody'"):
        plan_experiment(VALUES, {"active": ["sfd", "nobody"]})
    plan = plan_experiment(VALUES, {}, Axis("learning_rate", (-1.0,)))
    with pytest.raises(ConfigError, match="learning_rate"):
        run_experiment(plan, tmp_path / "experiment", 2, ROOT)
    assert not (tmp_path / "experiment").exists()
    assert (ROOT / "params.yaml").read_text() == before


def test_images_and_weights_of_the_project_are_those_of_its_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, folder = tmp_path / "project", tmp_path / "experiment"
    for name in ("sfd_core", "docs/results"):
        (project / name).mkdir(parents=True)
    for name in (
        "dvc.yaml",
        ".dvcignore",
        "requirements.lock",
        "data/train-0.parquet",
        "data/train-1.parquet",
        "data/val.parquet",
    ):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).touch()
    monkeypatch.setattr(Place, "dvc", lambda *_: "")
    changes = {"source": "parquet", "labels": "stored", "path": "data/train-*.parquet", "held_out_path": "data/val.parquet"}
    changes |= {"held_out": None, "copies": 1}
    run_experiment(plan_experiment(VALUES, {f"prepare.{key}": value for key, value in changes.items()}), folder, 2, project)
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["train-0.parquet", "train-1.parquet", "val.parquet"]
    assert not list(tmp_path.glob(".*"))

    written = (folder / "params.yaml").read_text()
    other = plan_experiment(VALUES, {f"prepare.{key}": value for key, value in changes.items()} | {"train.snapshots": 9})
    with pytest.raises(
        ConfigError, match=rf"other values: train.snapshots {VALUES['train']['snapshots']} instead of 9; choose"
    ):
        run_experiment(other, folder, 2, project)
    assert (folder / "params.yaml").read_text() == written


@pytest.mark.parametrize(
    "name", ["../..", "a/b", ".hidden", "-x", "a b", "a$(touch x)", "", "x" * 65, "NUL", "ü", "a.b", "a\n"]
)
def test_a_name_that_is_no_plain_word_names_no_experiment(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of an experiment"):
        experiment_dir(name)


def test_a_folder_of_something_else_is_no_experiment(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match="images is no experiment, but another folder; choose another name"):
        run_experiment(plan_experiment(VALUES, {}), tmp_path / "images", 2, ROOT)
    assert not list((tmp_path / "images").iterdir())


def test_an_input_in_the_outputs_is_refused(tmp_path: Path) -> None:
    plan = plan_experiment(
        VALUES, {"evaluate.sampler.guidance": "autoguidance", "evaluate.sampler.guide": "outputs/train/weak"}
    )
    with pytest.raises(ConfigError, match=r"guide outputs/train/weak lies in outputs, .* such as weights/weak"):
        run_experiment(plan, tmp_path / "experiment", 2, ROOT)
    assert not (tmp_path / "experiment").exists()
