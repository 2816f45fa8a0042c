"""Stage `studies`: each study by its kind, nothing measured twice, an interrupted stage goes on."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from denoisers import artifact, texture_vae, trained_on, variant
from emoji import emoji_values
from evaluators import small_evaluator
from measured_together import points_drawn

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import Params, StudyParams, parse_params
from sfd_core.host.errors import IdentityError
from sfd_core.host.paths import write_json
from sfd_core.host.processes import ALONE, Processes
from sfd_core.host.seeding import sample_noise
from sfd_core.sampling.artifact import load_denoiser
from sfd_core.stages import studies as stage
from sfd_core.stages.studies import measure_study

GUIDED = {"kind": "guidance", "variant": "any_order", "parts": "texture", "scales": [1.0, 2.0]}
STUDIES = {
    "offsets": {"kind": "offsets", "variant": "any_order", "offsets": [-1.0, 0.0, 0.3]},
    "auto": GUIDED | {"guidance": "autoguidance", "guide_step": 7},
    "semantic": GUIDED | {"guidance": "semantic", "guide_step": None},
    "both": GUIDED | {"guidance": "semantic", "guide_step": 7},
    "field": {
        "kind": "error_field",
        "variant": "any_order",
        "points": 4,
        "images": 5,
        "weighting": "uniform",
        "semantic_weights": [2.0, 0.1],
    },
}


@pytest.fixture(scope="module")
def params() -> Params:
    values = emoji_values()
    values["reference"] |= {"extractors": ["efficientnet_lite0"], "batch_size": 8}
    values["evaluate"] |= {"final_samples": 6, "kid_subset_size": 6}
    values["evaluate"]["sampler"] |= {"evaluations": 6, "batch_size": 3}
    return parse_params(values | {"active": ["any_order"], "studies": STUDIES})


@pytest.fixture(scope="module")
def studied(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studied")
    outputs = path / "outputs"
    any_order = variant(times={"kind": "independent", "absent": 0.1})
    artifact(outputs / "train" / "any_order", texture_vae(outputs / "texture_vae"), any_order)
    small_evaluator(outputs)
    random, fields = np.random.default_rng(0), {"z_tex": (2, 4, 4, 4), "z_sem": (2, 2, 4, 4)}
    specs = {name: FieldSpec("float32", shape) for name, shape in fields.items()} | {"label": FieldSpec("int64", ())}
    with ShardWriter(outputs / "encode" / "held_out", specs, {}) as writer:
        values = {name: random.standard_normal((9, *shape), dtype=np.float32) for name, shape in fields.items()}
        writer.append(**values, label=np.arange(9) % 3)
    trained_on(outputs / "train" / "any_order", outputs / "encode")
    return path


def run(study: StudyParams, params: Params, out: Path) -> tuple[pd.DataFrame, int]:
    """Return the table and how many points were drawn."""

    def measured() -> pd.DataFrame:
        measure_study(study, params, out, ALONE)
        return pd.read_csv(next(out.glob("*.csv")))

    return points_drawn(out, measured)


Measured = Callable[[str], tuple[pd.DataFrame, int, Path]]
"""The name of a study to its table, how many points were drawn, and its folder."""


@pytest.fixture(scope="module")
def measured(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Each study is measured when a test first asks for it; the tests leave its folder as it is."""
    root = tmp_path_factory.mktemp("measured")
    return cache(lambda name: (*run(params.studies[name], params, root / name), root / name))


