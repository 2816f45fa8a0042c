"""Passwords and keys are only in files that their owner alone can read, and that the manual names."""

import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import WholeLaboratory, whole_project
from postgresql import INSTALLED, PostgreSQL
from projects import ROOT, Project
from seaweed import WEED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("laboratory"),
    pytest.mark.skipif(WEED is None, reason="the SeaweedFS binary is not installed"),
]

LABORATORY = {
    "SFD_LAB_AUTH": "on",
    "SFD_LAB_S3_ACCESS_KEY_ID": "hidden1key",
    "SFD_LAB_S3_SECRET_ACCESS_KEY": "hidden2secret",
    "SFD_LAB_MLFLOW_PASSWORD": "hidden3password",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "hidden4cookies",
    "PREFECT_SERVER_API_AUTH_STRING": "lab:hidden5password",
}
"""Where passwords are chosen for the servers."""
OTHERS = {
    "HF_TOKEN": "hidden7token",
    "HTTP_PROXY": "http://user:hidden8password@127.0.0.1:9",
    "https_proxy": "http://user:hidden9password@127.0.0.1:9",
    "PREFECT_API_KEY": "hidden11key",
    "SFD_GIT_REMOTE": "https://user:hidden12token@127.0.0.1:9/project.git",
}
"""Of other programs, beside those of the laboratory's file `env`."""
ELSEWHERE = {
    "AWS_ACCESS_KEY_ID": "hidden16key",
    "AWS_SECRET_ACCESS_KEY": "hidden17secret",
    "AWS_SESSION_TOKEN": "hidden6token",
    "MLFLOW_TRACKING_TOKEN": "hidden10token",
    "MLFLOW_TRACKING_URI": "http://user:hidden13%40password@127.0.0.1:9",
}
"""Of servers that are not the laboratory's."""
REMOTE = """['remote "other"']
    url = s3://elsewhere
    access_key_id = hidden14key
    secret_access_key = hidden15secret
"""


def run(project: Project, command: str, **environment: str) -> str:
    words = [f"{name}={value}" for name, value in environment.items()]
    return project.run("env", *words, "bash", "-c", command).stderr


@pytest.fixture
def laboratory(tmp_path: Path) -> Iterator[WholeLaboratory]:
    made = WholeLaboratory(whole_project(tmp_path / "project", ["sfd"]), variables=dict(LABORATORY))
    database = PostgreSQL() if INSTALLED else None
    if database is not None:
        database.start()
        made.variables["SFD_DATABASE_URL"] = database.url()
    try:
        yield made
    finally:
        made.run("down", check=False)
        if database is not None:
            database.stop()


def secrets(laboratory: WholeLaboratory) -> set[bytes]:
    values = [*laboratory.variables.values(), *OTHERS.values(), *ELSEWHERE.values(), REMOTE]
    return {word.encode() for value in values for word in re.findall(r"hidden\d+[a-z]+|[0-9a-f]{16}", value)}


def test_secrets_are_only_in_files_of_their_owner_that_the_manual_names(laboratory: WholeLaboratory, tmp_path: Path) -> None:
    project = laboratory.project
    (project.path / ".dvc" / "config.local").touch(mode=0o600)
    (project.path / ".dvc" / "config.local").write_text(REMOTE)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    own = OTHERS | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    laboratory.run("up")
    run(project, "source .sfd/lab/env && sfd reproduce && sfd track --strict && sfd dashboard", **own)
    run(project, "sfd track", **own)
    told = run(project, "sfd track", **own, **ELSEWHERE)
    assert "does not answer" in told
    run(project, "sfd experiment other", **own)
    laboratory.run("down")
    shutil.rmtree(project.path / ".git")  # the test's own
    found: dict[Path, set[bytes]] = {}
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()):
        content = path.read_bytes() + str(path).encode()
        if held := {secret for secret in secrets(laboratory) if secret in content}:
            found[path] = held
    manual = (ROOT / "infra" / "README.md").read_text()
    assert {path.name for path in found} == {"env", "s3.json", "config.local"} | ({"mlflow_auth.ini"} if INSTALLED else set())
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert f"`{path.name}`" in manual or f"/{path.name}`" in manual, path
