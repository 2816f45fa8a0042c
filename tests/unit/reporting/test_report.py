import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from same_outputs import bytes_below
from synthetic_outputs import FINAL, payload, write_studies

from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.params import Params
from sfd_core.host.errors import DataError
from sfd_core.reporting import payload as report_payload
from sfd_core.reporting.palette import variant_styles
from sfd_core.reporting.sources import read_outputs
from sfd_core.stages.report import report
from sfd_core.training.history import write_empty_history


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def page(params: Params, written: Path, folder: Path) -> Path:
    return report(params, written, write_studies(folder / "results", params), folder / "report")


@pytest.fixture
def bare(params: Params, written: Path, tmp_path: Path) -> Path:
    """Outputs without anything optional."""
    for name in params.active:
        (tmp_path / "outputs" / "evaluate" / name).mkdir(parents=True)
        for file in ("curve.csv", "numbers.json"):
            shutil.copy(written / "evaluate" / name / file, tmp_path / "outputs" / "evaluate" / name / file)
    return tmp_path / "outputs"


def test_a_published_vae_has_no_curve(params: Params, bare: Path) -> None:
    (bare / "texture_vae").mkdir()
    write_empty_history(bare / "texture_vae" / "history.csv")
    html = report(params, bare, bare / "results", bare / "report").read_text()
    assert "<summary>Texture VAE" not in html
    assert "texture_vae" not in payload(html)["training"]


def test_page_refers_to_nothing_outside_itself(page: Path) -> None:
    html = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#|\{)[^"]*"', html)
    assert not re.findall(r"url\((?!\"\$|data:)", html)
    assert "default-src 'none'" in html


def test_every_section_has_content(page: Path) -> None:
    html = page.read_text()
    assert 'class="missing"' not in html.replace('<noscript><p class="missing">', "")
    assert "2512.04926" in html
    assert "CC BY 4.0" in html
    pictures = re.findall(r"<img\b[^>]*>", html)
    assert pictures
    assert [picture[:100] for picture in pictures if " alt=" not in picture] == []


def test_payload_holds_every_curve_grid_and_run(params: Params, page: Path) -> None:
    data = payload(page.read_text())
    for part in ("curves", "grids", "trajectories"):
        assert set(data[part]) == set(params.active)
    run = data["trajectories"]["sfd"]
    assert [run["phases"][run["phase"][at]]["name"] for at in (0, -1)] == ["semantic initialisation", "texture completion"]
    local = Schedule.offset(params.variants["sfd"].delta_t).local_times(torch.tensor(run["u"]))
    assert run["t_tex"] == pytest.approx(local.t_tex.tolist(), abs=1e-5)
    assert run["t_sem"] == pytest.approx(local.t_sem.tolist(), abs=1e-5)
    batch = params.train.optimisation.batch_size
    assert data["grids"]["sfd"]["images_seen"] == [batch * step for step in range(300, 1501, 300)]
    composites = [name for name in params.active if params.variants[name].semantic != "none"]
    assert {line["name"]: line["value"] for line in data["lines"]["fd_efficientnet_lite2"]} == {
        "floor": pytest.approx(1.1 * 216),
        "ceiling": pytest.approx(1.1 * 480),
        **{f"oracle {name}": pytest.approx(0.95 * FINAL[name]) for name in composites},
    }
    assert data["trajectories"]["dit"]["semantics"] is None


def test_lines_beside_curves_of_another_number_of_samples_say_of_how_many_images_they_are(
    params: Params, written: Path, folder: Path
) -> None:
    outputs = read_outputs(params, written, write_studies(folder / "results", params))
    more = outputs.studies["long"].assign(samples=2000)
    data = report_payload.build_payload(params, replace(outputs, studies={"long": more}), variant_styles(params.active), 1)
    first = [[line["name"] for line in data[part]["fd_efficientnet_lite2"]][:2] for part in ("lines", "long_lines")]
    assert first == [["floor", "ceiling"], ["floor, 500 images", "ceiling, 500 images"]]


def test_every_frame_of_a_run_has_the_phase_that_it_is_in_though_the_same_parts_moved_before(
    params: Params, written: Path, tmp_path: Path
) -> None:
    sfd = read_outputs(params, written, tmp_path).variants["sfd"]
    assert sfd.trajectory is not None
    path = [[0.0, 0.0], [0.0, 0.5], [1.0, 0.5], [1.0, 1.0]]
    variant = replace(sfd, params=sfd.params.model_copy(update={"delta_t": 0.0, "path": path}))
    u = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 1.75, 2.0])
    run = replace(sfd.trajectory, u=u, textures=sfd.trajectory.textures[: len(u)], semantics=None)
    found = report_payload._trajectory(variant, run, [])
    words = ["semantic initialisation"] * 2 + ["texture generation"] * 2 + ["semantic completion"] * 3
    assert [found["phases"][index]["name"] for index in found["phase"]] == words


