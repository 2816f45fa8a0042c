"""The commands `up`, `down`, `status`, and `run`, which is what `up` starts in the background."""

import argparse
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from infra.lab.processes import end, ticks
from infra.lab.remote import REMOTE, URL, set_remote
from infra.lab.settings import DEPLOYMENTS, Settings
from infra.lab.state import State, is_supervised
from infra.lab.supervisor import ENVIRONMENT_FILE, SECONDS_TO_START, Supervisor, is_healthy, make_folder, tail
from sfd_core.host.errors import ConfigError, ResourceError, exits_cleanly

COMMAND = (sys.executable, "-m", "infra.lab", "run")
"""Starts the supervisor."""
SECONDS_TO_STOP = 300.0
TITLES = {"s3": "S3", "s3-gate": "S3", "mlflow": "MLflow", "prefect": "Prefect"}
NOT_HEALTHY = 1
"""Exit code of `status` if not everything works."""


def up(settings: Settings) -> None:
    """Start the laboratory, unless it runs already, and print its addresses.

    Raises `ConfigError` if one with other settings runs already, `ResourceError` if it cannot be started.
    """
    make_folder(settings.folder)
    is_remote = set_remote(Path.cwd())  # the worker reads it
    if is_supervised(settings.folder):
        print("the laboratory runs already")
        _await(settings)
    else:
        _start(settings)
    state = State.read(settings.folder)
    for record in state.servers if state else []:
        if record.address:
            print(f"  {TITLES[record.name]:<8} {record.address}")
    if not settings.worker:
        print(f"  no worker: there is no {DEPLOYMENTS}")
    if is_remote:
        print(f"DVC remote   {REMOTE}, {URL}")
    print(f"credentials  {_shown(settings.folder / 'credentials.json')}")
    print(f"clients      source {_shown(settings.folder / ENVIRONMENT_FILE)}")
    print("stop         make down")
    if settings.is_exposed:
        print("Other machines can reach it, and connections are not encrypted: put TLS before it outside a trusted network.")


def down(settings: Settings) -> None:
    """Stop the laboratory, or servers whose supervisor was killed; everything in its folder stays."""
    begun = time.monotonic()
    state = State.read(settings.folder)
    if state is not None and is_supervised(settings.folder):
        if end([state.supervisor], SECONDS_TO_STOP):
            print(f"the supervisor did not end within {SECONDS_TO_STOP:.0f} seconds and was killed")
        state = State.read(settings.folder)
    elif state is None or not state.leftovers:
        print("the laboratory does not run")
        return
    for record in state.leftovers if state else []:
        print(f"{record.name}: no supervisor watched it any more; ending process {record.process.pid}")
        end([record.process], record.patience)
    print(f"stopped in {time.monotonic() - begun:.1f} s; everything is kept in {_shown(settings.folder)}")


def status(settings: Settings) -> int:
    """Print what runs, and return 0 if all of it works."""
    state = State.read(settings.folder)
    supervised = is_supervised(settings.folder)
    if state is None or (not supervised and not state.leftovers):
        print("the laboratory does not run; start it with `make up`")
        if state and state.phase == "failed":
            print(f"last time: {state.error}")
        return NOT_HEALTHY
    since = datetime.fromtimestamp(state.started).astimezone().isoformat(" ", "seconds")
    if supervised:
        print(f"the laboratory in {_shown(settings.folder)} is {state.phase} since {since}, supervisor {state.supervisor.pid}")
    else:
        print("the supervisor is gone, but servers still run: `make up` takes them over, `make down` ends them")
    healthy = supervised and state.phase == "running"
    for record in state.servers:
        runs = record.process.runs
        works = runs and is_healthy(record.health)
        healthy &= works
        condition = ("healthy" if record.health else "running") if works else "not healthy" if runs else "dead"
        memory = f"{record.process.memory / 2**20:.0f} MiB"
        again = f"  started again {record.restarts} times" if record.restarts else ""
        print(f"  {record.name:<8} {condition:<12} process {record.process.pid:<8} {memory:>9}  {record.address}{again}")
    if supervised and settings.fingerprint != state.fingerprint:
        print("it was started with other settings than those of this shell")
    return 0 if healthy else NOT_HEALTHY


def _start(settings: Settings) -> None:
    log = settings.folder / "logs" / "supervisor.log"
    worker = " and a worker" if settings.worker else ""
    print(f"starting S3, MLflow, Prefect{worker}; logs are in {_shown(log.parent)}", flush=True)
    begun = time.monotonic()
    with log.open("wb") as file:
        supervisor = subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        _await(settings, supervisor)
    except KeyboardInterrupt:
        print("stopping again", flush=True)
        supervisor.terminate()
        supervisor.wait()
        raise
    print(f"ready after {time.monotonic() - begun:.0f} s")


def _await(settings: Settings, started: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until the laboratory runs, under the supervisor `started` or an earlier one."""
    for _ in ticks(2 * SECONDS_TO_START):
        state = State.read(settings.folder)
        if started is not None and started.poll() is not None:
            log = settings.folder / "logs" / "supervisor.log"
            _, found, error = log.read_text().strip().rpartition("error: ")
            raise ResourceError(error if found else f"the laboratory did not start:\n{tail(log)}")
        if started is None and not is_supervised(settings.folder):
            raise ResourceError("the laboratory that was starting or stopping here is not up; run `make up` again")
        if state is None or (started is not None and state.supervisor.pid != started.pid):
            continue
        if state.fingerprint != settings.fingerprint:
            raise ConfigError(
                f"the laboratory in {_shown(settings.folder)} runs with other settings (SFD_LAB_..., SFD_DATABASE_URL); "
                "stop it with `make down` first"
            )
        if state.phase == "running":
            return
    raise ResourceError(f"the laboratory is not ready after {2 * SECONDS_TO_START:.0f} s; stop it with `make down`")


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


@exits_cleanly
def main() -> None:
    """Run the command that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m infra.lab", description="The laboratory on one machine.")
    parser.add_argument("command", choices=["up", "down", "status", "run"])
    command = parser.parse_args().command
    settings = Settings.read()
    if command == "status":
        sys.exit(status(settings))
    if command == "run":
        make_folder(settings.folder)
        Supervisor(settings).run()
    else:
        {"up": up, "down": down}[command](settings)


if __name__ == "__main__":
    main()
