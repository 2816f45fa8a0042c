"""Laboratories for tests: tiny projects with workers, their servers, and a way to start runs and wait for them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from projects import ROOT, Project, make_project
from seaweed import WEED, free_ports
from waiting import PATIENCE, wait_until

QUIET = {
    "DO_NOT_TRACK": "1",
    "PYTHONFAULTHANDLER": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "INFO",
}
WITH_SERVERS = [
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]
"""Marks of tests that use a laboratory: Prefect's clients leave connections to the garbage collector."""
NEEDS_S3 = pytest.mark.skipif(WEED is None, reason="the SeaweedFS binary is not installed")


@contextmanager
def prefect_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of Prefect for this process, too: it reads them when it is imported, which any test may have done."""
    from prefect.context import refresh_global_settings_context  # noqa: PLC0415 - only tests with a server pay for it

    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            refresh_global_settings_context()
            yield
    finally:
        refresh_global_settings_context()


def flow_project(path: Path, active: list[str]) -> Project:
    """Lay out a tiny project with the flows, committed."""
    project = make_project(path, active)
    shutil.copytree(ROOT / "flows", path / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    project.run("git", "add", "--all")
    project.commit("flows")
    return project


def without_servers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment's variables but for those of this project and of servers."""
    own = ("SFD_", "PREFECT_", "MLFLOW_", "AWS_")
    return {name: value for name, value in environment.items() if not name.startswith(own)}


class Runs:
    """Runs on the Prefect server of the environment's PREFECT_API_URL."""

    def await_deployments(self) -> None:
        """Wait until a worker has made its deployments."""
        from prefect.client.orchestration import get_client  # noqa: PLC0415

        def made() -> bool:
            with get_client(sync_client=True) as client:
                return any(deployment.name == "point" for deployment in client.read_deployments())

        wait_until(made, "the worker's deployments")

    def await_worker(self, name: str) -> None:
        """Wait until a worker of this name, on a machine without a GPU, has made its limit and looks for points."""
        from prefect.client.orchestration import get_client  # noqa: PLC0415

        def made() -> bool:
            with get_client(sync_client=True) as client:
                return any(limit.name == f"cpu@{name}" for limit in client.read_global_concurrency_limits(limit=100))

        wait_until(made, f"the limit of worker {name}")
        time.sleep(10)

    def ask(self, deployment: str, **parameters: Any) -> Any:
        """Start a run and return its id."""
        from prefect.deployments import run_deployment  # noqa: PLC0415

        return run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False).id

    def state(self, run: Any) -> Any:
        from prefect.client.orchestration import get_client  # noqa: PLC0415

        with get_client(sync_client=True) as client:
            return client.read_flow_run(run).state

    def finish(self, run: Any, patience: float = PATIENCE) -> Any:
        """Wait for a run to end and return its state; one that crashed is to be started again and has not ended."""

        def ended() -> Any:
            state = self.state(run)
            return state if state.is_final() and not state.is_crashed() else None

        return wait_until(ended, "the end of a run", patience)

    def points(self) -> list[Any]:
        """Return the flow runs of points, oldest first."""
        from prefect.client.orchestration import get_client  # noqa: PLC0415
        from prefect.client.schemas.filters import FlowFilter, FlowFilterName  # noqa: PLC0415

        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["point"])), limit=200)
        return sorted(runs, key=lambda run: run.created)

    def artifact(self, key: str) -> Any:
        return self._artifact(key).data

    def description(self, key: str) -> str:
        """Return what the page of an artifact says of it."""
        return str(self._artifact(key).description)

    def _artifact(self, key: str) -> Any:
        from prefect.artifacts import Artifact  # noqa: PLC0415

        found = Artifact.get(key)
        assert found is not None, key
        return found


