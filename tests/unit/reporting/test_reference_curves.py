"""Where a training should be by now, against a recorded run and against published numbers."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml
from synthetic_outputs import FINAL, imagenet_like, train_again

from sfd_core.cli.main import app
from sfd_core.experiment.params import Params, parse_params
from sfd_core.experiment.presets import load_preset
from sfd_core.experiment.values import set_value
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import write_json
from sfd_core.host.resume import held
from sfd_core.reporting.protocol import PROTOCOL, protocol
from sfd_core.reporting.reference_curves import (
    COLUMNS,
    HEADINGS,
    Compared,
    compare,
    measured,
    published_model,
    read_reference,
    record,
)
from sfd_core.training.history import History, Record

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, params: Params, written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "outputs").symlink_to(written)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(compared: Compared) -> pd.DataFrame:
    return pd.DataFrame(compared.rows, columns=HEADINGS)


def test_a_run_is_as_expected_beside_itself(project: Path, params: Params) -> None:
    compared = compare(measured(project, params, "sfd"), record(project, dict.fromkeys(params.active, params)), params, "sfd")
    assert not compared.notes
    assert set(table(compared)["verdict"]) == {"as expected"}
    assert {"loss", "fd_efficientnet_lite2, 1,500 samples"} <= set(table(compared)["number"])


def test_what_is_off_is_ahead_or_behind_and_between_two_points_the_reference_is_interpolated(
    project: Path, params: Params
) -> None:
    here, reference = measured(project, params, "sfd"), record(project, dict.fromkeys(params.active, params))
    reference.loc[reference["number"].str.startswith("fd_"), "value"] *= 0.8
    reference.loc[reference["number"] == "loss", "value"] *= 2
    rows = table(compare(here, reference, params, "sfd"))
    assert set(rows.loc[rows["number"].str.startswith("fd_"), "verdict"]) == {"behind by 25%"}
    assert set(rows.loc[rows["number"] == "loss", ["ratio", "verdict"]].itertuples(index=False, name=None)) == {
        ("0.50", "ahead by 50%")
    }
    apart = pd.DataFrame({"images_seen": [100.0, 400.0], "value": [10.0, 20.0]})
    curve = reference[:2].assign(variant="sfd", number="loss", samples=float("nan"), **apart)
    point = here[here["number"] == "loss"][:1]
    (row,) = table(compare(point.assign(images_seen=200, value=30.0), curve, params, "sfd")).itertuples()
    assert (row.reference, row.verdict) == ("15.0", "behind by 100%")
    (beyond,) = table(compare(point.assign(images_seen=500), curve, params, "sfd")).itertuples()
    assert beyond.verdict == "no reference at this step"


def test_other_protocols_are_not_compared_and_it_says_why(project: Path, params: Params) -> None:
    here, reference = measured(project, params, "sfd"), record(project, dict.fromkeys(params.active, params))
    few = compare(here.replace({"samples": {1500: 100}}), reference, params, "sfd")
    assert any("of 100 samples not compared: the reference has 500, 1,500 samples" in note for note in few.notes)
    other = compare(here, reference.assign(evaluation="x"), params, "sfd")
    assert other.notes == ["distances not compared: the reference has another sampler, other evaluators or other real images"]
    assert set(table(other)["number"]) == {"loss"}
    latents = compare(here, reference.assign(latents="x"), params, "sfd")
    assert not latents.rows
    assert "prepare, texture_vae" in latents.notes[0]
    recipe = compare(here, reference.assign(recipe="x"), params, "sfd")
    assert len(recipe.rows) > len(other.rows)
    assert "may explain a difference" in recipe.notes[0]
    assert "no reference of 'nobody'" in compare(here, reference, params, "sfd", "nobody").notes[0]


@pytest.mark.parametrize(
    ("stage", "key", "note", "compared_still"),
    [
        ("prepare", "prepare.path", "other parameters or input files of prepare", set()),
        ("features", "features.weights", "other parameters or input files of prepare", set()),
        ("reference", "reference.adm_npz", "other real images", {"loss"}),
    ],
)
def test_other_files_at_the_same_paths_are_not_compared(
    stage: str, key: str, note: str, compared_still: set[str], params: Params, written: Path, tmp_path: Path
) -> None:
    for place, digest in (("one", "a"), ("other", "b")):
        shutil.copytree(written, tmp_path / place / "outputs")
        write_json(tmp_path / place / "outputs" / "inputs" / f"{stage}.json", {key: digest})
    reference = record(tmp_path / "one", dict.fromkeys(params.active, params))
    assert not compare(measured(tmp_path / "one", params, "sfd"), reference, params, "sfd").notes
    compared = compare(measured(tmp_path / "other", params, "sfd"), reference, params, "sfd")
    assert note in compared.notes[0]
    assert set(table(compared)["number"]) == compared_still


@contextmanager
def in_work(project: Path, losses: Mapping[int, float], validated: int) -> Iterator[None]:
    """Hold the folder of a training that has come to these losses."""
    folder = project / ".sfd" / "resume" / "train" / "key"
    with held(folder, "training"):
        history = History(folder / "history.csv")
        for step, loss in losses.items():
            history.append(Record(step, step * 64, 30.0, {"loss": loss}, 1.0, 1e-3, 128.0))
        history.close()
        (folder / "validation.csv").write_text(f"step,texture\n{validated},0.5\n")
        yield


def test_a_training_in_work_is_compared_by_its_losses(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--variant", "sfd"])
    with in_work(project, {300: 9.0}, validated=250):
        optimisation = params.train.optimisation.model_copy(update={"batch_size": 7})
        edited = params.model_copy(update={"train": params.train.model_copy(update={"optimisation": optimisation})})
        here = measured(project, edited, "sfd")
    finished = measured(project, edited, "sfd")
    assert len(finished) > 1
    assert (finished["images_seen"] == 64 * finished["step"]).all()
    assert here[["step", "images_seen", "number", "value"]].to_numpy().tolist() == [
        [300, 300 * 64, "loss", 9.0],
        [250, 250 * 64, "validation loss texture", 0.5],
    ]


def test_fid_stands_beside_the_published_curve_of_its_model(params: Params, tmp_path: Path) -> None:
    values = imagenet_like(params)
    sfd = values.variants["sfd"].model_copy(update={"size": "XL", "patch": 1, "learning_rate": 1e-4})
    imagenet = values.model_copy(update={"variants": values.variants | {"sfd": sfd}})
    assert published_model(sfd) == "LightningDiT-XL/1 + SFD"
    assert published_model(sfd.model_copy(update={"patch": 2})) == "LightningDiT-XL/2 + SFD"
    here = pd.DataFrame(
        [("sfd", 100_000, 80_000 * 256, "fid", 50_000, 8.2), ("sfd", 50_000, 1, "fid", 10_000, 9.0)],
        columns=["variant", "step", "images_seen", "number", "samples", "value"],
    )
    compared = compare(here, read_reference(imagenet, 1000, tmp_path / "none.csv"), imagenet, "sfd")
    assert [row[-1] for row in compared.rows] == ["as expected"]
    assert compared.notes == ["fid of 10,000 samples not compared: the reference has 50,000 samples"]
    faster = imagenet.model_dump(mode="json")
    faster["variants"]["sfd"]["learning_rate"] = 2e-4
    noted = compare(here, read_reference(imagenet, 1000, tmp_path / "none.csv"), parse_params(faster), "sfd")
    assert [row[-1] for row in noted.rows] == ["as expected"]
    assert "the reference has another recipe: learning rate 0.0001, here 0.0002" in noted.notes


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("evaluate.sampler.guidance", "cfg", "guidance is cfg, the published curve has none"),
        ("evaluate.sampler.evaluations", 60, "evaluations are 60, and fewer than 100 raise FID"),
        ("texture_vae.name", "vavae-f16d32-dinov2", "texture_vae.name is vavae-f16d32-dinov2, there sd-vae-f16d32-50ep"),
        ("features.encoder", "vit_large_patch14_dinov2", "features.encoder is vit_large_patch14_dinov2, there vit_base"),
        ("train.optimisation.optimizer", "muon", "train.optimisation.optimizer is muon, there adamw"),
        ("variants.sfd.prediction", "data", "prediction is data, there velocity"),
    ],
)
def test_fid_of_another_protocol_is_not_compared_with_the_published(
    key: str, value: object, said: str, params: Params, tmp_path: Path
) -> None:
    values = imagenet_like(params).model_dump(mode="json")
    values["variants"]["sfd"] |= {"size": "XL", "patch": 1}
    values["train"] |= {"conditional": True, "class_dropout": 0.1}
    set_value(values, key, value)
    other = parse_params(values)
    here = pd.DataFrame([("sfd", 100_000, 80_000 * 256, "fid", 50_000, 8.2)], columns=list(COLUMNS))
    refused = compare(here, read_reference(other, 1000, tmp_path / "none.csv"), other, "sfd")
    assert not refused.rows
    assert refused.notes[0].startswith(f"FID not compared: {said}")


def test_the_reference_of_other_images_is_no_published_curve(params: Params) -> None:
    assert "latents" in read_reference(imagenet_like(params), 1, ROOT / "docs" / "results" / "curves.csv")


def test_the_commands_record_and_compare(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["curve", "record", "--out", "curves.csv"])
    app(["curve", "compare", "sfd", "--curves", "curves.csv"])
    printed = capsys.readouterr().out
    assert printed.count("as expected") > 5
    assert f"{FINAL['sfd']:,.0f}" in printed
    app(["curve", "compare", "--curves", "curves.csv"])
    assert "lightningdit\n" in capsys.readouterr().out
    with pytest.raises(DataError, match="no readable table"):
        app(["curve", "compare", "--curves", "none.csv"])
    (project / "other.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="lacks the columns variant"):
        app(["curve", "compare", "--curves", "other.csv"])
    with pytest.raises(ConfigError, match="unknown variant 'nobody'"):
        app(["curve", "compare", ".@nobody"])
    with pytest.raises(DataError, match="no training in work or finished of redi"):
        app(["curve", "compare", "redi"])


def test_damaged_numbers_are_named(tmp_path: Path, params: Params, written: Path) -> None:
    shutil.copytree(written, tmp_path / "outputs")
    (tmp_path / "outputs" / "evaluate" / "sfd" / "numbers.json").write_text("{")
    with pytest.raises(DataError, match=r"numbers\.json is no readable JSON"):
        measured(tmp_path, params, "sfd")


def test_distances_of_weights_before_the_last_training_are_not_recorded(tmp_path: Path, params: Params, written: Path) -> None:
    shutil.copytree(written, tmp_path / "outputs")
    train_again(tmp_path / "outputs", "sfd")
    assert set(measured(tmp_path, params, "sfd")["number"]) == {"loss"}
    assert len(set(measured(tmp_path, params, "sync")["number"])) > 1


def test_the_committed_curves_can_be_compared_with(params: Params) -> None:
    table = read_reference(params, 10, ROOT / "docs" / "results" / "curves.csv")
    assert set(table["variant"]) == {"dit", "lightningdit", "sync", "sfd", "any_order"}
    assert set(table["step"]) == {200, 400, 600, 800}
    for name, rows in table.groupby("variant"):
        assert {key: set(rows[key]) for key in PROTOCOL} == {
            key: {value} for key, value in protocol(params, params.variants[str(name)], {}).items()
        }


@pytest.mark.parametrize("setting", ["adm_npz", "inception_weights"])
def test_distances_to_other_real_images_are_another_evaluation(setting: str, params: Params) -> None:
    imagenet = imagenet_like(params)
    other = imagenet.model_copy(update={"reference": imagenet.reference.model_copy(update={setting: "other"})})
    one, two = (protocol(values, params.variants["sfd"], {}) for values in (imagenet, other))
    assert {key for key in one if one[key] != two[key]} == {"evaluation"}


def test_how_a_path_is_found_belongs_to_the_recipe_of_those_that_take_it(params: Params) -> None:
    learned = load_preset("avatars+learned", ROOT / "presets").check()
    assert learned.schedule
    other = learned.model_copy(update={"schedule": learned.schedule.model_copy(update={"steps": 7})})
    found, plain = learned.variants["learned"], params.variants["sfd"]
    assert protocol(learned, found, {})["recipe"] != protocol(other, found, {})["recipe"]
    assert protocol(learned, plain, {}) == protocol(other, plain, {})


def test_where_nothing_was_trained_nothing_is_recorded_over_a_table(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    Path("curves.csv").write_text("recorded\n")
    with pytest.raises(DataError, match=r"has nothing to record of .*sfd"):
        app(["curve", "record", "--out", "curves.csv"])
    assert Path("curves.csv").read_text() == "recorded\n"


def test_before_the_first_point_of_the_reference_nothing_is_compared(project: Path, params: Params) -> None:
    here, reference = measured(project, params, "sfd"), record(project, dict.fromkeys(params.active, params))
    known = reference[(reference["variant"] == "sfd") & (reference["number"] == "loss")]
    early = here[here["number"] == "loss"][:1].assign(images_seen=known["images_seen"].min() - 1)
    (row,) = table(compare(early, reference, params, "sfd")).itertuples()
    assert row.verdict == "no reference at this step"


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.04, "as expected"), (0.96, "as expected"), (1.06, "behind by 6%"), (0.94, "ahead by 6%")]
)
def test_what_is_within_five_percent_is_as_expected(factor: float, verdict: str, project: Path, params: Params) -> None:
    here, reference = measured(project, params, "sfd"), record(project, dict.fromkeys(params.active, params))
    rows = table(compare(here.assign(value=factor * here["value"]), reference, params, "sfd"))
    assert set(rows["verdict"]) == {verdict}


def test_the_loss_of_a_step_is_the_mean_of_the_ten_rows_up_to_it(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--variant", "sfd"])
    with in_work(project, {step: float(step**2) for step in range(1, 31)}, validated=20):
        here = measured(project, params, "sfd")
    losses = [sum(step**2 for step in range(last - 9, last + 1)) / 10 for last in (20, 30)]
    assert here[["step", "number", "value"]].to_numpy().tolist() == [
        [20, "loss", losses[0]],
        [30, "loss", losses[1]],
        [20, "validation loss texture", 0.5],
    ]
