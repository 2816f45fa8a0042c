"""`dvc repro` on a whole tiny project: it runs, runs nothing twice, and re-runs just what depends on a change."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from projects import Project

pytestmark = [pytest.mark.xdist_group("pipeline"), pytest.mark.timeout(900)]

VARIANTS = ("dit", "sfd", "redi", "repa")


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
        *("prepare", "texture_vae", "features", "semantic_vae", "encode", "reference", "report"),
        *(f"{stage}@{variant}" for stage in ("train", "evaluate") for variant in VARIANTS),
    }
    for stage, entry in lock.items():
        for out in entry["outs"]:
            path = project.path / out["path"]
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
EVALUATIONS = {f"evaluate@{variant}" for variant in VARIANTS}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prepare.seed": 7}, {"prepare"}),
        ({"texture_vae.kl_weight": 0.5}, {"texture_vae"}),
        ({"features.batch_size": 4}, {"features"}),
        ({"semantic_vae.channels": 3}, {"semantic_vae"}),
        ({"encode.seed": 7}, {"encode"}),
        ({"train.ema_decay": 0.9}, TRAININGS),
        ({"variants.sfd.delta_t": 0.5}, {"train@sfd"}),
        ({"variants.lightningdit.seed": 7}, set()),
        ({"reference.batch_size": 4}, {"reference", *EVALUATIONS}),
        ({"evaluate.sampler.evaluations": 5}, EVALUATIONS),
        ({"report.title": "Another"}, set()),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_value_concerns_just_the_stages_that_read_it(
    project: Project, changes: Mapping[str, Any], expected: set[str]
) -> None:
    project.set(changes)
    # the report prints every value
    assert changed(project) == expected | {"report"}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("sfd_core/experiment/params.py", set()),
        ("sfd_core/cli.py", set()),
        ("sfd_core/latents/encoder.py", {"encode"}),
        ("sfd_core/stages/report.py", {"report"}),
    ],
)
def test_changed_code_concerns_just_the_stages_that_run_it(project: Project, file: str, expected: set[str]) -> None:
    with (project.path / file).open("a") as code:
        code.write("\n# changed\n")
    assert changed(project) == expected


def test_another_offset_trains_and_judges_one_variant_and_the_old_one_comes_back_from_the_cache(project: Project) -> None:
    before = (project.path / "dvc.lock").read_text()
    project.set({"variants.sfd.delta_t": 0.5})
    assert ran(project.run("dvc", "repro").stdout) == ["train@sfd", "evaluate@sfd", "report"]
    difference = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert difference["params.yaml"]["variants.sfd.delta_t"] == {"old": 0.3, "new": 0.5, "diff": 0.2}
    project.set({"variants.sfd.delta_t": 0.3})
    restored = project.run("dvc", "repro").stdout
    assert restored.count("is cached - skipping run, checking out outputs") == 3
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
