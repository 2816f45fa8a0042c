"""A sweep on a real Prefect server, by a real worker, in a tiny project."""

import csv
import json
import time
from dataclasses import dataclass
from typing import Any

import pytest
from laboratory import WITH_SERVERS, Laboratory, processes_in
from projects import Project

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), *WITH_SERVERS]

TOO_LARGE = 10**12
"""A batch that no memory holds."""


@dataclass(frozen=True)
class Swept:
    """A project whose offsets 0 and 0.3 were swept."""

    laboratory: Laboratory
    project: Project

    def run(self, deployment: str, **parameters: Any) -> Any:
        return self.laboratory.finish(self.laboratory.ask(deployment, **parameters), 600)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads(self.laboratory.artifact(f"{name}-table")))


@pytest.fixture(scope="module")
def swept(laboratory: Laboratory, tiny: Project) -> Swept:
    made = Swept(laboratory, tiny)
    if not laboratory.serves(tiny):
        laboratory.start_worker(tiny, "one")
    state = made.run("offset sweep/offset sweep", delta_t=[0.0, 0.3])
    assert state.is_completed(), (state.message, (laboratory.path / "one.log").read_text()[-5000:])
    return made


def test_every_point_has_numbers_a_figure_and_a_commit_that_can_be_checked_out(swept: Swept) -> None:
    rows = swept.rows("offsets")
    assert [(row["delta_t"], row["status"]) for row in rows] == [(0.0, "computed"), (0.3, "computed")]
    assert all(row["fd_efficientnet_lite0"] > 0 for row in rows)
    folder = swept.project.path / ".sfd" / "sweeps" / "offsets"
    assert (folder / "figure.png").stat().st_size > 10_000
    with (folder / "table.csv").open(newline="") as file:
        assert [float(row["delta_t"]) for row in csv.DictReader(file)] == [0.0, 0.3]
    summary = swept.laboratory.artifact("offsets-summary")
    assert "git checkout refs/sfd/offsets/" in summary
    (last,) = [point for point in swept.laboratory.points() if point.name == "sfd-delta_t-0p3-seed-0"]
    page = f"{swept.laboratory.environment['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{last.id}"
    (line,) = [line for line in summary.splitlines() if line.startswith(f"| {last.name} |")]
    assert f"[{last.id}]({page})" in line
    assert "step" in swept.laboratory.description(f"samples-{last.parameters['key']}")
    assert "fd_efficientnet_lite0" in swept.laboratory.description(f"progress-{last.parameters['key']}")
    shown = swept.project.run("git", "show", "refs/sfd/offsets/sfd-delta_t-0p3-seed-0:params.yaml").stdout
    assert "delta_t: 0.3" in shown
    lock = swept.project.run("git", "show", "refs/sfd/offsets/sfd-delta_t-0p3-seed-0:dvc.lock").stdout
    assert "evaluate@sfd" in lock


def test_what_points_share_was_computed_once_and_nothing_is_left_running(swept: Swept) -> None:
    logs = [file.read_text() for file in (swept.project.path / ".sfd" / "logs").glob("*.log")]
    printed = "\n".join(logs)
    for stage, times in {"prepare": 1, "encode": 1, "reference": 1, "train@sfd": 2, "evaluate@sfd": 2}.items():
        assert printed.count(f"Running stage '{stage}'") == times, stage
    points = swept.project.path / ".sfd" / "points"
    assert not [path for path in points.iterdir() if path.is_dir()]
    assert processes_in(points) == []


def test_mlflow_has_the_sweep_with_a_child_a_point_and_the_trainings(swept: Swept) -> None:
    script = """
from sfd_core.tracking.store import Store
store = Store()
(parent,) = [run for run, tags in store.find({"sfd.kind": "sweep", "sfd.sweep": "offsets"})]
print(*[len(store.find(tags)) for tags in ({"mlflow.parentRunId": parent}, {"sfd.kind": "variant"}, {"sfd.kind": "vae"})])
assert all("/runs/flow-run/" in run.tags["sfd.flow_run"] for run in store.runs() if run.run_id != parent)
"""
    assert swept.project.run("python", "-c", script).stdout.split() == ["2", "2", "2"]


