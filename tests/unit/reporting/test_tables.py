import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_outputs import CLASSES, FINAL

from sfd_core.diffusion.error_field import ErrorField
from sfd_core.evaluation.convergence import Reach
from sfd_core.experiment.params import Params
from sfd_core.host.paths import write_json
from sfd_core.reporting import studies, tables, text
from sfd_core.reporting.sources import Outputs, read_outputs
from sfd_core.reporting.study_figures import corner_figure, error_field_figure, guidance_figure, offset_figure


def reach(variant: str, target: str, steps: float | None, at_most: bool = False) -> Reach:
    costs = (None,) * 4 if steps is None else (steps, steps * 64, steps * 64e8, steps * 0.15)
    return Reach("fd_efficientnet_lite2", target, FINAL[target], variant, *costs, at_most=at_most)


def test_leading_extractor_is_not_the_semantic_encoder(outputs: Outputs) -> None:
    assert tables.primary_number(outputs, "tf_efficientnet_lite0").name == "fd_efficientnet_lite2"
    assert tables.primary_number(outputs, "tf_efficientnet_lite2").name == "fd_efficientnet_lite0"


def test_result_table_marks_the_best_of_every_column(outputs: Outputs) -> None:
    table = tables.result_table(outputs)
    rows = {row.title: row for row in table.rows}
    assert all(cell.best for cell in rows["sfd"].cells)
    assert not any(cell.best for title, row in rows.items() if title != "sfd" for cell in row.cells)
    assert [row.title for row in table.rows if row.reference][-3:] == [
        "VAE reconstructions (ceiling)",
        "held-out images (floor)",
        "training images themselves",
    ]
    assert "1,500 samples" in table.note
    assert sum(span for _, span in table.groups) == len(table.columns) == len(rows["dit"].cells)


def test_unbalanced_classes_of_a_labelled_training_are_said_to_increase_distances(
    params: Params, written: Path, tmp_path: Path
) -> None:
    tree = Path(shutil.copytree(written, tmp_path / "outputs"))
    assert "class-balanced" not in tables.result_table(read_outputs(params, tree, tree)).note
    prepared = {"images": {"train": 206}, "classes": 4, "per_class": {"train": {"a": 98, "b": 46, "c": 36, "d": 26}}}
    write_json(tree / "prepare" / "metrics.json", prepared)
    note = tables.result_table(read_outputs(params, tree, tree)).note
    assert "Samples are class-balanced, but classes have 26 to 98 training images" in note
    for name in params.active:
        write_json(tree / "train" / name / "model.json", {"classes": []})
    assert "class-balanced" not in tables.result_table(read_outputs(params, tree, tree)).note


def test_fewer_real_images_than_samples_are_counted(outputs: Outputs) -> None:
    few = {
        name: replace(number, protocol={**number.protocol, "samples": 46})
        for name, number in outputs.references["floor"].items()
    }
    table = tables.result_table(replace(outputs, references={**outputs.references, "floor": few}))
    assert "held-out images (floor), 46 images" in [row.title for row in table.rows]


def test_every_flat_number_is_in_the_table(params: Params, outputs: Outputs) -> None:
    flat = tables.flat_numbers(outputs)
    assert flat["sfd"]["fd_efficientnet_lite2"] == FINAL["sfd"]
    oracles = {f"{name}_oracle" for name in params.active if params.variants[name].semantic != "none"}
    assert set(flat) == {*params.active, *oracles, "floor", "ceiling", "train_subset"}


