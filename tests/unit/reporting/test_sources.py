import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_outputs import train_again, write_outputs, write_studies

from sfd_core.cli.results import write_tables
from sfd_core.experiment.params import OffsetStudy, Params, parse_params
from sfd_core.host.errors import DataError
from sfd_core.host.paths import write_json
from sfd_core.reporting import sources
from sfd_core.reporting.sources import STUDIES, read_outputs
from sfd_core.workspace.experiments import Axis, plan_experiment


@pytest.fixture
def tree(written: Path, tmp_path: Path) -> Path:
    """Outputs that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "outputs"))


def test_complete_tree_misses_only_the_studies(params: Params, tree: Path, tmp_path: Path) -> None:
    assert set(read_outputs(params, tree, tmp_path / "none").missing) == set(STUDIES)
    assert read_outputs(params, tree, write_studies(tmp_path / "results", params)).missing == {}


def test_tables_of_other_data_or_of_another_evaluation_are_missing(params: Params, tree: Path, tmp_path: Path) -> None:
    results = write_studies(tmp_path / "results", params)
    values = params.model_dump(mode="json")
    for group, change in {"prepare": {"seed": 7}, "reference": {"extractors": ["efficientnet_lite2"]}}.items():
        other = read_outputs(parse_params(values | {group: values[group] | change}), tree, results)
        assert other.studies == {}
        assert set(other.missing) == set(STUDIES)
        assert "seeds.csv is not shown, as it does not record" in other.missing["seeds"]
    assert set(read_outputs(params, tree, results).studies) == set(STUDIES)
    for name, changes in {"seeds": {"latents": "other"}, "long": {"evaluation": None}}.items():
        pd.read_csv(results / f"{name}.csv").assign(**changes).dropna(axis="columns").to_csv(
            results / f"{name}.csv", index=False
        )
    assert set(read_outputs(params, tree, results).missing) == {"seeds", "long"}


def test_tables_of_other_trainings_are_missing_but_those_that_vary_the_training(
    params: Params, tree: Path, tmp_path: Path
) -> None:
    results = write_studies(tmp_path / "results", params)
    for keys, value in {("train", "optimisation", "steps"): 1600, ("variants", "sfd", "delta_t"): 0.5}.items():
        values = params.model_dump(mode="json")
        values[keys[0]][keys[1]][keys[2]] = value
        other = read_outputs(parse_params(values), tree, results)
        assert set(other.studies) == {"learning_rates", "long"}
        assert "the present trainings; `make seeds` measures it again" in other.missing["seeds"]
    pd.read_csv(results / "seeds.csv").drop(columns="recipe").to_csv(results / "seeds.csv", index=False)
    assert set(read_outputs(params, tree, results).missing) == {"seeds"}


def test_a_table_of_seeds_that_an_experiment_writes_is_shown(params: Params, tree: Path, tmp_path: Path) -> None:
    plan = plan_experiment(params.model_dump(mode="json"), {"active": ["sync", "sfd"], "studies": {}}, Axis("seed", (0, 1)))
    folder, results = tmp_path / "experiment", tmp_path / "results"
    write_outputs(folder / "outputs", parse_params(plan.values))
    (folder / "params.yaml").write_text(json.dumps(plan.values))
    write_tables(plan, folder, results / "seeds.csv", results / "long.csv", None)
    found = read_outputs(params, tree, results).studies
    assert found["seeds"][["variant", "seed"]].to_numpy().tolist() == [["sync", 0], ["sync", 1], ["sfd", 0], ["sfd", 1]]
    assert set(found["long"]["variant"]) == {"sync", "sync-seed-1", "sfd", "sfd-seed-1"}


@pytest.mark.parametrize(
    "changed",
    [{"prepare": {"prepare.path": "b"}}, {"features": {"features.weights": "b"}}, {"reference": {"reference.adm_npz": "b"}}],
)
def test_tables_of_other_files_at_the_same_paths_are_missing(
    changed: dict[str, dict[str, str]], params: Params, tree: Path, tmp_path: Path
) -> None:
    results = write_studies(tmp_path / "results", params)
    for stage, digests in changed.items():
        write_json(tree / "inputs" / f"{stage}.json", digests)
    other = read_outputs(params, tree, results)
    assert set(other.missing) == set(STUDIES)
    assert "input files" in other.missing["seeds"]


def test_the_committed_tables_are_those_of_the_default_experiment(params: Params, tree: Path) -> None:
    assert set(read_outputs(params, tree, Path(__file__).parents[3] / "docs" / "results").studies) == set(STUDIES)


@pytest.mark.parametrize("file", ["curve.csv", "numbers.json"])
def test_variant_that_was_not_evaluated_is_an_error_that_names_it(params: Params, tree: Path, file: str) -> None:
    (tree / "evaluate" / "sync" / file).unlink()
    with pytest.raises(DataError, match=r"'sync'.*dvc repro evaluate@sync"):
        read_outputs(params, tree, tree)


def test_numbers_of_weights_before_the_last_training_are_an_error(params: Params, tree: Path) -> None:
    train_again(tree, "sync")
    with pytest.raises(DataError, match=r"'sync' was evaluated before it was trained again; run `dvc repro evaluate@sync`"):
        read_outputs(params, tree, tree)


def test_points_of_weights_before_the_last_training_are_not_shown(params: Params, tree: Path) -> None:
    numbers = json.loads((tree / "evaluate" / "any_order" / "numbers.json").read_text())
    for name, file in {"offsets": "offsets.csv", "order": "error_field.csv"}.items():
        table = tree / "studies" / "any_order" / name / file
        pd.read_csv(table).assign(file="point.json").to_csv(table, index=False)
        write_json(table.parent / "points" / "point.json", numbers)
    assert {"offsets", "order"} < set(read_outputs(params, tree, tree).curves["study"])
    train_again(tree, "any_order")
    for number in numbers["final"].values():
        number["protocol"]["recipe"]["weights"] = "later"
    write_json(tree / "evaluate" / "any_order" / "numbers.json", numbers)
    outputs = read_outputs(params, tree, tree)
    assert {"offsets", "order"}.isdisjoint([*outputs.curves["study"], *outputs.order_maps])
    assert "older weights: any_order was trained again" in outputs.missing["studies.offsets"]


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("evaluate/sfd/samples.npz", "grids.sfd"),
        ("evaluate/sfd/trajectory.npz", "trajectory.sfd"),
        ("evaluate/sfd/neighbours.png", "neighbours.sfd"),
        ("evaluate/sfd/classes.csv", "classes.sfd"),
        ("studies/any_order/offsets/offsets.csv", "studies.offsets"),
        ("train/sfd/history.csv", "history.sfd"),
        ("texture_vae/reconstructions.png", "reconstructions"),
        ("semantic_vae/history.csv", "history.semantic_vae"),
        ("reference/metrics.json", "reference"),
    ],
)
def test_optional_part_is_named_with_its_remedy(params: Params, tree: Path, file: str, part: str) -> None:
    (tree / file).unlink()
    missing = read_outputs(params, tree, tree).missing
    assert file in missing[part]
    assert "dvc repro" in missing[part]


@pytest.mark.parametrize("file", ["evaluate/sfd/samples.npz", "evaluate/sfd/trajectory.npz", "evaluate/sfd/numbers.json"])
def test_damaged_file_is_named(params: Params, tree: Path, file: str) -> None:
    (tree / file).write_bytes(b"not what it should be")
    with pytest.raises(DataError, match=re.escape(file)):
        read_outputs(params, tree, tree)


def test_number_without_protocol_is_refused(params: Params, tree: Path) -> None:
    path = tree / "evaluate" / "dit" / "numbers.json"
    path.write_text(json.dumps({"final": {"fd_efficientnet_lite2": 3098.0}}))
    with pytest.raises(DataError, match="value and protocol"):
        read_outputs(params, tree, tree)


def test_samples_of_another_shape_are_refused(params: Params, tree: Path) -> None:
    path = tree / "evaluate" / "dit" / "samples.npz"
    np.savez(path, images=np.zeros((2, 3, 3, 8, 8), np.uint8), steps=np.arange(2), labels=np.arange(5))
    with pytest.raises(DataError, match=r"samples\.npz"):
        read_outputs(params, tree, tree)


def test_points_of_all_studies_are_one_table(params: Params, tree: Path) -> None:
    points = read_outputs(params, tree, tree).curves
    curves = points[points["study"] == "offsets"]
    study = params.studies["offsets"]
    assert isinstance(study, OffsetStudy)
    assert set(points["study"]) == set(params.studies)
    assert set(curves["variant"]) == {study.variant}
    assert curves["delta_t"].tolist() == study.offsets
    assert curves["fd_efficientnet_lite2"].notna().all()


def test_variants_that_differ_in_nothing_but_the_seed_have_one_origin(params: Params, tree: Path) -> None:
    values = params.model_dump(mode="json")
    own = values["variants"]["any_order"]
    values["variants"] |= {"again": own | {"seed": 7}, "slow": own | {"learning_rate": 1e-4}}
    values["active"] += ["again", "slow"]
    for name in ("again", "slow"):
        shutil.copytree(tree / "evaluate" / "any_order", tree / "evaluate" / name)
        shutil.copytree(tree / "studies" / "any_order" / "offsets", tree / "studies" / name / name)
        values["studies"][name] = values["studies"]["offsets"] | {"variant": name}
    points = read_outputs(parse_params(values), tree, tree).points("offsets")
    assert dict(zip(points["variant"], points["origin"], strict=True)) == {
        "any_order": "any_order",
        "again": "any_order",
        "slow": "slow",
    }


def test_class_names_that_look_like_numbers_or_nothing_stay_names(tmp_path: Path) -> None:
    pd.DataFrame({"class": ["NA", "01", "1"], "samples": [0.5, 0.25, 0.25]}).to_csv(tmp_path / "classes.csv", index=False)
    table = sources.read_table(tmp_path / "classes.csv", ["class", "samples"])
    assert list(table["class"]) == ["NA", "01", "1"]
    assert table["samples"].sum() == 1.0