@dataclass
class Laboratory(Runs):
    """One Prefect server alone with its workers; every process is stopped by the fixture."""

    path: Path
    port: int
    server: subprocess.Popen[bytes] | None = None
    _workers: list[tuple[Project, subprocess.Popen[bytes]]] = field(default_factory=list)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return QUIET | {"PREFECT_HOME": str(self.path / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"}

    def start(self, command: list[str], folder: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_server(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        server = self.start(command, self.path, self.path / "server.log", kept | self.environment)
        wait_until(self.answers, "the server's health", 120)
        self.server = server

    def answers(self) -> bool:
        import httpx  # noqa: PLC0415 - only tests with a server pay for it

        try:
            return bool(httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=2).is_success)
        except httpx.HTTPError:
            return False

    def start_worker(self, project: Project, name: str, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it serves; all workers serve everything, so those of other projects are stopped."""
        self.stop_others(project)
        log = self.path / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        environment = project.environment | self.environment | {"SFD_WORKER": name} | variables
        environment.pop("PYTHONPATH", None)
        worker = self.start([sys.executable, "-m", "flows.deployments", *options], project.path, log, environment)
        wait_until(lambda: "is ready" in log.read_text()[before:] or worker.poll() is not None, "the worker's start", 120)
        assert worker.poll() is None, log.read_text()
        self._workers.append((project, worker))
        return worker

    def stop_others(self, project: Project) -> None:
        """Stop the workers of projects that are not beside this one."""
        for other, process in self._workers:
            if other.path.parent != project.path.parent:
                self.stop(process)

    def serves(self, project: Project) -> bool:
        """Whether a worker of a project is alive."""
        return any(other == project and process.poll() is None for other, process in self._workers)

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        if process.poll() is None:
            process.send_signal(number)
            process.wait(60)

    def stop_all(self) -> None:
        for process in reversed(self._started):
            descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.poll() is None:
                process.kill()
                process.wait()
            for child in descendants:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


@dataclass
class WholeLaboratory(Runs):
    """S3, MLflow, Prefect and a worker in a tiny project, by the commands that `make up` and `make down` run."""

    project: Project
    ports: dict[str, str] = field(
        default_factory=lambda: {
            f"SFD_LAB_{name}_PORT": str(port) for name, port in zip(("S3", "MLFLOW", "PREFECT"), free_ports(3), strict=True)
        }
    )
    variables: dict[str, str] = field(default_factory=dict)
    """More of the laboratory's own, such as SFD_LAB_WORKER."""

    def run(self, command: str, check: bool = True) -> str:
        """Run `up`, `down` or `status` and return what it printed."""
        ended = subprocess.run(
            [sys.executable, "-m", "infra.lab", command],
            cwd=self.project.path,
            env=without_servers(self.project.environment) | self.ports | self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def shell(self, command: str) -> str:
        """Run a command as a user does who has sourced the environment file, and return what it printed."""
        return self.project.run("bash", "-c", f"source .sfd/lab/env && {command}").stdout

    def address(self, name: str) -> str:
        """Return the address of S3, MLFLOW or PREFECT."""
        return f"http://127.0.0.1:{self.ports[f'SFD_LAB_{name}_PORT']}"

    @property
    def prefect(self) -> dict[str, str]:
        """The variables of its Prefect server's clients."""
        return {"PREFECT_API_URL": f"{self.address('PREFECT')}/api", "PREFECT_HOME": str(self.project.path.parent / "prefect")}


def whole_project(path: Path, active: list[str]) -> Project:
    """Lay out a tiny project with the flows and the laboratory, committed."""
    project = flow_project(path, active)
    shutil.copytree(ROOT / "infra", path / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    return project


def records_of(project: Project, name: str) -> list[dict[str, Any]]:
    """Return what the commits of a sweep's points say of them."""
    refs = project.run("git", "for-each-ref", "--format=%(refname)", f"refs/sfd/{name}").stdout.split()
    return [json.loads(project.run("git", "show", "--no-patch", "--format=%b", ref).stdout) for ref in refs]


def await_training(project: Project) -> None:
    """Wait until a point of a sweep has written a checkpoint of its denoiser."""
    pattern = ".sfd/points/*/.sfd/resume/train/*/step-*"
    wait_until(lambda: list(project.path.glob(pattern)), "a checkpoint of a training")


def engine_of(run: Any) -> psutil.Process:
    """Return the process that executes a flow run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run) and "prefect.engine" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"no process executes {run}")


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of all processes that work in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found