def test_speed_table_says_when_a_target_was_not_reached(outputs: Outputs) -> None:
    reaches = [
        reach("dit", "lightningdit", None),
        reach("lightningdit", "lightningdit", 1500),
        reach("sfd", "lightningdit", 1000),
        reach("sync", "lightningdit", 300, at_most=True),
    ]
    [table] = tables.speed_tables(reaches, outputs)["fd_efficientnet_lite2"]
    rows = {row.title: row.cells for row in table.rows}
    assert all(cell.absent and cell.text == "not reached" for cell in rows["dit"])
    assert rows["sfd"][0].factor == "1.5 times less"
    assert rows["sfd"][0].faster
    assert rows["lightningdit"][0].factor == ""
    assert (rows["sync"][0].text, rows["sync"][0].factor) == ("≤ 300", "≥ 5 times less")


def test_a_cost_that_is_not_known_is_not_told_as_not_reached(outputs: Outputs) -> None:
    untimed = replace(reach("sfd", "dit", 500), seconds=None)
    [table] = tables.speed_tables([reach("dit", "dit", 1500), untimed], outputs)["fd_efficientnet_lite2"]
    assert [cell.text for cell in table.rows[1].cells] == ["500", "32,000", "3.2 TFLOP", "-"]


def test_every_cost_has_the_factor_of_its_own_target(outputs: Outputs) -> None:
    own = Reach("fd_efficientnet_lite2", "dit", 10.0, "dit", 1000, 2000, 3000e9, 4000, at_most=False)
    other = replace(own, variant="sfd", steps=500, images_seen=500, flops=6000e9, seconds=400)
    [table] = tables.speed_tables([own, other], outputs)["fd_efficientnet_lite2"]
    rows = {row.title: [(cell.factor, cell.faster) for cell in row.cells] for row in table.rows}
    assert rows["sfd"] == [("2 times less", True), ("4 times less", True), ("2 times more", False), ("10 times less", True)]
    assert rows["dit"] == [("", False)] * 4
    [table] = tables.speed_tables([own, replace(other, at_most=True, images_seen=2000)], outputs)["fd_efficientnet_lite2"]
    assert [cell.factor for cell in table.rows[1].cells] == [
        "≥ 2 times less", "the same or less", "≤ 2 times more", "≥ 10 times less",
    ]  # fmt: skip
    [table] = tables.speed_tables([replace(own, at_most=True), other], outputs)["fd_efficientnet_lite2"]
    assert [cell.factor for cell in table.rows[1].cells] == [""] * 4


def test_epochs_keep_the_lowest_distance_so_far(outputs: Outputs) -> None:
    curve = outputs.variants["sfd"].curve.copy()
    name = "fd_efficientnet_lite2"
    curve[name] = [5.0, 3.0, 4.0, 2.0, 2.5]
    changed = replace(outputs, variants={"sfd": replace(outputs.variants["sfd"], curve=curve)})
    number = tables.primary_number(outputs, "tf_efficientnet_lite0")
    assert number.name == name
    table = tables.epoch_table(changed, number)
    assert table is not None
    assert [cell.text for cell in table.rows[0].cells] == ["5.00", "3.00", "3.00", "2.00", "2.00"]
    assert table.columns == [f"{images / 500:.3g} epochs" for images in curve["images_seen"]]
    assert tables.epoch_table(replace(outputs, training_images=None), number) is None


def test_between_its_snapshots_a_variant_stays_at_its_lowest_distance(outputs: Outputs) -> None:
    number = tables.primary_number(outputs, "tf_efficientnet_lite0")
    found = {}
    for name, images, values in (("sfd", [100, 300], [9.0, 5.0]), ("dit", [200, 300], [8.0, 7.0])):
        curve = outputs.variants[name].curve[:2].assign(images_seen=images, **{number.name: values})
        found[name] = replace(outputs.variants[name], curve=curve)
    table = tables.epoch_table(replace(outputs, variants=found), number)
    assert table is not None
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["9.00", "9.00", "5.00"], ["-", "8.00", "7.00"]]


