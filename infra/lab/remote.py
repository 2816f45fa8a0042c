"""The laboratory's bucket as the DVC remote of a project that has none."""

from pathlib import Path

from infra.lab.servers import REGION

REMOTE, URL = "laboratory", "s3://dvc"
"""Its endpoint and keys come from the environment, as those of any other S3."""


def set_remote(project: Path) -> bool:
    """Make the bucket the default remote of this clone alone, in `.dvc/config.local`; return whether it is that now.

    A default remote that the project or the user has chosen stays.
    """
    if not (project / ".dvc").is_dir():
        return False
    from dvc.config import Config  # noqa: PLC0415 - takes a second

    config = Config(str(project / ".dvc"))
    chosen = config["core"].get("remote")
    if chosen is None:
        with config.edit("local") as local:
            # without a region DVC asks for one before each request, as SeaweedFS does not answer that
            local["remote"] = {REMOTE: {"url": URL, "region": REGION}} | local.get("remote", {})
            local["core"] = {**local.get("core", {}), "remote": REMOTE}
    return chosen in (None, REMOTE)
