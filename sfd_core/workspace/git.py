"""Git in a sweep: a worktree for each point, and a commit with its parameters, lock file and numbers."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.locks import locked
from sfd_core.host.paths import STATE

PIPELINE = ("sfd_core", "dvc.yaml", "requirements.lock")
"""What a point runs, and what has to be committed for it."""
REFS = "refs/sfd"
POINTS = STATE / "points"
_AUTHOR = {"NAME": "sfd sweep", "EMAIL": "sfd@localhost"}
_NO_HOOKS = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": os.devnull}
"""A hook of the user, such as that of `dvc install`, would look in a new worktree for outputs that are still to come."""


def base_commit(project: Path) -> str:
    """Return the commit that is checked out. Raises `ConfigError` if files of its code have changed."""
    if not (project / ".git").exists():
        raise ConfigError(
            f"{project} is no git repository of its own; sweeps run in a clone, so that every point can be checked out"
        )
    if changed := _git(project, "status", "--porcelain", "--untracked-files=no", "--", *PIPELINE):
        names = ", ".join(line.split(maxsplit=1)[1] for line in changed.splitlines())
        raise ConfigError(
            f"these files differ from the last commit, so no point could be checked out again: {names}; "
            "commit them or put them back"
        )
    return _git(project, "rev-parse", "HEAD")


def require_commit(project: Path, commit: str) -> None:
    """Raise `DataError` unless the clone has `commit`, after asking its remotes for it."""
    if _has(project, commit):
        return
    subprocess.run(["git", "fetch", "--all", "--quiet"], cwd=project, env=_environment(), check=False, timeout=300)
    if not _has(project, commit):
        raise DataError(f"{project} has no commit {commit}, nor have its git remotes; push it there, or start the sweep here")


def commit_of(project: Path, ref: str) -> str | None:
    """Return the commit that a ref names, None if the clone has none of that name."""
    asked = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"]
    found = subprocess.run(asked, cwd=project, env=_environment(), capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def has_content(project: Path, file: str) -> bool:
    """Return whether Git has what a file of the project holds, in any commit or staged; False without Git."""
    return _has(project, _git(project, "hash-object", file), "blob")


@contextmanager
def worktree(project: Path, key: str, commit: str) -> Iterator[tuple[Path, int]]:
    """Give a point's folder, named by its key, and the descriptor that locks it for this process and its children.

    It still holds the files of an earlier attempt, such as checkpoints to resume from. `forget_worktree` deletes it.
    """
    folder = project / POINTS / key
    whole = folder.with_suffix(".whole")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")) as held:
        with locked(project / POINTS / "git.lock"):
            if whole.exists() and (folder / ".git").exists():
                if not _knows(project, folder):
                    _adopt(project, folder, commit)
                _git(folder, "checkout", "--quiet", "--force", "--detach", commit, extra=_NO_HOOKS)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                # twice: one that was killed while git made it is locked
                added = ("worktree", "add", "--force", "--force", "--detach", str(folder.absolute()), commit)
                _git(project, *added, extra=_NO_HOOKS)
                whole.touch()
        # no DVC of an earlier attempt lives, but another program may have its number, and a cut file stops every DVC
        (folder / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        yield folder, held


def _knows(project: Path, folder: Path) -> bool:
    """Whether a folder is a worktree of this clone."""
    return f"worktree {folder.resolve()}" in _git(project, "worktree", "list", "--porcelain").splitlines()


def _adopt(project: Path, folder: Path, commit: str) -> None:
    """Make a folder a worktree of this clone that was one of another: that of a container, say, which is no more."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        _git(project, "worktree", "add", "--no-checkout", "--detach", str(made.absolute()), commit)
        (made / ".git").replace(folder / ".git")
    _git(project, "worktree", "repair", str(folder.absolute()))


def forget_worktree(project: Path, folder: Path) -> None:
    """Delete a point's folder, which the caller holds; its results are in the cache."""
    with locked(project / POINTS / "git.lock"):
        folder.with_suffix(".whole").unlink(missing_ok=True)
        _git(project, "worktree", "remove", "--force", "--force", str(folder.absolute()))


def commit_point(project: Path, commit: str, files: Mapping[str, str], title: str, record: Mapping[str, Any]) -> str:
    """Make a commit on top of `commit` with other `files` (path -> text) and a record in its message; no folder changes.

    Equal content makes the same commit in every clone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _git(project, "read-tree", commit, extra=index)
        for path, text in files.items():
            blob = _git(project, "hash-object", "-w", "--stdin", given=text)
            _git(project, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", extra=index)
        tree = _git(project, "write-tree", extra=index)
    date = _git(project, "show", "--no-patch", "--no-show-signature", "--format=%cI", commit)
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in (_AUTHOR | {"DATE": date}).items()}
    message = f"{title}\n\n{json.dumps(dict(record), indent=2)}\n"
    return _git(project, "commit-tree", tree, "-p", commit, given=message, extra=who)


def set_refs(project: Path, names: Mapping[str, str]) -> None:
    """Point refs under `refs/sfd` at commits, all or none."""
    lines = "".join(f"update {REFS}/{name} {commit}\n" for name, commit in names.items())
    with locked(project / POINTS / "git.lock"):
        _git(project, "update-ref", "--stdin", given=lines)


def read_records(project: Path, prefix: str) -> dict[str, dict[str, Any]]:
    """Return, by the rest of their name, the records of all refs below `refs/sfd/<prefix>`; the commit is added to each.

    An empty prefix asks for all of them.
    """
    separator, below = "\x1e", f"{REFS}/{prefix}/" if prefix else f"{REFS}/"
    listed = _git(project, "for-each-ref", f"--format=%(refname)%0a%(objectname)%0a%(contents:body){separator}", below)
    records = {}
    for entry in filter(None, (part.strip() for part in listed.split(separator))):
        name, commit, body = entry.split("\n", 2)
        records[name.removeprefix(below)] = json.loads(body) | {"commit": commit}
    return records


def file_of(project: Path, commit: str, path: str) -> str:
    """Return the text of a file in a commit."""
    return _git(project, "show", f"{commit}:{path}")


def push_refs(project: Path, remote: str, prefix: str) -> None:
    """Push the refs below `refs/sfd/<prefix>` to a git remote. Raises `DataError`."""
    _git(project, "push", "--quiet", remote, f"+{REFS}/{prefix}/*:{REFS}/{prefix}/*")


def _has(project: Path, name: str, kind: str = "commit") -> bool:
    found = subprocess.run(["git", "cat-file", "-e", f"{name}^{{{kind}}}"], cwd=project, capture_output=True, check=False)
    return found.returncode == 0


def _git(project: Path, *arguments: str, given: str | None = None, extra: Mapping[str, str] | None = None) -> str:
    ended = subprocess.run(
        ["git", *arguments],
        cwd=project,
        env=_environment() | dict(extra or {}),
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise DataError(f"git {arguments[0]} failed in {project}: {ended.stderr.strip()}")
    return ended.stdout.strip()


def _environment() -> dict[str, str]:
    """Return the environment without the variables of a calling git, such as a hook."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"GIT_TERMINAL_PROMPT": "0"}