def test_finding_names_whoever_leads(outputs: Outputs) -> None:
    primary = tables.primary_number(outputs, "tf_efficientnet_lite0")
    assert "sfd is closest" in tables.finding(outputs, primary, "tf_efficientnet_lite0")
    beaten = dict(outputs.variants["dit"].numbers)
    beaten[primary.name] = replace(beaten[primary.name], value=100.0)
    upset = replace(outputs, variants={**outputs.variants, "dit": replace(outputs.variants["dit"], numbers=beaten)})
    said = tables.finding(upset, primary, "tf_efficientnet_lite0")
    assert said.startswith(f"After {1500 * 64:,} training images dit is closest")
    assert f"{1 - 100 / FINAL['sfd']:.1%} below sfd ({FINAL['sfd']:,.0f})" in said


def test_finding_calls_level_what_differs_no_more_than_seeds_do(outputs: Outputs) -> None:
    primary = tables.primary_number(outputs, "tf_efficientnet_lite0")
    values = outputs.final_values(primary.name)
    leader, second, *others = sorted(values, key=lambda name: values[name])
    gap = values[second] - values[leader]
    said = tables.finding(outputs, primary, "tf_efficientnet_lite0", spread=gap)
    assert f"level with {second} (" in said
    assert not any(f"level with {name} " in said for name in others)
    assert f"by no more than {text.number(gap)}, as seeds" in said
    assert "level" not in tables.finding(outputs, primary, "tf_efficientnet_lite0", spread=gap * 0.99).lower()


def test_the_spread_of_seeds_is_the_largest_of_a_variant_of_as_many_samples(outputs: Outputs) -> None:
    table = pd.DataFrame({"variant": ["a", "a", "b", "b"], "fd": [1.0, 3.0, 10.0, 10.5]})
    samples = next(iter(outputs.variants.values())).samples

    def spread(**studied: pd.DataFrame) -> float:
        return studies.seed_spread(replace(outputs, studies=studied), "fd")

    assert spread(seeds=table.assign(samples=samples)) == 2.0
    assert spread(seeds=table.assign(samples=7)) == spread(seeds=table) == spread() == 0.0


def test_learning_rate_table_marks_the_best_of_each_variant() -> None:
    table = pd.DataFrame(
        {
            "variant": ["sfd"] * 3 + ["dit"] * 2,
            "learning_rate": [1e-3, 2e-3, 4e-3, 1e-3, 2e-3],
            "seed": 0,
            "fd_dinov2": [3.0, 1.0, 2.0, 5.0, 6.0],
        }
    )
    rates, rows = studies.learning_rate_table(table, "fd_dinov2")
    assert rates == ["0.001", "0.002", "0.004"]
    assert [[best for _, _, best in row.cells] for row in rows] == [[False, True, False], [True, False, False]]
    assert rows[1].cells[2][0] == "-"
    assert [heat for _, heat, _ in rows[0].cells] == [0.0, 1.0, 0.5]
    seeds = pd.concat([table, table.assign(seed=1, fd_dinov2=[3.0, 7.0, 2.0, 5.0, 6.0])])
    _, [sfd, _] = studies.learning_rate_table(seeds, "fd_dinov2")
    assert [(value, best) for value, _, best in sfd.cells] == [("3.00", False), ("4.00", False), ("2.00", True)]


def test_seed_table_shows_means_with_their_errors_and_how_far_behind_the_best_seed_by_seed() -> None:
    values = {"sfd": [200.0, 210.0, 190.0], "dit": [400.0, 416.0, 390.0], "sync": [205.0, 211.0, math.nan]}
    rows = [{"variant": name, "seed": seed, "fd_dinov2": value} for name in values for seed, value in enumerate(values[name])]
    sfd, dit, sync = studies.seed_table(pd.DataFrame(rows), "fd_dinov2")
    assert (sfd.mean, sfd.behind, sfd.values) == ("200 ± 5.77", "", ["200", "210", "190"])
    assert (dit.mean, dit.behind) == ("402 ± 7.57", "202 ± 2.00")
    assert (sync.mean, sync.behind, sync.values) == ("208 ± 3.00", "3.00 ± 2.00", ["205", "211"])
    assert all(0 <= place <= 100 for row in (sfd, dit, sync) for place in row.places)
    assert (sfd.places[2], dit.places[1]) == (2, 98)
    lucky = pd.DataFrame({"variant": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "fd_dinov2": [1.0, 9.0, 2.0, 3.0]})
    assert [row.behind == "" for row in studies.seed_table(lucky, "fd_dinov2")] == [False, True]


