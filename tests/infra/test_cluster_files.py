"""The files for containers and clusters: complete, pinned, without a secret, and of one mind with `make up`."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders
from projects import make_project

from infra.lab.databases import PURPOSES, database_name
from infra.lab.servers import BUCKETS, WEED_MEMORY
from sfd_core.workspace import git

INFRA = Path(__file__).parents[2] / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
POOL: dict[str, Any] = json.loads((INFRA / "kubernetes" / "work-pool.json").read_text())
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY")
LEFT_OUT = (INFRA / "Dockerfile.dockerignore").read_text().split()
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(:[?-][^}]*)?\}")


def values(node: Any) -> list[str]:
    """Return every scalar below a node as text."""
    if isinstance(node, dict):
        return [text for child in node.values() for text in values(child)]
    if isinstance(node, list):
        return [text for child in node for text in values(child)]
    return [str(node)]


def test_every_service_is_pinned_checked_and_waits_for_what_it_needs() -> None:
    assert set(SERVICES) == {"postgres", "s3", "mlflow", "prefect", "worker", "gpu-worker"}
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[a-z-]+:\d+\.\d+[\w.-]*", service["image"]), name
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]), name
        for needed, condition in service.get("depends_on", {}).items():
            assert needed in SERVICES
            assert condition == {"condition": "service_healthy"}
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (INFRA / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
    assert set(SERVICES["worker"]["depends_on"]) == {"s3", "mlflow", "prefect"}
    device = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["capabilities"] == ["gpu"]


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    environment = [entry for service in SERVICES.values() for entry in service.get("environment", {}).items()]
    secrets = [(name, value) for name, value in environment if SECRET.search(name)]
    assert secrets
    for name, value in secrets:
        assert VARIABLE.search(str(value)), f"{name} holds {value}"
    for text in values(COMPOSE):
        for name, default in VARIABLE.findall(text):
            assert default.startswith(":?" if SECRET.search(name) else ":-"), f"{name} in {text}"


def test_ports_are_published_on_loopback_unless_told_and_only_three() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("${SFD_LAB_HOST:-127.0.0.1}:") for port in published)


def test_containers_and_make_up_are_of_one_mind() -> None:
    s3, mlflow = SERVICES["s3"], SERVICES["mlflow"]
    assert f"-bucket={','.join(BUCKETS)}" in s3["command"]
    assert s3["environment"]["GOMEMLIMIT"] == WEED_MEMORY
    assert "--app-name=basic-auth" in mlflow["command"]
    assert mlflow["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    made = re.findall(r"CREATE DATABASE (\w+);", (INFRA / "postgres.sql").read_text())
    assert made == [database_name("postgresql://sfd@postgres/sfd", purpose) for purpose in PURPOSES]
    used = {match for text in values(COMPOSE) for match in re.findall(r"@postgres:5432/(\w+)", text)}
    assert used == set(made)


def test_images_are_built_from_the_lock_and_take_in_no_state() -> None:
    text = (INFRA / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= stages
    assert not re.search(r":latest|^FROM [\w/]+$", text, re.MULTILINE)
    for line in re.findall(r"(?:uv )?pip (?:install|sync)[^\n]*(?:\\\n[^\n]*)*", text):
        assert "requirements.lock" in line or "uv.lock" in line or "--no-deps" in line
    assert {".sfd", ".venv", ".dvc/config.local"} <= set(LEFT_OUT)


def test_a_worker_makes_worktrees_in_an_image_without_the_addresses_of_remotes(tmp_path: Path) -> None:
    built_from, image = make_project(tmp_path / "project", ["sfd"]), tmp_path / "image"
    built_from.run("git", "remote", "add", "origin", "https://user:hidden-token@127.0.0.1:9/project.git")
    left_out = {built_from.path / name for name in LEFT_OUT}
    shutil.copytree(
        built_from.path, image, ignore=lambda folder, names: [name for name in names if Path(folder) / name in left_out]
    )
    assert not [file for file in image.rglob("*") if file.is_file() and b"hidden-token" in file.read_bytes()]
    commit = git.base_commit(image)
    with git.worktree(image, "point", commit) as (folder, _):
        assert git.base_commit(folder) == commit


def official() -> dict[str, Any]:
    """Return Prefect's own template for Kubernetes, which it ships as data."""
    path = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views" / "aggregate-worker-metadata.json"
    loaded: dict[str, Any] = json.loads(path.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    return loaded


def test_the_work_pool_gives_the_worker_what_it_expects() -> None:
    assert set(POOL["job_configuration"]) == set(official()["job_configuration"])
    placeholders = {placeholder.name for placeholder in find_placeholders(POOL["job_configuration"])}
    assert placeholders == set(POOL["variables"]["properties"])


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_job_of_the_work_pool_asks_for_its_gpus_and_its_secret(gpus: int) -> None:
    defaults = {name: entry["default"] for name, entry in POOL["variables"]["properties"].items() if "default" in entry}
    job = apply_values(POOL["job_configuration"], {**defaults, "gpus": gpus, "name": "sweep"}, remove_notset=True)[
        "job_manifest"
    ]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == gpus
    assert container["envFrom"] == [{"secretRef": {"name": "sfd"}}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "{{" not in json.dumps(job)
