"""Finished runs by name, and two of them side by side."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from synthetic_outputs import FINAL, write_outputs

from sfd_core.experiment.params import Params, parse_params
from sfd_core.host.errors import DataError
from sfd_core.host.paths import write_json
from sfd_core.reporting.comparison import Comparison
from sfd_core.reporting.lines import blocks
from sfd_core.reporting.reference_curves import record
from sfd_core.reporting.runs import open_run
from sfd_core.workspace.places import recorded_variants


def lay_out(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    write_outputs(folder / "outputs", parse_params(values))
    return folder


@pytest.fixture(scope="module")
def project(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an experiment that has another offset."""
    values = params.model_dump(mode="json")
    folder = lay_out(tmp_path_factory.mktemp("runs") / "project", values)
    values["variants"]["sfd"]["delta_t"] = 0.5
    values["train"]["optimisation"]["steps"] += 1
    lay_out(folder / ".sfd" / "experiments" / "later", values | {"active": ["dit", "sfd"]})
    for place, digest in ((folder, "a"), (folder / ".sfd" / "experiments" / "later", "b")):
        (place / "outputs" / "code").mkdir()
        code = {"hash": digest, "modules": {"sfd_core.training.loop": digest, "sfd_core.data": "same"}, "libraries": {}}
        (place / "outputs" / "code" / "train.json").write_text(json.dumps(code))
    return folder


