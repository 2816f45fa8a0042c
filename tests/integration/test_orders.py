"""Every way to an order of denoising, and what trainings keep for later, through `dvc repro` on a tiny project."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from projects import LEAST_COST, PROBE, Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LEARNED = PROBE | {"kind": "learned", "knots": 2, "kinetic": 0.1}
FIELD = {"kind": "error_field", "variant": "any_order", "points": 3, "images": 4, "weighting": "uniform"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("orders") / "project", ["any_order", "found", "corners"])
    train, variants = made.values()["train"], made.values()["variants"]
    any_order = variants["any_order"]
    plain = any_order | {"times": {"kind": "global"}, "delta_t": 0.0}
    made.set(
        {
            "schedule": LEAST_COST,
            "studies": {
                "order": FIELD | {"semantic_weights": [0.5, 2.0]},
                "map": {"kind": "corners", "variant": "any_order", "times": [0.0, 1.0]},
            },
            "train": train | {"validation_images": 4, "power_emas": [0.1]},
            "variants": variants
            | {
                "any_order": any_order | {"inner": {"block": 2, "weight": 0.5}, "prediction": "data"},
                "found": plain | {"found_path": True},
                "corners": plain | {"path": [[0, 0], [0.25, 1], [1, 1]]},
            },
        }
    )
    made.run("dvc", "repro")
    return made


def path_of(project: Project, variant: str) -> list[list[float]]:
    path: list[list[float]] = json.loads((project.path / "outputs" / "train" / variant / "model.json").read_text())["variant"][
        "path"
    ]
    return path


def test_variants_are_trained_along_their_paths(project: Project) -> None:
    found = json.loads((project.path / "outputs" / "schedule" / "path.json").read_text())
    assert [found[0], found[-1]] == [[0, 0], [1, 1]]
    assert path_of(project, "found") == found
    assert path_of(project, "corners") == [[0, 0], [0.25, 1], [1, 1]]
    assert path_of(project, "any_order") is None
    assert np.load(project.path / "outputs" / "schedule" / "field.npz")["texture"].shape == (3, 3)
    assert "along a path of its own" in (project.path / "report" / "index.html").read_text()


def test_the_error_field_is_measured_and_shown(project: Project) -> None:
    table = pd.read_csv(project.path / "outputs" / "studies" / "any_order" / "order" / "error_field.csv")
    assert table["semantic_weight"].tolist() == [0.5, 2.0]
    assert "Sampled along least-cost paths" in (project.path / "report" / "index.html").read_text()


def test_a_training_keeps_validation_losses_and_averages(project: Project) -> None:
    for variant in ("any_order", "found", "corners"):
        folder = project.path / "outputs" / "train" / variant
        table = pd.read_csv(folder / "validation.csv")
        assert table["step"].tolist() == [2, 4]
        assert bool(np.isfinite(table[["texture", "semantic"]]).all(axis=None))
        assert {file.name for file in (folder / "snapshots" / "averages").iterdir()} == {
            f"step-0000000{step}-0.1.safetensors" for step in (2, 4)
        }
    project.run("sfd", "ema", "corners", "--sigma", "0.1", "--step", "4", "--out", "averaged")
    numbers = project.run("sfd", "evaluate", "./averaged", "--samples", "6").stdout
    assert re.search(r"fd_efficientnet_lite0 +\d", numbers)
    project.run("sfd", "sample", "any_order", "--guidance", "internal", "--texture-scale", "1.5", "--out", "internal.png")
    project.run("sfd", "sample", "any_order", "--path", "[[0, 0], [0.5, 1], [1, 1]]", "--out", "path.png")


def test_another_schedule_trains_just_the_variants_that_take_it(project: Project) -> None:
    project.set({"schedule": LEARNED})
    ran = re.findall(r"^Running stage '([^']+)':$", project.run("dvc", "repro").stdout, re.MULTILINE)
    assert "schedule" in ran
    assert "prepare" not in ran
    corners = json.loads((project.path / "outputs" / "schedule" / "path.json").read_text())
    assert len(corners) == 3
    assert path_of(project, "found") == corners


def test_a_variant_whose_path_nothing_finds_is_refused_before_anything_runs(project: Project) -> None:
    before = project.values()["schedule"]
    project.set({"schedule": None})
    ended = project.run("sfd", "reproduce", check=False)
    project.set({"schedule": before})
    assert ended.returncode == 2
    assert "variants.found.found_path is true, but schedule is null" in ended.stderr


def test_the_commands_measure_orders_and_errors_of_a_finished_training(project: Project) -> None:
    few = ["--samples", "6", "--evaluations", "4"]
    printed = project.run("sfd", "path-curve", "any_order", "--offsets", "0", "0.5", *few, "--out", ".sfd/paths").stdout
    assert ".sfd/paths/offsets.csv" in printed
    assert pd.read_csv(project.path / ".sfd" / "paths" / "offsets.csv")["delta_t"].tolist() == [0.0, 0.5]
    words = ["error-field", "any_order", "--points", "3", "--images", "4", *few, "--out", ".sfd/field"]
    assert ".sfd/field/error_field.csv" in project.run("sfd", *words).stdout
    assert np.load(project.path / ".sfd" / "field" / "field.npz")["texture"].shape == (3, 3)
