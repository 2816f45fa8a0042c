"""Points of a sweep computed without a worker, by servers behind proxies that count."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faulty_proxy import FaultyProxy
from laboratory import WholeLaboratory, whole_project

from sfd_core.experiment.code import pipeline_code
from sfd_core.experiment.grid import CURRENT, Point, Space, base_values, plan_points

RECORDED = Path(__file__).parent / "recorded"
RUN_POINT = "import json, sys; from flows.point import point; point(**json.load(open(sys.argv[1])))"


@dataclass
class Counted:
    """A laboratory without a worker, whose servers are behind proxies that count."""

    laboratory: WholeLaboratory
    proxies: dict[str, FaultyProxy]

    def point(self, offset: float) -> Point:
        project = self.laboratory.project.path
        space = Space(["sfd"], {"delta_t": [offset]}, [], {})
        (found,) = plan_points(base_values(CURRENT, project), space, pipeline_code(project), project)
        return found

    def run(self, point: Point, counted: bool = True) -> tuple[list[str], dict[str, list[str]]]:
        """Compute a point as a worker does; return the commands of all processes, and the requests to each server.

        Not `counted`, the servers are asked without proxies.
        """
        project = self.laboratory.project
        commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
        given, log = project.path.parent / "point.json", project.path.parent / "processes"
        given.write_text(
            json.dumps({"key": point.key, "commit": commit, "values": dict(point.values), "targets": [point.target]})
        )
        log.unlink(missing_ok=True)
        for proxy in self.proxies.values():
            proxy.requests.clear()
        ended = subprocess.run(
            [
                "bash",
                "-c",
                f'source .sfd/lab/env && exec env "$@" {sys.executable} -c "{RUN_POINT}" {given}',
                "",
                *(self.variables if counted else []),
            ],
            cwd=project.path,
            env=project.environment | {"PYTHONPATH": str(RECORDED), "PROCESSES_LOG": str(log)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        commands = [" ".join(json.loads(line)) for line in log.read_text().splitlines()]
        return commands, {name: list(proxy.requests) for name, proxy in self.proxies.items()}

    @property
    def variables(self) -> list[str]:
        api, tracking, storage = (self.proxies[name].endpoint for name in ("PREFECT", "MLFLOW", "S3"))
        home = self.laboratory.project.path.parent / "prefect"
        return [
            f"PREFECT_API_URL={api}/api",
            f"MLFLOW_TRACKING_URI={tracking}",
            f"AWS_ENDPOINT_URL={storage}",
            f"PREFECT_HOME={home}",
        ]


@contextmanager
def counted_laboratory(path: Path) -> Iterator[Counted]:
    """Start a laboratory whose project is `path`, and stop it in the end."""
    made = WholeLaboratory(whole_project(path, ["sfd"]), variables={"SFD_LAB_WORKER": ""})
    proxies = {name: FaultyProxy(int(made.ports[f"SFD_LAB_{name}_PORT"])) for name in ("S3", "MLFLOW", "PREFECT")}
    try:
        made.run("up")
        yield Counted(made, proxies)
    finally:
        made.run("down", check=False)
        for proxy in proxies.values():
            proxy.close()