def test_offsets_are_rows_with_the_lowest_mean_marked(outputs: Outputs) -> None:
    points = outputs.curves[outputs.curves["kind"] == "offsets"]
    table = studies.offset_table(points, "fd_efficientnet_lite2")
    assert table.columns[0] == "Fréchet distance ↓"
    assert [row.title for row in table.rows if row.cells[0].best] == ["0.3"]
    assert len(table.rows) == points["delta_t"].nunique()


def offsets(*studied: tuple[str, str, int, float]) -> pd.DataFrame:
    """Return points of studies at two offsets, given study, variant, seed and the distance at offset 0."""
    rows = [
        {"study": study, "variant": name, "seed": seed, "delta_t": offset, "samples": 100, "fd_dinov2": distance + offset}
        for study, name, seed, distance in studied
        for offset in (0.0, 0.5)
    ]
    return pd.DataFrame(rows)


def test_offsets_of_two_variants_are_rows_and_lines_apart() -> None:
    points = offsets(("a", "one", 0, 10.0), ("b", "two", 0, 20.0), ("b-seed-1", "two", 1, 30.0))
    table = studies.offset_table(points, "fd_dinov2")
    shown = [(row.title, *(cell.text for cell in row.cells)) for row in table.rows]
    assert shown == [("0", "one", "10.0"), ("0.5", "one", "10.5"), ("0", "two", "25.0"), ("0.5", "two", "25.5")]
    assert [row.cells[1].best for row in table.rows] == [True, False, False, False]
    assert "Means of 1/2 trainings of each variant" in table.note
    assert sum(span for _, span in table.groups) == len(table.columns)
    lines = [line for line in offset_figure(points).axes[0].lines if len(np.asarray(line.get_ydata())) == 2]
    assert {line.get_label(): list(np.asarray(line.get_ydata())) for line in lines} == {
        "one": [10.0, 10.5],
        "two": [25.0, 25.5],
    }


def test_two_studies_of_one_training_are_one_line() -> None:
    points = pd.DataFrame({"study": ["few", "few", "more"], "variant": "sfd", "seed": 0, "delta_t": [0.0, 1.0, 0.5]})
    axes = offset_figure(points.assign(samples=100, fd_dinov2=[3.0, 2.0, 1.0])).axes[0]
    assert axes.get_title(loc="left") == "one training, 100 samples a point"
    assert [list(np.asarray(line.get_xdata())) for line in axes.lines] == [[0.0, 0.5, 1.0]]


def test_offsets_of_trainings_that_differ_in_more_than_the_seed_are_no_mean() -> None:
    points = offsets(("slow", "one", 0, 10.0), ("fast", "one", 0, 20.0))
    rows = studies.offset_table(points, "fd_dinov2").rows
    assert [(row.cells[0].text, row.cells[1].text) for row in rows[::2]] == [("slow", "10.0"), ("fast", "20.0")]
    seeds = offsets(("a", "one", 0, 10.0), ("b", "one-seed-1", 1, 20.0)).assign(origin="one")
    assert [row.cells[0].text for row in studies.offset_table(seeds, "fd_dinov2").rows] == ["15.0", "15.5"]
    third = pd.concat([seeds, offsets(("c", "one-seed-2", 2, 60.0)).assign(origin="one")])
    assert [row.cells[0].text for row in studies.offset_table(third, "fd_dinov2").rows] == ["30.0", "30.5"]
    assert [line.get_label() for line in offset_figure(seeds).axes[0].lines][:3] == ["seed 0", "seed 1", "mean"]