def test_a_finished_sweep_computes_nothing_and_says_so(swept: Swept) -> None:
    log = swept.project.path / ".sfd" / "logs" / "sweep-offsets.log"
    before, programs, started = len(swept.laboratory.points()), log.read_text(), time.monotonic()
    assert swept.run("offset sweep/offset sweep", delta_t=[0.0, 0.3]).is_completed()
    print(f"a finished sweep again: {time.monotonic() - started:.1f} s")
    assert len(swept.laboratory.points()) == before
    assert log.read_text() == programs
    assert {row["status"] for row in swept.rows("offsets")} == {"finished before"}
    assert len(swept.rows("offsets")) == 2


def test_a_point_in_the_cache_is_restored_and_shown(swept: Swept) -> None:
    for ref in swept.project.run("git", "for-each-ref", "--format=%(refname)", "refs/sfd").stdout.split():
        swept.project.run("git", "update-ref", "-d", ref)
    started = time.monotonic()
    assert swept.run("offset sweep/offset sweep", name="restored", delta_t=[0.3]).is_completed()
    print(f"one restored point: {time.monotonic() - started:.1f} s")
    (row,) = swept.rows("restored")
    assert row["status"] == "restored"
    assert row["fd_efficientnet_lite0"] > 0


def test_a_failed_point_says_why_and_stops_no_other(swept: Swept) -> None:
    state = swept.run("sweep/sweep", name="batches", grid={"train.optimisation.batch_size": [TOO_LARGE, 4]})
    assert state.is_failed()
    assert f"1 of 2 points failed: sfd-batch_size-{TOO_LARGE}-seed-0" in state.message
    assert [row["status"] for row in swept.rows("batches")] == ["failed", "computed"]
    summary = swept.laboratory.artifact("batches-summary")
    assert "`dvc --wait-for-lock repro evaluate@sfd` ended with code" in summary


def test_a_dry_run_and_a_refusal_start_nothing(swept: Swept) -> None:
    before = len(swept.laboratory.points())
    assert swept.run("seeds/seeds", seeds=[0, 1, 2], dry_run=True).is_completed()
    plan = json.loads(swept.laboratory.artifact("seeds-plan"))
    assert [row["status"] for row in plan].count("missing") >= 2
    assert swept.run("sweep/sweep", name="some", variants=["dit", "sfd"], grid={"delta_t": [0.1]}, dry_run=True).is_completed()
    assert [row["point"] for row in json.loads(swept.laboratory.artifact("some-plan"))] == ["sfd-delta_t-0p1-seed-0"]
    refused = swept.run("sweep/sweep", name="wrong", grid={"delta_t": [0.1, 7]})
    assert refused.is_failed()
    assert "point sfd-delta_t-7-seed-0 is not a valid experiment" in refused.message
    refused = swept.run("offset sweep/offset sweep", name="restored", delta_t=[0.3], steps=1000)
    assert refused.is_failed()
    assert "the sweep restored has point sfd-delta_t-0p3-seed-0 with other values" in refused.message
    assert len(swept.laboratory.points()) == before


def test_guidance_is_swept_on_the_trained_denoiser(swept: Swept) -> None:
    state = swept.run("guidance sweep/guidance sweep", scales=[1.0, 1.5], samples=6, evaluations=[3])
    assert state.is_completed(), state.message
    rows = swept.rows("guidance")
    assert [float(row["scale"]) for row in rows] == [1.0, 1.5]
    script = """
from sfd_core.tracking.store import Store
((parent, _),) = (store := Store()).find({"sfd.kind": "sweep", "sfd.sweep": "guidance"})
print(*[store.run(run).metrics["final/precision_efficientnet_lite0"] for run, _ in store.find({"mlflow.parentRunId": parent})])
"""
    sent = swept.project.run("python", "-c", script).stdout.split()
    assert sorted(map(float, sent)) == sorted(float(row["precision_efficientnet_lite0"]) for row in rows)


