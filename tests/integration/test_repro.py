"""`dvc repro` on a whole tiny project: it runs, runs nothing twice, and re-runs just what depends on a change."""

import csv
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml
from projects import CLASSES, IMAGES_PER_CLASS, LEAST_COST, ROOT, Project, make_project

from sfd_core.workspace.dvc import Place, environment
from sfd_core.workspace.places import look_at_inputs

pytestmark = pytest.mark.timeout(900)

VARIANTS = ("dit", "sfd", "repa")
WITHOUT_STUDIES = ("studies@dit", "studies@repa")


def changed(project: Project) -> set[str]:
    """Stages that DVC finds changed themselves, not counting what follows from them."""
    status: dict[str, list[Any]] = json.loads(project.run("dvc", "status", "--json").stdout)
    return {stage for stage, reasons in status.items() if any(not isinstance(reason, str) for reason in reasons)}


def ran(output: str) -> list[str]:
    """Stages whose command was run, not restored from the cache."""
    return re.findall(r"^Running stage '([^']+)':$", output, re.MULTILINE)


@pytest.fixture
def project(reproduced: Project) -> Iterator[Project]:
    """The reproduced project, with its parameters and code restored after the test."""
    before = {
        path: path.read_bytes() for path in [reproduced.path / "params.yaml", *(reproduced.path / "sfd_core").rglob("*.py")]
    }
    yield reproduced
    for path, content in before.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def test_every_declared_output_is_written(project: Project) -> None:
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())["stages"]
    assert set(lock) == {
        *("code", "inputs", "prepare", "texture_vae", "features", "semantic_vae", "encode", "schedule", "reference", "report"),
        *(f"{stage}@{variant}" for stage in ("train", "evaluate", "studies") for variant in VARIANTS),
    }
    for stage, entry in lock.items():
        for out in entry["outs"]:
            path = project.path / out["path"]
            if stage not in WITHOUT_STUDIES:
                assert path.stat().st_size if path.is_file() else any(path.iterdir()), f"{stage}: {out['path']} is empty"


def test_nothing_is_written_outside_outputs_report_and_state(project: Project) -> None:
    status = project.run("git", "status", "--porcelain", "--ignored").stdout
    written = {line[3:] for line in status.splitlines()}
    compiled = {path for path in written if path.startswith("sfd_core/") and path.endswith("__pycache__/")}
    assert written - compiled == {"dvc.lock", "outputs/", "report/", ".sfd/", ".dvc/cache/", ".dvc/tmp/"}


def test_a_second_repro_runs_nothing(project: Project) -> None:
    ended = project.run("dvc", "repro")
    assert ran(ended.stdout) == []
    assert "Data and pipelines are up to date." in ended.stdout
    assert json.loads(project.run("dvc", "status", "--json").stdout) == {}