def test_offsets_that_not_every_seed_has_are_no_mean() -> None:
    seeds = offsets(("a", "one", 0, 10.0), ("b", "one-seed-1", 1, 20.0))
    finer = pd.DataFrame([{"study": "fine", "variant": "one", "seed": 0, "delta_t": 0.3, "samples": 100, "fd_dinov2": 10.3}])
    points = pd.concat([seeds, finer])
    table = studies.offset_table(points.assign(origin="one"), "fd_dinov2")
    assert [(row.title, row.cells[0].text, row.cells[1].text) for row in table.rows] == [
        ("0", "one", "10.0"),
        ("0.3", "one", "10.3"),
        ("0.5", "one", "10.5"),
        ("0", "one-seed-1", "20.0"),
        ("0.5", "one-seed-1", "20.5"),
    ]
    assert "Means" not in table.note
    figure = offset_figure(points.assign(origin="one"))
    assert figure.axes[0].get_title(loc="left") == "2 trainings, 100 samples a point"
    assert "mean" not in {line.get_label() for line in figure.axes[0].lines}
    assert {row.cells[0].text for row in studies.offset_table(points.assign(variant="one"), "fd_dinov2").rows} == {
        "a",
        "b",
        "fine",
    }


def test_guidance_is_a_line_an_interval_also_where_the_solver_chooses_its_evaluations() -> None:
    points = pd.DataFrame({"scale": [1.0, 1.5, 2.0, 1.5], "interval_from": [0.0, 0.0, 0.0, 0.3], "interval_to": 1.0})
    points = points.assign(samples=100, fd_dinov2=[3.0, 2.0, 4.0, 1.0])
    lines = {
        "dopri5": {"66 to 90 evaluations, guided in [0, 1]": [1.0, 1.5, 2.0], "70 evaluations, guided in [0.3, 1]": [1.0, 1.5]},
        "ab2": {
            "66 evaluations, guided in [0, 1]": [1.0],
            "78 evaluations, guided in [0, 1]": [1.5],
            "90 evaluations, guided in [0, 1]": [2.0],
            "70 evaluations, guided in [0.3, 1]": [1.5],
        },
    }
    for sampler, wanted in lines.items():
        axes = guidance_figure(points.assign(sampler=sampler, evaluations=[66, 78, 90, 70])).axes[0]
        assert {line.get_label(): list(np.asarray(line.get_xdata())) for line in axes.lines} == wanted


def test_every_study_of_guidance_is_a_row_at_its_best_scale() -> None:
    points = pd.DataFrame(
        {
            "study": ["a", "a", "b", "b"],
            "scale": [1.5, 2.0, 1.5, 2.0],
            "samples": 100,
            "fd_efficientnet_lite2": [30.0, 20.0, 25.0, 10.0],
            "precision_efficientnet_lite2": [0.1, 0.2, 0.3, 0.4],
        }
    )
    table = studies.guided_table(points, "fd_efficientnet_lite2")
    assert [(row.title, row.cells[0].text, row.cells[1].text) for row in table.rows] == [("b", "2", "10.0"), ("a", "2", "20.0")]
    assert table.columns == ["Scale", "Fréchet distance ↓", "Precision ↑"]
    assert [[cell.best for cell in row.cells] for row in table.rows] == [[False, True, False], [False] * 3]
    unguided = pd.DataFrame([{"study": "offsets", "scale": np.nan, "samples": 100, "fd_efficientnet_lite2": 5.0}])
    assert studies.guided_table(pd.concat([points, unguided], ignore_index=True), "fd_efficientnet_lite2").rows == table.rows
    by_lite0 = studies.guided_table(points.assign(fd_efficientnet_lite0=[9.0, 2.0, 1.0, 3.0]), "fd_efficientnet_lite0")
    assert [[cell.best for cell in row.cells] for row in by_lite0.rows] == [[False, False, False, True], [False] * 4]
    assert sum(span for _, span in table.groups) == len(table.columns)