def test_a_name_is_a_project_an_experiment_or_a_variant(project: Path) -> None:
    assert list(open_run(project=project).outputs.variants) == open_run(".", project).params.active
    assert list(open_run("later", project).numbers["variant"]) == ["dit", "sfd"]
    assert list(open_run("later@sfd", project).numbers["variant"]) == ["sfd"]
    assert list(open_run("sfd", project).numbers["variant"]) == ["sfd"]
    assert list(open_run(str(project), Path()).outputs.variants) == list(open_run(project=project).outputs.variants)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", r"'nothing' is neither a project nor a Git ref, nor one of the experiments later, nor .* dit, "),
        ("later@sync", "later has no finished run of sync; evaluated are dit, sfd|later@sync has no finished run of sync"),
        ("redi", "redi has no finished run of redi"),
    ],
)
def test_a_name_that_has_no_result_is_an_error(project: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_run(name, project)


def test_tables_are_pandas_with_a_column_that_names_the_variant(project: Path) -> None:
    run = open_run("later", project)
    assert run.curves.groupby("variant")["fd_efficientnet_lite2"].min().to_dict() == {
        name: FINAL[name] for name in ("dit", "sfd")
    }
    assert set(run.training["variant"]) == {"dit", "sfd"}
    assert {"loss", "step"} <= set(run.training)


def test_figures_are_drawn(project: Path) -> None:
    run = open_run("later", project)
    assert {line.get_linestyle() for line in run.convergence().axes[0].lines}
    assert len(run.samples(4).axes) == 2
    assert run.denoising("sfd").axes


@pytest.fixture(scope="module")
def compared(project: Path) -> Comparison:
    return Comparison(open_run("sfd", project), open_run("later@sfd", project))


def test_what_differs_is_told_and_nothing_else(compared: Comparison, project: Path) -> None:
    rows = compared.tables["What differs"]
    assert rows[0] == ["", "sfd", "later@sfd"]
    assert [row[0] for row in rows[1:]] == ["train.optimisation.steps", "variant.delta_t", "code of train"]
    assert rows[2][1:] == ["0.3", "0.5"]
    assert rows[3][1:] == ["", "sfd_core.training.loop"]
    assert Comparison(compared.one, compared.one).differences.empty
    whole = Comparison(open_run(project=project), open_run("later", project))
    assert list(whole.differences.index) == ["train.optimisation.steps", "active", "variants.sfd.delta_t", "code of train"]


def test_other_code_of_any_stage_and_other_files_at_the_same_paths_differ(params: Params, tmp_path: Path) -> None:
    runs = []
    for name, digest in (("one", "a" * 64), ("other", "b" * 64)):
        outputs = lay_out(tmp_path / name, params.model_dump(mode="json")) / "outputs"
        changed = {"sfd_core.training.tasks.texture": digest}
        for stage, modules in {"texture_vae": changed, "encode": changed, "prepare": {}, "report": changed}.items():
            write_json(outputs / "code" / f"{stage}.json", {"hash": digest, "modules": modules})
        write_json(outputs / "inputs" / "prepare.json", {"prepare.path": "c" * 64})
        write_json(outputs / "inputs" / "features.json", {"features.weights": digest})
        runs.append(open_run(str(tmp_path / name)))
    rows = {row[0]: row[1:] for row in Comparison(*runs).tables["What differs"][1:]}
    assert rows == {
        "features.weights: other content": ["aaaaaaaa", "bbbbbbbb"],
        "code of encode, texture_vae": ["", "sfd_core.training.tasks.texture"],
    }


def test_floor_and_ceiling_have_a_row_a_run_where_they_differ(compared: Comparison) -> None:
    assert sum("(floor)" in row[0] for row in list(compared.tables.values())[1]) == 1
    other = compared.other.outputs
    floor = {name: replace(number, value=1.25) for name, number in other.references["floor"].items()}
    lower = replace(other, references={**other.references, "floor": floor}, snapshot_references={"floor": floor})
    apart = Comparison(compared.one, replace(compared.other, outputs=lower))
    rows = {row[0]: row[1] for row in list(apart.tables.values())[1]}
    assert rows["held-out images (floor) of later@sfd"] == "1.25"
    assert {"held-out images (floor) of sfd", "VAE reconstructions (ceiling)", "training images themselves"} < set(rows)
    assert {"floor of sfd", "floor of later@sfd", "ceiling of sfd"} < set(apart.both.outputs.snapshot_references)
    assert apart.both.convergence().axes


def test_values_edited_after_the_run_are_not_told_as_those_of_the_run(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = params.model_dump(mode="json")
    project = lay_out(tmp_path / "project", values)
    train, rate = copy.deepcopy(values["train"]), values["variants"]["sfd"]["learning_rate"]
    recorded = {"train": train, "variants.sfd": copy.deepcopy(values["variants"]["sfd"])}
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train@sfd": {"params": {"params.yaml": recorded}}}}))
    assert open_run("sfd", project).params.train.optimisation.steps == train["optimisation"]["steps"]
    assert not capsys.readouterr().err
    values["variants"]["sfd"]["learning_rate"] = 2 * rate
    values["train"]["optimisation"]["steps"] += 1
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    run = open_run("sfd", project)
    assert run.parameters["variant.learning_rate"] == rate
    assert run.parameters["train.optimisation.steps"] == train["optimisation"]["steps"]
    told, steps = capsys.readouterr().err, train["optimisation"]["steps"]
    changes = (
        f"train.optimisation.steps {steps + 1} instead of {steps}, variants.sfd.learning_rate {2 * rate} instead of {rate}"
    )
    assert f"params.yaml was edited since: {changes}; " in told


def test_a_variant_has_the_values_that_made_it_and_those_of_different_values_are_told(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = params.model_dump(mode="json")
    project = lay_out(tmp_path / "project", values)
    made = {name: copy.deepcopy(values["evaluate"]) for name in params.active}
    made["sfd"]["sampler"]["evaluations"] = 50
    stages = {f"evaluate@{name}": {"params": {"params.yaml": {"evaluate": group}}} for name, group in made.items()}
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    usual = params.evaluate.sampler.evaluations
    evaluations = {name: open_run(f".@{name}", project).params.evaluate.sampler.evaluations for name in ("sfd", "sync")}
    assert evaluations == {"sfd": 50, "sync": usual}
    assert "do not compare" not in capsys.readouterr().err
    open_run(project=project)
    assert "the variants were made with different values of evaluate, so" in capsys.readouterr().err
    table = record(project, recorded_variants(project))
    hashes = table.groupby("variant")["evaluation"].unique()
    assert hashes["sfd"] != hashes["sync"]
    assert hashes["sync"] == hashes["dit"]


def test_variants_that_both_have_are_named_by_their_runs(compared: Comparison, project: Path) -> None:
    assert list(compared.both.outputs.variants) == ["sfd", "later@sfd"]
    other = Comparison(open_run("dit", project), open_run("later@sfd", project)).both
    assert list(other.outputs.variants) == ["dit", "sfd"]
    whole = open_run(project=project).beside(open_run("later", project))
    assert {"sync", "sfd (project)", "sfd (later)"} < set(whole.outputs.variants)


def test_numbers_curves_and_samples_stand_side_by_side(compared: Comparison) -> None:
    _, numbers, curves = compared.tables.values()
    assert [row[0] for row in numbers[2:4]] == ["sfd", "later@sfd"]
    assert curves[0] == ["step", "sfd", "later@sfd"]
    assert curves[-1] == ["1,500", "2,156", "2,156"]
    samples = compared.samples(3)
    assert samples.shape == (64, 96, 3)
    np.testing.assert_array_equal(samples[:32], samples[32:])
    (variant,) = compared.one.outputs.variants.values()
    assert variant.grids is not None
    np.testing.assert_array_equal(samples[:32, :32], variant.grids.images[-1, 0].transpose(1, 2, 0))


def test_samples_of_two_sizes_stand_side_by_side(compared: Comparison) -> None:
    (variant,) = compared.other.outputs.variants.values()
    assert variant.grids is not None
    large = replace(variant.grids, images=variant.grids.images[:, :2].repeat(2, axis=-1).repeat(2, axis=-2))
    outputs = replace(compared.other.outputs, variants={"sfd": replace(variant, grids=large)})
    samples = Comparison(compared.one, replace(compared.other, outputs=outputs)).samples(3)
    assert samples.shape == (32 + 64, 128, 3)
    np.testing.assert_array_equal(samples[:32, :96], compared.samples(3)[:32])
    assert (samples[:32, 96:] == 255).all()
    np.testing.assert_array_equal(samples[32::2, ::2][:, :64], compared.samples(2)[32:])


@pytest.mark.parametrize("key", ["weights", "input_size", "preprocessing", "reference_digest", "settings"])
def test_numbers_and_curves_that_do_not_compare_are_said_to_and_not_drawn_together(
    key: str, compared: Comparison, tmp_path: Path
) -> None:
    assert "do not compare" not in "".join(compared.tables)
    (variant,) = compared.other.outputs.variants.values()
    numbers = {
        name: replace(number, protocol={**number.protocol, key: "something else"}) for name, number in variant.numbers.items()
    }
    outputs = replace(compared.other.outputs, variants={"sfd": replace(variant, numbers=numbers)})
    apart = Comparison(compared.one, replace(compared.other, outputs=outputs))
    for what in ("numbers", "curves"):
        assert re.search(
            rf"These {what} do not compare: \w+ was measured with {key} \w+ in sfd and something else in later@sfd\.",
            "".join(apart.tables),
        )
    apart.write_page(tmp_path / "page.html")
    assert "<h2>Convergence</h2>" not in (tmp_path / "page.html").read_text()


def test_a_variant_that_is_not_the_first_is_checked_too(project: Path) -> None:
    one, other = open_run("later", project), open_run("later", project)
    sfd = other.outputs.variants["sfd"]
    numbers = {name: replace(number, protocol={**number.protocol, "samples": 10}) for name, number in sfd.numbers.items()}
    outputs = replace(other.outputs, variants=other.outputs.variants | {"sfd": replace(sfd, numbers=numbers)})  # type: ignore[operator]
    assert "measured with samples 1500 in later and 10 in later" in "".join(
        Comparison(one, replace(other, outputs=outputs)).tables
    )


def test_curves_of_other_sample_counts_are_said_not_to_compare_and_are_not_drawn(compared: Comparison, tmp_path: Path) -> None:
    (variant,) = compared.other.outputs.variants.values()
    outputs = replace(compared.other.outputs, variants={"sfd": replace(variant, curve=variant.curve.assign(samples=1000))})
    apart = Comparison(compared.one, replace(compared.other, outputs=outputs))
    heading = list(apart.tables)[-1]
    assert heading.endswith("by step. These curves do not compare: samples are 500 in sfd, 1,000 in later@sfd.")
    apart.write_page(tmp_path / "page.html")
    assert "<h2>Convergence</h2>" not in (tmp_path / "page.html").read_text()
    compared.write_page(tmp_path / "page.html")
    assert "<h2>Convergence</h2>" in (tmp_path / "page.html").read_text()


def test_the_page_refers_to_nothing_outside_itself(compared: Comparison, tmp_path: Path) -> None:
    compared.write_page(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "variant.delta_t" in html
    assert html.count("<img") == html.count('src="data:image/png;base64,') == 2
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', html)
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_samples_of_other_seeds_are_not_told_as_the_same(compared: Comparison, tmp_path: Path) -> None:
    evaluate = compared.other.params.evaluate
    sampler = evaluate.sampler.model_copy(update={"seed": 7})
    params = compared.other.params.model_copy(update={"evaluate": evaluate.model_copy(update={"sampler": sampler})})
    for other, words in ((compared.other, "the same seeds"), (replace(compared.other, params=params), "of seeds 0 and 7")):
        Comparison(compared.one, other).write_page(tmp_path / "page.html")
        assert f"<h2>Samples of the last snapshot, {words}</h2>" in (tmp_path / "page.html").read_text()


def test_a_picture_is_one_character_for_two_pixels() -> None:
    lines = blocks(np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)).splitlines()
    assert [line.count("▀") for line in lines] == [3, 3]
    assert lines[0].startswith("\x1b[38;2;0;1;2;48;2;9;10;11m▀")
