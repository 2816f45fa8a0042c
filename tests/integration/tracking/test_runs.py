"""The commit of a run, asked of a real git."""

import subprocess
from pathlib import Path

from emoji import emoji

from sfd_core.tracking.runs import vae_run

PARAMS = emoji()


def test_the_commit_is_named_and_marked_when_files_differ(project: Path) -> None:
    assert "sfd.commit" not in vae_run(PARAMS, "texture_vae").tags
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (project / "requirements.lock").write_text("torch==1\n")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    tags = vae_run(PARAMS, "texture_vae").tags
    assert tags["sfd.commit"] == head
    assert len(tags["sfd.lock"]) == 16
    (project / "requirements.lock").write_text("torch==2\n")
    changed = vae_run(PARAMS, "texture_vae").tags
    assert changed["sfd.commit"] == f"{head}-modified"
    assert changed["sfd.lock"] != tags["sfd.lock"]
