"""Following a training on a real server that dies in the middle of it."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emoji import emoji
from seaweed import free_ports
from torch import Tensor, nn
from waiting import wait_until

from sfd_core.experiment.params import Optimisation
from sfd_core.host.seeding import generator
from sfd_core.tracking.address import experiment_birth
from sfd_core.tracking.curves import Curve
from sfd_core.tracking.live import follow, history_key
from sfd_core.tracking.runs import RunSpec, training_run
from sfd_core.tracking.store import Evidence, Store, sync_run
from sfd_core.training.batches import BatchOrder
from sfd_core.training.checkpoint import ResumeFolder
from sfd_core.training.history import read_history
from sfd_core.training.loop import TrainingPlan, run

STEPS, KILLED_AT = 200, 60
SPEC = RunSpec("sfd", {"train.seed": "0"}, {"sfd.kind": "variant"})
OPTIMISATION = Optimisation(
    steps=STEPS, batch_size=4, warmup_steps=0, decay_steps=0, final_rate=1.0, betas=[0.9, 0.99], weight_decay=0.0,
    clip_norm=0.0, precision="float32", checkpoint_every=50, seed=0,
)  # fmt: skip
PLAN = TrainingPlan("live", OPTIMISATION, 1e-3, snapshot_steps=(KILLED_AT,), log_every=1)


class Server:
    """A real MLflow server that can be killed and started again on the same database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            Path(sys.executable).parent / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--serve-artifacts",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | switches
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the MLflow server did not start:\n{(self.folder / 'log').read_text()[-3000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Wait:
    """A tiny model whose steps take a few milliseconds."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 4)
        self.order = BatchOrder(4, 4, seed=0)

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        return {"x": torch.randn(4, 4, generator=generator(0, step))[part]}

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        time.sleep(0.005)
        return {"loss": (self.model(batch["x"]) - batch["x"]).square().mean()}


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = project / "server"
    folder.mkdir()
    server = Server(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_server_killed_during_training_costs_no_time_and_no_point(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    server.start()
    store, killed = Store(server.uri), False

    def points_there() -> bool:
        return any(store.known(run_id, ["train/loss"]) for run_id, _ in store.find({"sfd.resume_key": "resume"}))

    def kill(step: int, weights: Mapping[str, Tensor]) -> None:
        nonlocal killed
        wait_until(points_there, "a point of the curve on the server", 120)
        server.kill()
        killed = True

    resume = ResumeFolder(Path("resume"))
    with follow(SPEC, resume.history_path, "resume", every=0.2):
        result = run(Wait(), PLAN, resume, on_snapshot=kill)
        assert threads_named("follow sfd") == 1
    assert killed
    assert result.steps == STEPS
    # 200 steps of some 6 ms; a training that waited for the dead server would take minutes
    assert result.seconds < 20
    assert "the curve is on disk and sent later" in capfd.readouterr().err
    assert experiment_birth(server.uri) is None
    server.start()
    complete(resume.history_path, server)


def complete(history: Path, server: Server) -> None:
    """Send the rest, twice, and look at what the server has."""
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    key, store = history_key(history), Store(server.uri)
    assert experiment_birth(server.uri) == str(MlflowClient(server.uri).get_experiment(store.experiment_id).creation_time)
    evidence = Evidence(curves=[Curve(history, "train")])
    first = sync_run(store, SPEC, key, evidence, "resume")
    again = sync_run(store, SPEC, key, evidence, "resume")
    assert first.points_sent > 0
    assert (again.run_id, again.points_sent) == (first.run_id, 0)
    assert store.find({"sfd.resume_key": "resume"})[0][0] == first.run_id
    rows = read_history(history)
    for column in ("loss", "images_seen", "gradient_norm", "learning_rate", "images_per_second"):
        logged = MlflowClient(server.uri).get_metric_history(first.run_id, f"train/{column}")
        assert set(Counter(metric.step for metric in logged).values()) == {1}
        assert sorted((metric.step, metric.value) for metric in logged) == [(row["step"], row[column]) for row in rows]
    for name in ("cpu_utilization_percentage", "system_memory_usage_percentage"):
        logged = MlflowClient(server.uri).get_metric_history(first.run_id, f"system/{name}")
        assert [metric.step for metric in logged] == list(range(len(logged)))
        assert logged
        assert all(0 <= metric.value <= 100 for metric in logged)


def threads_named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_the_forecast_is_sent_while_the_training_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_HOUR_PRICE", "2")
    server.start()
    assert experiment_birth(server.uri) == ""
    history = server.folder / "history.csv"
    history.write_text("step,seconds,loss\n200,36,1\n")
    spec = training_run("sfd", emoji().train)
    with follow(replace(spec, steps=20_000), history, "resume", every=0.2):
        store = Store(server.uri)

        def sent() -> bool:
            metrics = [store.run(run_id).metrics for run_id, _ in store.find({"sfd.resume_key": "resume"})]
            return any((found.get("forecast/hours"), found.get("forecast/cost")) == (1.0, 2.0) for found in metrics)

        wait_until(sent, "a forecast of an hour for 2", 120)
    assert spec.steps == emoji().train.optimisation.steps


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_resumed_run_is_running_again_and_one_that_is_gone_is_made_anew(server: Server) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - only the tests that run pay for it

    server.start()
    history = server.folder / "history.csv"
    history.write_text("step,seconds,loss\n1,1,1\n")
    store, client = Store(server.uri), MlflowClient(server.uri)

    def run_that_is(status: str) -> str:
        """Wait for the run of the training in a state, with its point."""

        def found() -> str | None:
            runs = [client.get_run(run_id) for run_id, _ in store.find({"sfd.resume_key": "resume"})]
            reached = (run for run in runs if run.info.status == status and run.data.metrics.get("train/loss") == 1)
            return next((run.info.run_id for run in reached), None)

        return str(wait_until(found, f"a run that is {status}", 120))

    def end() -> None:
        with follow(SPEC, history, "resume", every=0.2):
            run_that_is("RUNNING")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        end()
    first = run_that_is("FAILED")
    with follow(SPEC, history, "resume", every=0.2):
        assert run_that_is("RUNNING") == first
        client.delete_run(first)
        history.write_text("step,seconds,loss\n1,1,1\n2,2,2\n")
        ((second, _), *_) = wait_until(lambda: store.find({"sfd.resume_key": "resume"}), "a run that is made anew", 120)
        assert second != first
    last = client.get_run(store.find({"sfd.resume_key": "resume"})[0][0])
    assert (last.info.status, last.data.metrics["train/loss"]) == ("FINISHED", 2)

    key = history_key(history)
    assert sync_run(store, SPEC, key, Evidence([Curve(history, "train")]), "resume").run_id == last.info.run_id
    history.write_text("step,seconds,loss\n1,2,1\n")
    with follow(SPEC, history, "resume", every=0.2):
        assert run_that_is("RUNNING") != last.info.run_id
    assert store.complete_run("sfd", key, {}) == last.info.run_id


@pytest.mark.usefixtures("no_mlflow")
def test_the_embedded_store_is_not_followed(project: Path) -> None:
    with follow(SPEC, project / "history.csv", "resume", every=0.01):
        assert threads_named("follow sfd") == 0


@pytest.mark.usefixtures("no_mlflow")
def test_a_server_that_never_was_there_is_told_once_and_does_not_disturb(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    history = project / "history.csv"
    history.write_text("step,seconds,loss\n1,1,1\n")
    with follow(SPEC, history, "resume", every=0.01):
        time.sleep(0.2)
    assert capfd.readouterr().err.count("it does not answer") == 1


def test_the_error_of_a_training_passes_through(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ZeroDivisionError), follow(SPEC, project / "history.csv", "resume"):
        _ = 1 / 0