TRAININGS = {f"train@{variant}" for variant in VARIANTS}
EVALUATIONS = {f"{stage}@{variant}" for stage in ("evaluate", "studies") for variant in VARIANTS}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prepare.seed": 7}, {"inputs", "prepare"}),
        ({"texture_vae.kl_weight": 0.5}, {"inputs", "texture_vae"}),
        ({"features.batch_size": 4}, {"inputs", "features"}),
        ({"semantic_vae.channels": 3}, {"inputs", "semantic_vae"}),
        ({"encode.seed": 7}, {"encode"}),
        ({"train.ema_decay": 0.9}, {"schedule", *TRAININGS}),
        ({"schedule": {"kind": "learned"}}, {"schedule"}),
        ({"variants.sfd.delta_t": 0.5}, {"train@sfd"}),
        ({"variants.lightningdit.seed": 7}, set()),
        ({"reference.batch_size": 4}, {"inputs", "reference", *EVALUATIONS}),
        ({"evaluate.sampler.evaluations": 5}, {"inputs", *EVALUATIONS}),
        ({"studies.guided.scales": [1.5]}, {f"studies@{variant}" for variant in VARIANTS}),
        ({"report.title": "Another"}, set()),
        ({"engine.checkpoint_seconds": 9.0}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_value_concerns_just_the_stages_that_read_it(
    project: Project, changes: Mapping[str, Any], expected: set[str] | None
) -> None:
    project.set(changes)
    # the report prints every value that can change a result
    assert changed(project) == (set() if expected is None else expected | {"report"})


def edit(project: Project, file: str, old: str, new: str) -> None:
    """Replace a piece of code that is there."""
    path = project.path / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.slow
def test_a_training_whose_output_dvc_has_not_recorded_costs_no_step_again(tmp_path: Path) -> None:
    """As after a kill while DVC reads the outputs: it deletes them before it starts the stage again."""
    project = make_project(tmp_path / "tiny", ["sfd"])
    edit(project, "sfd_core/host/resume.py", "SECONDS_TO_REPEAT = 600.0", "SECONDS_TO_REPEAT = 0.0")
    project.run("dvc", "repro", "encode", "schedule")
    project.run("python", "-m", "sfd_core.stages.train", "--variant", "sfd")
    snapshots = {path.name: path.read_bytes() for path in (project.path / "outputs" / "train" / "sfd" / "snapshots").iterdir()}
    ended = project.run("dvc", "repro", "--single-item", "train@sfd")
    steps = project.values()["train"]["optimisation"]["steps"]
    assert f"sfd: resumed after step {steps} of {steps}" in ended.stderr
    again = {path.name: path.read_bytes() for path in (project.path / "outputs" / "train" / "sfd" / "snapshots").iterdir()}
    assert again == snapshots
    assert list((project.path / ".sfd" / "resume" / "train").iterdir()) != []
    project.run("dvc", "repro", "--single-item", "reference")
    assert list((project.path / ".sfd" / "resume" / "train").iterdir()) == []


def test_changed_words_run_nothing_but_the_stage_that_reads_code(project: Project) -> None:
    edit(project, "sfd_core/latents/encoder.py", "class LatentEncoder:\n", "class LatentEncoder:  # a comment\n")
    assert changed(project) == {"code"}
    assert ran(project.run("dvc", "repro").stdout) == ["code"]
    assert changed(project) == set()


def test_changed_code_runs_what_depends_on_its_result_and_nothing_where_that_stays_the_same(project: Project) -> None:
    texture_vae = project.path / "outputs" / "texture_vae"
    before = (texture_vae / "model.safetensors").read_bytes()
    edit(project, "sfd_core/stages/texture_vae.py", "SHOWN_IMAGES = 24", "SHOWN_IMAGES = 3 * 8")
    assert ran(project.run("dvc", "repro").stdout) == ["code", "texture_vae", "report"]
    assert (texture_vae / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_another_offset_trains_and_judges_one_variant_and_the_old_one_comes_back_from_the_cache(project: Project) -> None:
    project.run("dvc", "repro")
    before = (project.path / "dvc.lock").read_text()
    project.set({"variants.sfd.delta_t": 0.5})
    assert ran(project.run("dvc", "repro").stdout) == ["train@sfd", "studies@sfd", "evaluate@sfd", "report"]
    difference = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert difference["params.yaml"]["variants.sfd.delta_t"] == {"old": 0.3, "new": 0.5, "diff": 0.2}
    project.set({"variants.sfd.delta_t": 0.3})
    restored = project.run("dvc", "repro").stdout
    assert restored.count("is cached - skipping run, checking out outputs") == 4
    assert (project.path / "dvc.lock").read_text() == before


def test_a_lost_output_comes_back_from_the_cache(project: Project) -> None:
    project.run("dvc", "repro")
    curve = project.path / "outputs" / "evaluate" / "sfd" / "curve.csv"
    content = curve.read_bytes()
    curve.unlink()
    assert "is cached - skipping run" in project.run("dvc", "repro").stdout
    assert curve.read_bytes() == content


def test_metrics_and_plots_are_dvc_s(project: Project) -> None:
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    for variant in VARIANTS:
        assert shown[f"outputs/train/{variant}/metrics.json"]["data"]
        judged = shown[f"outputs/evaluate/{variant}/metrics.json"]["data"]
        assert all(isinstance(value, float) for value in judged.values())
        assert {"fd_efficientnet_lite0", "kid_efficientnet_lite0"} <= set(judged)
    plots = json.loads(project.run("dvc", "plots", "show", "--json").stdout)
    assert "errors" not in plots
    with (project.path / "outputs" / "evaluate" / "sfd" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4]


def test_the_command_line_reads_the_project(project: Project) -> None:
    printed = project.run("sfd", "results").stdout
    for variant in VARIANTS:
        assert re.search(rf"^{variant} .*\d", printed, re.MULTILINE)
    assert printed.rstrip().endswith("report/index.html")


def test_stages_side_by_side_restore_what_is_known_and_then_run_nothing(reproduced: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path / "side-by-side", list(VARIANTS), reproduced, values={"schedule": LEAST_COST})
    first = project.run("sfd", "reproduce", "--at-once", "3")
    assert ran(first.stdout) == ["inputs"]
    here, there = (yaml.safe_load((one.path / "dvc.lock").read_text()) for one in (project, reproduced))
    assert here == there  # but for the order of the stages
    assert (project.path / "report" / "index.html").is_file()
    assert "Stage" not in project.run("sfd", "reproduce").stdout


def test_images_that_change_under_their_path_are_read_again(reproduced: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path / "changing", ["sfd"], cache_of=reproduced)
    place = Place(project.path, environment(project.path))
    assert ran(project.run("dvc", "repro", "prepare").stdout) == ["inputs"]  # the rest is restored
    before = (project.path / "dvc.lock").read_text()
    added = project.path / "images" / "circles" / "added.png"
    shutil.copy2(project.path / "images" / "circles" / "0.png", added)
    ended = project.run("dvc", "repro", "--force", "--single-item", "prepare", check=False)
    assert ended.returncode != 0
    assert "images (prepare.path) changed after stage inputs looked" in ended.stderr

    look_at_inputs(place)
    assert ran(project.run("dvc", "repro", "prepare").stdout) == ["prepare"]
    counts = json.loads((project.path / "outputs" / "prepare" / "metrics.json").read_text())["images"]
    assert sum(counts.values()) == len(CLASSES) * IMAGES_PER_CLASS + 1

    added.write_text("no image")
    ended = project.run("sfd", "reproduce", check=False)
    assert (ended.returncode, "added.png" in ended.stderr) == (2, True), ended.stderr

    added.unlink()
    look_at_inputs(place)
    assert ran(project.run("dvc", "repro", "prepare").stdout) == []
    assert (project.path / "dvc.lock").read_text() == before
    shutil.rmtree(project.path / "images")
    look_at_inputs(place)
    assert json.loads(project.run("dvc", "status", "--json", "prepare", "inputs").stdout) == {}


def test_a_tree_without_git_gives_all_results_also_behind_a_link_in_a_folder_of_an_odd_name(
    reproduced: Project, tmp_path: Path
) -> None:
    name = 'odd é #100%20?,[x]* "p" $HOME'
    project = make_project(tmp_path / name, list(VARIANTS), cache_of=reproduced)
    shutil.rmtree(project.path / ".git")
    project.run("dvc", "config", "--local", "core.no_scm", "true")  # as `make setup` does
    (tmp_path / "link").symlink_to(project.path)
    linked = Project(tmp_path / "link")
    (recipe,) = re.findall(r"^repro:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = [line.split() for line in re.findall(r"^\t\$\(BIN\)/(.+)$", recipe, re.MULTILINE)]
    assert commands == [["sfd", "reproduce"], ["sfd", "track"], ["sfd", "results"]]
    *_, printed = [linked.run(*words).stdout for words in commands]
    assert re.search(r"^sfd .*\d", printed, re.MULTILINE)
    with closing(sqlite3.connect(project.path / ".sfd" / "mlflow.db")) as store:
        (places,) = zip(*store.execute("SELECT artifact_uri FROM runs"), strict=True)
    assert len(places) == len(VARIANTS) + 2
    assert all(Path(url2pathname(urlsplit(place).path)).is_relative_to(project.path) for place in places)
    linked.run("sfd", "experiment", "again")
    assert (project.path / ".sfd" / "experiments" / "again" / "report" / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["link", name])
    ended = subprocess.run(
        [sys.executable, "-m", "flows.deployments"],
        cwd=linked.path, env=linked.environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "is no git repository of its own" in ended.stderr


def test_a_stage_that_fails_ends_those_beside_it_and_is_named(reproduced: Project, tmp_path: Path) -> None:
    project = make_project(tmp_path / "failing", ["sfd"], cache_of=reproduced)
    project.set({"prepare.path": "nowhere"})
    ended = project.run("sfd", "reproduce", check=False)
    assert ended.returncode == 2
    assert "prepare" in ended.stderr
    assert "Traceback" not in ended.stderr