def test_a_search_draws_in_rounds_and_repeats_nothing(swept: Swept) -> None:
    asked = {"ranges": {"delta_t": {"low": 0.1, "high": 0.9}}, "points": 3, "at_once": 2}
    state = swept.run("search/search", **asked)
    assert state.is_completed(), state.message
    offsets = [row["delta_t"] for row in swept.rows("search")]
    assert len(set(offsets)) == 3
    assert all(0.1 <= offset <= 0.9 for offset in offsets)
    assert swept.run("search/search", **asked).is_completed()
    assert {row["status"] for row in swept.rows("search")} == {"finished before"}
    assert [row["delta_t"] for row in swept.rows("search")] == offsets


def test_a_search_stops_a_point_that_is_behind_and_a_sweep_continues_it(swept: Swept) -> None:
    training = {"steps": 200, "warmup_steps": 1, "decay_steps": 0, "batch_size": 8, "checkpoint_every": 10}
    changes = {
        "train.validation_images": 6,
        "train.snapshots": 4,
        **{f"train.optimisation.{key}": training[key] for key in training},
    }
    ranges = {"learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}
    asked = {"name": "pruned", "ranges": ranges, "points": 6, "at_once": 4, "method": "even", "prune": True, "changes": changes}
    state = swept.run("search/search", **asked)
    assert state.is_completed(), state.message
    rows = swept.rows("pruned")
    assert {row["status"] for row in rows[:4]} == {"computed"}
    stopped = [row for row in rows[4:] if row["status"] == "pruned"]
    assert stopped
    assert "the median of the finished points" in swept.laboratory.artifact("pruned-summary")
    runs = [run for run in swept.laboratory.points() if run.state.name == "Pruned"]
    assert [run.name for run in runs] == [row["point"] for row in stopped]
    (folder, *_) = [swept.project.path / ".sfd" / "points" / run.parameters["key"] for run in runs]
    assert list(folder.glob(".sfd/resume/train/*/step-*"))
    before = len(swept.laboratory.points())
    assert swept.run("search/search", **asked).is_completed()
    assert len(swept.laboratory.points()) == before
    again = ["pruned" if row in stopped else "finished before" for row in rows]
    assert [row["status"] for row in swept.rows("pruned")] == again
    rate = stopped[0]["learning_rate"]
    assert swept.run(
        "sweep/sweep", name="continued", variants=["sfd"], grid={"learning_rate": [rate]}, changes=changes
    ).is_completed()
    (row,) = swept.rows("continued")
    assert row["status"] == "computed"
    assert "sfd: resumed after step" in (swept.project.path / ".sfd" / "logs" / f"{folder.name}.log").read_text()


def test_a_search_whose_losses_do_not_compare_is_refused(swept: Swept) -> None:
    refused = swept.run("search/search", name="refused", prune=True)
    assert refused.is_failed()
    assert "points that differ in delta_t do not compare" in refused.message


def test_orders_are_swept_on_one_training(swept: Swept) -> None:
    state = swept.run("path sweep/path sweep", corners=[0.0, 1.0], samples=6, confirm=True)
    assert state.is_completed(), state.message
    assert [(float(row["t_tex"]), float(row["t_sem"])) for row in swept.rows("paths")] == [(0.5, 0.5), (0, 1), (1, 0)]
    confirmed = swept.rows("paths-confirm")
    assert [row["status"] for row in confirmed] == ["computed", "computed"]
    assert all(row["fd_efficientnet_lite0"] > 0 for row in confirmed)
    refused = swept.run("path sweep/path sweep", variant="sfd")
    assert refused.is_failed()
    assert "name one with independent times" in refused.message


def test_reproduce_brings_the_clone_up_to_date(swept: Swept) -> None:
    state = swept.run("reproduce/reproduce")
    assert state.is_completed(), state.message
    assert json.loads(swept.laboratory.artifact("results"))[0]["variant"] == "sfd"
    assert (swept.project.path / "report" / "index.html").is_file()
    assert "up to date" in swept.project.run("dvc", "status").stdout
