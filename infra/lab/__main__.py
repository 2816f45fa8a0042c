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
NOT_HEALTHY = 1
"""Exit code of `status` if not everything works."""


def up(settings: Settings) -> None:
    """Bring the laboratory up and say where it is; one that runs already is left alone.

    Raises `ConfigError` if one with other settings runs already, `ResourceError` if it cannot be started.
    """
    make_folder(settings.folder)
    is_remote = set_remote(Path.cwd())  # the worker reads it
    if is_supervised(settings.folder):
        _wait_for_other(settings)
        print("the laboratory runs already")
    else:
        _start(settings)
    _print_whereabouts(settings, is_remote)


def down(settings: Settings) -> None:
    """Stop the laboratory, or what a killed supervisor left of it; everything in its folder stays."""
    begun = time.monotonic()
    state = State.read(settings.folder)
    if is_supervised(settings.folder) and state is not None:
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
        works = record.process.runs and is_healthy(record.health)
        healthy &= works
        condition = ("healthy" if record.health else "running") if works else "not healthy" if record.process.runs else "dead"
        memory = f"{record.process.memory / 2**20:.0f} MiB"
        again = f"  started again {record.restarts} times" if record.restarts else ""
        print(f"  {record.name:<8} {condition:<12} process {record.process.pid:<8} {memory:>9}  {record.address}{again}")
    if supervised and settings.fingerprint != state.fingerprint:
        print("it was started with other settings than those of this shell")
    return 0 if healthy else NOT_HEALTHY


def _start(settings: Settings) -> None:
    log = settings.folder / "logs" / "supervisor.log"
    print(
        f"starting S3, MLflow, Prefect{' and a worker' if settings.worker else ''}; logs are in {_shown(log.parent)}",
        flush=True,
    )
    begun = time.monotonic()
    with log.open("wb") as file:
        supervisor = subprocess.Popen(
            COMMAND,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        for _ in ticks(2 * SECONDS_TO_START):
            state = State.read(settings.folder)
            if state is not None and state.supervisor.pid == supervisor.pid and state.phase == "running":
                print(f"ready after {time.monotonic() - begun:.0f} s")
                return
            if supervisor.poll() is not None:
                message = log.read_text().strip()
                raise ResourceError(_last_error(message) or f"the laboratory did not start:\n{tail(log)}")
    except KeyboardInterrupt:
        print("stopping again", flush=True)
        supervisor.terminate()
        supervisor.wait()
        raise
    raise ResourceError(f"the laboratory is not ready after {2 * SECONDS_TO_START:.0f} s; see {log}, stop it with `make down`")


def _last_error(message: str) -> str | None:
    _, found, error = message.rpartition("error: ")
    return error if found else None


def _wait_for_other(settings: Settings) -> None:
    for _ in ticks(2 * SECONDS_TO_START):
        state = State.read(settings.folder)
        if state is not None and state.fingerprint != settings.fingerprint:
            raise ConfigError(
                f"the laboratory in {_shown(settings.folder)} runs with other settings (SFD_LAB_..., SFD_DATABASE_URL); "
                "stop it with `make down` first"
            )
        if state is not None and state.phase == "running":
            return
        if not is_supervised(settings.folder):
            break
    raise ResourceError("the laboratory that was starting or stopping here is not up; run `make up` again")


def _print_whereabouts(settings: Settings, is_remote: bool) -> None:
    state = State.read(settings.folder)
    addresses = {record.name: record.address for record in state.servers if record.address} if state else {}
    titles = {"s3": "S3", "s3-gate": "S3", "mlflow": "MLflow", "prefect": "Prefect"}
    for name, address in addresses.items():
        print(f"  {titles[name]:<8} {address}")
    if not settings.worker:
        print(f"  no worker: there is no {DEPLOYMENTS}")
    if is_remote:
        print(f"DVC remote   {REMOTE}, {URL}")
    print(f"credentials  {_shown(settings.folder / 'credentials.json')}")
    print(f"clients      source {_shown(settings.folder / ENVIRONMENT_FILE)}")
    print("stop         make down")
    if settings.is_exposed:
        print("Other machines reach it, and nothing is encrypted on the way: put it behind TLS outside a trusted network.")


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
