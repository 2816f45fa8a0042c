"""Stage `studies`: each study by its kind, nothing measured twice, an interrupted stage goes on."""

from pathlib import Path

import pandas as pd
import pytest
from denoisers import artifact, texture_vae, variant
from emoji import emoji_values
from evaluators import small_evaluator
from measured_together import points_drawn

from sfd_core.experiment.params import Params, StudyParams, parse_params
from sfd_core.host.processes import ALONE, Processes
from sfd_core.stages import studies as stage
from sfd_core.stages.studies import measure_study

GUIDED = {"kind": "guidance", "variant": "any_order", "parts": "texture", "scales": [1.0, 2.0]}
STUDIES = {
    "offsets": {"kind": "offsets", "variant": "any_order", "offsets": [-1.0, 0.0, 0.3]},
    "auto": GUIDED | {"guidance": "autoguidance", "guide_step": 7},
    "semantic": GUIDED | {"guidance": "semantic", "guide_step": None},
    "both": GUIDED | {"guidance": "semantic", "guide_step": 7},
}


@pytest.fixture(scope="module")
def params() -> Params:
    values = emoji_values()
    values["reference"] |= {"extractors": ["efficientnet_lite0"], "batch_size": 8}
    values["evaluate"] |= {"final_samples": 6, "kid_subset_size": 6}
    values["evaluate"]["sampler"] |= {"evaluations": 6, "batch_size": 3}
    return parse_params(values | {"active": ["any_order"], "studies": STUDIES})


@pytest.fixture(scope="module")
def laid_out(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studied")
    outputs = path / "outputs"
    any_order = variant(times={"kind": "independent", "absent": 0.1})
    artifact(outputs / "train" / "any_order", texture_vae(outputs / "texture_vae"), any_order)
    small_evaluator(outputs)
    return path


def run(study: StudyParams, params: Params, out: Path) -> tuple[pd.DataFrame, int]:
    """Return the table and how many points were drawn."""

    def measured() -> pd.DataFrame:
        measure_study(study, params, out, ALONE)
        return pd.read_csv(next(out.glob("*.csv")))

    return points_drawn(out, measured)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_measures_each_of_its_points_once(
    name: str, params: Params, laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(laid_out)
    study = params.active_studies()[name]
    table, drawn = run(study, params, tmp_path / name)
    assert drawn == len(table) == (3 if name == "offsets" else 2)
    assert table["fd_efficientnet_lite0"].nunique() == (1 if name == "auto" else drawn)  # here the snapshot guides itself
    again, none = run(study, params, tmp_path / name)
    assert none == 0
    pd.testing.assert_frame_equal(again, table)
    assert len(list((tmp_path / name).glob("*.png"))) == 1


def test_kinds_of_guidance_draw_different_images_but_the_same_without_any(
    params: Params, laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(laid_out)
    found = {}
    for name in ("auto", "semantic", "both"):
        table, _ = run(params.active_studies()[name], params, tmp_path / name)
        found[name] = table.set_index("scale")["fd_efficientnet_lite0"]
    plain = found["auto"][1.0]
    assert plain == found["semantic"][1.0] == found["both"][1.0]
    # the snapshot guides itself here, so that AutoGuidance changes nothing, and semantic guidance by it is that by itself
    assert found["auto"][2.0] == pytest.approx(plain, rel=1e-3)
    assert found["both"][2.0] == found["semantic"][2.0] != pytest.approx(plain, rel=1e-3)


def test_the_stage_goes_on_where_it_was_interrupted_and_leaves_nothing_else(
    params: Params, laid_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(laid_out)
    measure, seen = stage.measure_study, []

    def breaks_off(study: StudyParams, params: Params, out: Path, processes: Processes) -> None:
        seen.append(out.name)
        if seen == ["offsets", "auto"]:
            raise KeyboardInterrupt
        measure(study, params, out, processes)

    monkeypatch.setattr(stage, "measure_study", breaks_off)
    (laid_out / "outputs" / "studies" / "old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        stage.studies(params, laid_out / "outputs" / "studies", ALONE)
    (kept,) = (laid_out / ".sfd" / "resume" / "studies").rglob("offsets.csv")
    before = {file.name: file.stat().st_mtime_ns for file in kept.parent.glob("points/*.json")}
    stage.studies(params, laid_out / "outputs" / "studies", ALONE)
    assert {path.name for path in (laid_out / "outputs" / "studies").iterdir()} == set(STUDIES)
    after = (laid_out / "outputs" / "studies" / "offsets" / "points").glob("*.json")
    assert {file.name: file.stat().st_mtime_ns for file in after} == before
    assert not list((laid_out / ".sfd" / "resume" / "studies").iterdir())
