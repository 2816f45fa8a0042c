"""Published numbers: in the package with their sources, and shown beside FID on ImageNet 256 alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_outputs import FINAL, imagenet_like, payload, write_outputs, write_studies
from synthetic_outputs import IMAGENET_CLASSES as CLASSES

from sfd_core.experiment.params import Params, parse_params
from sfd_core.reporting import published_numbers
from sfd_core.reporting.figures import convergence_figure
from sfd_core.reporting.palette import variant_styles
from sfd_core.reporting.published_numbers import TABLE, comparable, curves, offset_curve, published_tables, read_published
from sfd_core.reporting.sources import Outputs, read_outputs
from sfd_core.stages.report import report


@pytest.fixture(scope="module")
def imagenet(params: Params) -> Params:
    return imagenet_like(params)


@pytest.fixture(scope="module")
def outputs(imagenet: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_outputs(tmp_path_factory.mktemp("imagenet") / "outputs", imagenet, CLASSES)


@pytest.fixture(scope="module")
def page(imagenet: Params, outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    return report(imagenet, outputs, write_studies(root / "results", imagenet), root / "report").read_text()


@pytest.mark.parametrize("name", ["convergence", "guided", "ablations"])
def test_every_number_names_its_source_and_whether_it_is_exact(name: str) -> None:
    table = read_published(name)
    assert table["source"].str.fullmatch(r"arXiv \d{4}\.\d{5}").all()
    assert set(table["exactness"]) <= {TABLE, "read off a figure, about 2 %"}
    assert table["fid"].between(1, 50).all()
    assert not table.duplicated(list(table.columns[:2])).any()


def test_curves_fall_with_training_and_the_best_offset_is_three_tenths() -> None:
    for model, points in curves().items():
        assert points["fid"].is_monotonic_decreasing, model
        assert (points["images_seen"] == 256 * points["step"]).all()
    offsets = offset_curve()
    assert offsets["delta_t"].tolist() == pytest.approx([index / 10 for index in range(11)])
    assert offsets.loc[offsets["fid"].idxmin(), "delta_t"] == 0.3
    assert offsets["fid"].min() == 3.03


def test_the_published_speed_ups_follow_from_the_curves() -> None:
    drawn = curves()
    dit = drawn["DiT-XL/2"].set_index("step")["fid"]
    sfd = drawn["LightningDiT-XL/1 + SFD"].set_index("step")["fid"]
    plain = drawn["LightningDiT-XL/1"].set_index("step")["fid"]
    assert sfd[70_000] < dit[7_000_000]
    assert 7_000_000 / 70_000 == 100
    assert sfd[120_000] < plain[4_000_000]


def test_tables_say_that_they_are_published_and_what_was_read_off_a_figure() -> None:
    unguided, guided, ablations = published_tables()
    assert all(table.caption.startswith("Published") for table in (unguided, guided, ablations))
    assert all("not measured here" in table.note for table in (unguided, guided, ablations))
    row = next(row for row in unguided.rows if row.title == "published: LightningDiT-XL/1 + SFD")
    cells = dict(zip(unguided.columns, [cell.text for cell in row.cells], strict=True))
    assert (cells["70K"], cells["80K"], cells["7M"]) == ("8.79", "≈ 8.2", "-")


def test_imagenet_with_fid_shows_them_dashed_and_named(page: str) -> None:
    published = payload(page)["published"]
    assert set(published["curves"]) == {"fid"}
    assert "published: LightningDiT-XL/1 + SFD" in published["curves"]["fid"]
    assert set(published["own_offsets"]) == {"sync", "sfd", "cascade", "any_order"}
    assert published["own_offsets"]["sfd"] == {"x": [0.3], "y": [pytest.approx(FINAL["sfd"] / 200)]}
    assert published["offsets"]["x"] == offset_curve()["delta_t"].tolist()
    assert published["offsets"]["y"] == offset_curve()["fid"].tolist()
    assert 'id="published"' in page
    assert "Published: unguided, by training step" in page


def test_twemoji_distances_never_stand_beside_them(params: Params, written: Path, tmp_path: Path) -> None:
    html = report(params, written, tmp_path / "none", tmp_path / "report").read_text()
    assert payload(html)["published"] == {}
    assert "Published" not in html
    assert "arXiv 2410.06940" not in html


OTHER_PROTOCOLS = {
    "resolution": lambda values: values["prepare"].update(resolution=512),
    "extractor": lambda values: values["reference"].update(extractors=["dinov2", "inception"]),
    "reference": lambda values: values["reference"].update(adm_npz=None),
    "guidance": lambda values: values["evaluate"]["sampler"].update(guidance="cfg"),
    "order": lambda values: values["evaluate"]["sampler"].update(delta_t=0.0),
}


@pytest.mark.parametrize("change", OTHER_PROTOCOLS)
def test_numbers_of_another_protocol_do_not_compare(change: str, imagenet: Params) -> None:
    values = imagenet.model_dump(mode="json")
    OTHER_PROTOCOLS[change](values)
    values["features"]["grid"] = values["prepare"]["resolution"] // values["texture_vae"]["downsampling"]
    assert not comparable(parse_params(values), 1000, 50_000)


def test_only_fifty_thousand_samples_of_a_thousand_classes_compare(imagenet: Params) -> None:
    assert published_numbers.SAMPLES == 50_000
    assert comparable(imagenet, 1000, 50_000)
    assert not comparable(imagenet, 1000, 10_000)
    assert not comparable(imagenet, 1, 50_000)


def drawn(params: Params, outputs: Outputs) -> int:
    """Count the published curves of the figure."""
    axes = convergence_figure(params, outputs, variant_styles(list(outputs.variants))).axes[0]
    return sum(words.get_text().startswith("published: ") for words in axes.texts)


def test_snapshots_of_fewer_samples_are_drawn_alone_and_final_numbers_beside_the_published(
    imagenet: Params, outputs: Path, tmp_path: Path
) -> None:
    fewer = imagenet.model_copy(update={"evaluate": imagenet.evaluate.model_copy(update={"snapshot_samples": 10_000})})
    found = read_outputs(imagenet, outputs, tmp_path)
    assert drawn(imagenet, found) == len(curves())
    assert drawn(fewer, found) == 0
    *_, last = found.variants
    guided = replace(found.variants[last], sampler=imagenet.evaluate.sampler.model_copy(update={"guidance": "cfg"}))
    assert drawn(imagenet, replace(found, variants=found.variants | {last: guided})) == 0, "such as of a run beside"
    html = report(fewer, outputs, tmp_path / "none", tmp_path / "report").read_text()
    assert set(payload(html)["published"]) == {"offsets", "own_offsets"}
    assert 'id="published"' in html
    assert 'name="published"' not in html
