"""Stage `studies`: each study by its kind, nothing measured twice, what no longer exists deleted."""

from pathlib import Path

import pandas as pd
import pytest
from denoisers import artifact, texture_vae, variant
from emoji import emoji_values
from evaluators import small_evaluator
from measured_together import points_drawn

from sfd_core.experiment.params import Params, StudyParams, parse_params
from sfd_core.host.processes import ALONE
from sfd_core.stages.studies import forget_others, measure_study

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


def test_what_is_left_of_other_studies_is_deleted(tmp_path: Path) -> None:
    for name in ("offsets", "old"):
        (tmp_path / name).mkdir()
    forget_others(tmp_path, {"offsets", "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["offsets"]