def test_images_seen_of_samples_are_those_of_their_snapshots_whatever_the_present_batch_size(
    params: Params, written: Path, tmp_path: Path
) -> None:
    sfd = read_outputs(params, written, tmp_path).variants["sfd"]
    twice = replace(sfd, curve=sfd.curve.assign(images_seen=2 * sfd.curve["images_seen"]))
    assert sfd.grids is not None
    assert report_payload._grid(twice, sfd.grids, 1)["images_seen"] == twice.curve["images_seen"].tolist()


def test_a_long_training_curve_is_averaged_over_equal_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_payload, "HISTORY_POINTS", 2)
    rows = pd.DataFrame({"step": range(5), "images_seen": [0, 10, 20, 30, 40], "loss": [9.0, 6.0, 3.0, 4.0, 2.0]})
    assert report_payload._history(rows) == {"images_seen": [10, 35], "terms": {"loss": [6, 3]}}


def test_a_term_that_is_switched_off_has_no_chart(page: Path) -> None:
    html = page.read_text()
    assert 'data-term="cosine"' in html
    assert 'data-term="repa"' not in html


def test_tables_of_studies_say_of_how_many_samples_their_numbers_are_if_they_record_it(page: Path) -> None:
    html = page.read_text()
    assert re.search(r"Learning-rate grid<span>Fréchet distance · EfficientNet-Lite2; 640 samples; lower is better", html)
    assert re.search(r"Seeds<span>Fréchet distance · EfficientNet-Lite2; mean ± standard error", html)


def test_the_error_field_is_shown_with_its_paths(page: Path) -> None:
    html = page.read_text()
    assert "Velocity errors of texture and semantics over both times" in html
    assert re.search(r"Sampled along least-cost paths.*?0\.1/0\.8", html, re.DOTALL)


def test_metrics_and_results_hold_the_final_table(params: Params, page: Path) -> None:
    metrics = json.loads((page.parent / "metrics.json").read_text())
    assert metrics["sfd"]["fd_efficientnet_lite2"] == FINAL["sfd"]
    results = pd.read_csv(page.parent / "results.csv").set_index("variant")
    assert list(results.index) == params.active
    assert results.loc["dit", "fd_efficientnet_lite2"] == FINAL["dit"]
    assert results.loc["dit", "samples"] == 1500


def test_figures_are_pictures(page: Path) -> None:
    for name in ("convergence", "offsets", "guidance", "samples", "denoising"):
        with Image.open(page.parent / f"{name}.png") as picture:
            assert min(picture.size) > 200
    assert (page.parent / "phases.svg").read_text().startswith("<svg")


def test_report_survives_without_optional_parts(params: Params, bare: Path, tmp_path: Path) -> None:
    html = report(params, bare, tmp_path / "none", tmp_path / "report").read_text()
    assert html.count('class="missing"') > 10
    assert "dvc repro evaluate@sfd" in html
    assert not list((tmp_path / "report").glob("samples.png"))


@pytest.mark.parametrize(
    ("active", "delta_t", "said"),
    [
        (
            ["sync", "sfd"],
            -0.5,
            ["sampled at offset -0.5", "semantics over u in [0.5, 1.5), texture over [0, 1)", "texture ahead"],
        ),
        (
            ["lightningdit", "any_order"],
            None,
            ["As any_order was sampled: semantics over u in [0, 1), texture over [0.3, 1.3)"],
        ),
        (["lightningdit", "dit"], None, []),
    ],
)
def test_the_schedule_is_that_of_the_samples(
    active: list[str], delta_t: float | None, said: list[str], params: Params, bare: Path, tmp_path: Path
) -> None:
    sampler = params.evaluate.sampler.model_copy(update={"delta_t": delta_t})
    evaluate = params.evaluate.model_copy(update={"sampler": sampler})
    sampled = params.model_copy(update={"active": active, "evaluate": evaluate})
    html = report(sampled, bare, tmp_path / "none", tmp_path / "report").read_text()
    assert [words for words in said if words not in html] == []
    assert "of the training samples" not in html
    assert ('class="card schedule"' in html) == (tmp_path / "report" / "phases.svg").exists() == bool(said)


def test_missing_variant_leaves_the_old_report_alone(params: Params, bare: Path, page: Path) -> None:
    shutil.rmtree(bare / "evaluate" / "dit")
    before = page.read_bytes()
    with pytest.raises(DataError, match="dit"):
        report(params, bare, bare, page.parent)
    assert page.read_bytes() == before


def test_same_inputs_give_the_same_files(params: Params, bare: Path, tmp_path: Path) -> None:
    pages = (report(params, bare, tmp_path / "none", tmp_path / name) for name in ("one", "two"))
    first, again = (bytes_below(page.parent) for page in pages)
    assert first == again
    assert first.keys() > {"index.html"}


def test_text_from_outside_cannot_become_markup(params: Params, bare: Path, tmp_path: Path) -> None:
    hostile = params.model_copy(
        update={"report": params.report.model_copy(update={"title": "<script>alert(1)</script> $x^{$"})}
    )
    html = report(hostile, bare, tmp_path / "none", tmp_path / "report").read_text()
    assert "<script>alert(1)" not in html