def test_shares_of_classes_are_those_of_every_variant_and_of_the_training_images(outputs: Outputs) -> None:
    table = studies.class_shares(outputs)
    assert table is not None
    assert [row.title for row in table.rows] == [*outputs.variants, "training images"]
    assert len(table.columns) == len(CLASSES)
    assert "98.0% of the mirror images of the training images that it was fitted with" in table.note
    unlabelled = {name: replace(found, classes=None) for name, found in outputs.variants.items()}
    assert studies.class_shares(replace(outputs, variants=unlabelled)) is None


def test_the_share_that_the_classifier_tells_is_of_images_and_not_of_classes(outputs: Outputs) -> None:
    classes = pd.DataFrame({"class": ["a", "b"], "real": [0.9, 0.1], "samples": [0.5, 0.5], "recognised": [1.0, 0.2]})
    table = studies.class_shares(replace(outputs, variants={"sfd": replace(outputs.variants["sfd"], classes=classes)}))
    assert table is not None
    assert "right for 92.0% of the mirror images" in table.note


def test_classes_are_shown_whose_shares_are_furthest_from_the_training_images(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "MOST_CLASSES", 2)
    shares = {"real": [0.3, 0.3, 0.4], "samples": [0.3, 0.5, 0.2], "recognised": 1.0}
    classes = pd.DataFrame({"class": ["a", "b", "c"], **shares})
    table = studies.class_shares(replace(outputs, variants={"sfd": replace(outputs.variants["sfd"], classes=classes)}))
    assert table is not None
    assert table.columns == ["b", "c"]


def test_corners_are_rows_with_the_lowest_first() -> None:
    corners = {"t_tex": [0.0, 1.0], "t_sem": [1.0, 0.0], "fd_dinov2": [9.0, 3.0]}
    rows = studies.order_table(pd.DataFrame({"kind": "corners", "samples": 100, **corners}), "fd_dinov2").rows
    assert [(row.title, row.cells[0].text, row.cells[0].best) for row in rows] == [
        ("1/0", "3.00", True),
        ("0/1", "9.00", False),
    ]


def test_a_final_value_is_that_of_the_last_snapshot() -> None:
    table = pd.DataFrame({"variant": "sfd", "step": [2, 3, 1], "images_seen": [20, 30, 10], "fd_dinov2": [5.0, 4.0, 7.0]})
    words = studies.final_values(table.assign(samples=200), "fd_dinov2")
    assert words == "sfd 4.00 after 30 images; 200 samples a snapshot"


def test_maps_of_both_times_have_texture_to_the_right_and_semantics_upwards() -> None:
    corners = {"t_tex": [0.5, 0.0, 1.0], "t_sem": [0.5, 1.0, 0.0], "fd_dinov2": [5.0, 3.0, 9.0]}
    [image] = corner_figure(pd.DataFrame({"samples": 100, **corners})).axes[0].images
    assert np.asarray(image.get_array()).tolist() == [[5.0, 9.0], [3.0, 5.0]]
    errors = torch.arange(1.0, 10.0).reshape(3, 3)
    field = ErrorField(torch.tensor([0.0, 0.5, 1.0]), errors, 10 * errors)
    paths = pd.DataFrame([{"path": "[[0, 0], [0.1, 0.8], [1, 1]]", "semantic_weight": 1.0, "fd_dinov2": 5.0}])
    for axes, shown in zip(error_field_figure(field, paths).axes, (field.texture, field.semantic), strict=False):
        [mesh] = axes.collections
        assert np.array_equal(np.asarray(mesh.get_array()).reshape(3, 3), shown.numpy().T)
        assert list(np.asarray(axes.lines[0].get_xdata())) == [0, 0.1, 1]