@pytest.fixture(autouse=True)
def in_the_project(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(studied)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_measures_each_of_its_points_once(name: str, params: Params, measured: Measured) -> None:
    table, drawn, folder = measured(name)
    assert len(table) == (3 if name == "offsets" else 2)
    assert drawn == table["file"].nunique() == (1 if name == "field" else len(table))  # here both weights have one path
    alike = name == "auto"  # here the snapshot guides itself
    assert table["fd_efficientnet_lite0"].nunique() == (1 if alike else drawn)
    again, none = run(params.studies[name], params, folder)
    assert none == 0
    pd.testing.assert_frame_equal(again, table)
    assert len(list(folder.glob("*.png"))) == 1


def test_the_error_field_is_that_of_its_definition_and_its_paths_are_sampled_along(
    params: Params, studied: Path, measured: Measured
) -> None:
    table, _, folder = measured("field")
    stored = np.load(folder / "field.npz")
    assert stored["times"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    denoiser, held_out = (
        load_denoiser(studied / "outputs" / "train" / "any_order"),
        studied / "outputs" / "encode" / "held_out",
    )
    rows = [0, 2, 4, 6, 8]
    shard = ShardReader(held_out)
    z_tex, z_sem = (torch.from_numpy(shard[name].array[rows, 0]) for name in ("z_tex", "z_sem"))
    x1 = denoiser.composite.join(z_tex, z_sem)
    x0 = sample_noise(0, rows, tuple(x1.shape[1:]), "error field")
    t_tex, t_sem = torch.full((5,), 1 / 3), torch.full((5,), 2 / 3)
    t = torch.tensor([1 / 3] * 4 + [2 / 3] * 2)[:, None, None]
    with torch.no_grad():
        predicted = denoiser.model(t * x1 + (1 - t) * x0, t_tex, t_sem, torch.tensor(rows) % 3).prediction
    squared = (predicted - (x1 - x0)).square()
    assert stored["texture"][1, 2] == pytest.approx(squared[:, :4].mean().item(), rel=1e-4)
    assert stored["semantic"][1, 2] == pytest.approx(squared[:, 4:].mean().item(), rel=1e-4)
    for path, sampler in zip(table["path"], table["sampler"], strict=True):
        assert sampler == f"{params.evaluate.sampler.solver}, path {json.loads(path)}"


def test_the_error_field_of_a_denoiser_of_other_latents_is_refused(
    params: Params, studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(studied / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    identity = Path("outputs/encode/identity.json")
    write_json(identity, json.loads(identity.read_text()) | {"semantic_vae": {"name": "s", "weights": "trained again"}})
    with pytest.raises(IdentityError, match=r"the error field with the latents in .*: .*different latents .semantic_vae"):
        run(params.studies["field"], params, tmp_path / "out")


def test_kinds_of_guidance_draw_different_images_but_the_same_without_any(measured: Measured) -> None:
    found = {name: measured(name)[0].set_index("scale")["fd_efficientnet_lite0"] for name in ("auto", "semantic", "both")}
    plain = found["auto"][1.0]
    assert plain == found["semantic"][1.0] == found["both"][1.0]
    # the snapshot guides itself here, so that AutoGuidance changes nothing, and semantic guidance by it is that by itself
    assert found["auto"][2.0] == pytest.approx(plain, rel=1e-3)
    assert found["both"][2.0] == found["semantic"][2.0] != pytest.approx(plain, rel=1e-3)


def test_the_stage_goes_on_where_it_was_interrupted_and_leaves_nothing_else(
    params: Params, studied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = params.model_copy(update={"studies": {name: params.studies[name] for name in ("offsets", "auto")}})
    measure, seen = stage.measure_study, []

    def breaks_off(study: StudyParams, params: Params, out: Path, processes: Processes) -> None:
        seen.append(out.name)
        if seen == ["offsets", "auto"]:
            raise KeyboardInterrupt
        measure(study, params, out, processes)

    monkeypatch.setattr(stage, "measure_study", breaks_off)
    out = studied / "outputs" / "studies" / "any_order"
    (out / "old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        stage.studies("any_order", two, out, ALONE)
    (kept,) = (studied / ".sfd" / "resume" / "studies").rglob("offsets.csv")
    before = {file.name: file.stat().st_mtime_ns for file in kept.parent.glob("points/*.json")}
    stage.studies("any_order", two, out, ALONE)
    assert {path.name for path in out.iterdir()} == {"offsets", "auto"}
    after = (out / "offsets" / "points").glob("*.json")
    assert {file.name: file.stat().st_mtime_ns for file in after} == before
    assert not list((studied / ".sfd" / "resume" / "studies").iterdir())
