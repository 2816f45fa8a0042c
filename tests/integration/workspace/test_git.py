"""Worktrees and commits of points, in a small repository."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from emoji import emoji_values

from sfd_core.experiment.grid import Space, plan_points
from sfd_core.experiment.presets import load_preset
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.workspace import git
from sfd_core.workspace.experiments import point_place, require_same_sweep

ROOT = Path(__file__).parents[3]
VALUES = emoji_values()


def run(project: Path, *arguments: str) -> str:
    ended = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def commit(project: Path, **files: str) -> str:
    for name, text in files.items():
        path = project / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run(project, "add", "--all")
    run(project, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "more")
    return run(project, "rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    run(path, "init", "--quiet")
    commit(path, sfd_core__a="1", dvc="x", params="p")
    (path / ".gitignore").write_text(".sfd/\n")
    (path / "dvc.yaml").write_text("stages: {}\n")
    commit(path)
    return path


def test_code_that_is_not_committed_is_refused_and_other_files_are_not(project: Path) -> None:
    (project / "params").write_text("other")
    assert git.base_commit(project) == run(project, "rev-parse", "HEAD")
    (project / "sfd_core" / "a").write_text("2")
    (project / "dvc.yaml").write_text("stages: {other: {}}\n")
    with pytest.raises(ConfigError, match=r"checked out again: dvc\.yaml, sfd_core/a; commit them or put them back"):
        git.base_commit(project)
    with pytest.raises(ConfigError, match="no git repository"):
        git.base_commit(project.parent)


def test_a_worktree_keeps_what_an_attempt_left_until_it_is_forgotten(project: Path) -> None:
    base = git.base_commit(project)
    with git.worktree(project, "key", base) as (folder, held):
        assert (folder / "sfd_core" / "a").read_text() == "1"
        (folder / "checkpoint").write_text("half")
        locks = folder / ".dvc" / "tmp" / "rwlock"  # as a DVC leaves it that a power cut ends
        locks.parent.mkdir(parents=True)
        locks.touch()
        with pytest.raises(BlockingIOError), folder.with_suffix(".lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert held > 2
    with git.worktree(project, "key", base) as (folder, _):
        assert (folder / "checkpoint").read_text() == "half"
        assert not locks.exists()
    git.forget_worktree(project, folder)
    assert not folder.exists()
    assert "key" not in run(project, "worktree", "list")
    with git.worktree(project, "key", base) as (folder, _):
        assert not (folder / "checkpoint").exists()


def test_hooks_of_the_user_do_not_run_in_a_worktree(project: Path) -> None:
    hook = project / ".git" / "hooks" / "post-checkout"  # as that of `dvc install`, where the outputs are still to come
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    for _ in range(2):
        with git.worktree(project, "key", git.base_commit(project)) as (folder, _held):
            assert (folder / "sfd_core" / "a").is_file()


def test_a_worktree_of_a_clone_that_is_no_more_goes_on_in_another(project: Path) -> None:
    base = git.base_commit(project)
    with git.worktree(project, "key", base) as (folder, _):
        (folder / "checkpoint").write_text("half")
    other = project.with_name("other")
    run(project.parent, "clone", "--quiet", str(project), str(other))
    (project / ".sfd").rename(other / ".sfd")
    shutil.rmtree(project)
    with git.worktree(other, "key", base) as (folder, _):
        assert (folder / "checkpoint").read_text() == "half"
        assert (folder / "sfd_core" / "a").read_text() == "1"
        assert run(folder, "status", "--porcelain", "--untracked-files=no") == ""
        assert run(folder, "rev-parse", "HEAD") == base
    git.forget_worktree(other, folder)
    assert run(other, "worktree", "list").count("\n") == 0


def test_a_folder_that_was_broken_off_while_made_is_made_anew(project: Path) -> None:
    broken = project / git.POINTS / "key"
    broken.mkdir(parents=True)
    (broken / "half").touch()
    files_of_a_whole_one(project)


def test_a_worktree_whose_making_was_broken_off_is_made_anew(project: Path) -> None:
    with git.worktree(project, "key", git.base_commit(project)) as (folder, _):
        (folder / "dvc.yaml").unlink()
    folder.with_suffix(".whole").unlink()
    files_of_a_whole_one(project)


def test_a_worktree_that_a_killed_git_left_locked_is_made_anew(project: Path) -> None:
    with git.worktree(project, "key", git.base_commit(project)) as (folder, _):
        run(project, "worktree", "lock", str(folder))
    folder.with_suffix(".whole").unlink()
    files_of_a_whole_one(project)


def files_of_a_whole_one(project: Path) -> None:
    with git.worktree(project, "key", git.base_commit(project)) as (folder, _):
        assert sorted(path.name for path in folder.iterdir() if path.name != ".git") == [
            ".gitignore", "dvc", "dvc.yaml", "params", "sfd_core",
        ]  # fmt: skip


def test_a_point_is_a_commit_that_can_be_checked_out_and_is_the_same_in_every_clone(project: Path, tmp_path: Path) -> None:
    base, files = git.base_commit(project), {"params": "delta_t: 0.3\n", "dvc.lock": "lock\n"}
    record = {"numbers": {"fd_b": 1.5, "fd_a": 2.0}, "ran": ["train@sfd"]}
    made = git.commit_point(project, base, files, "a point", record)
    git.set_refs(project, {"points/key": made, "offsets/a-point": made})
    assert git.read_records(project, "points") == {"key": {**record, "commit": made}}
    assert list(git.read_records(project, "points")["key"]["numbers"]) == ["fd_b", "fd_a"]
    assert run(project, "status", "--porcelain") == ""
    clone = tmp_path / "clone"
    run(tmp_path, "clone", "--quiet", str(project), str(clone))
    assert git.commit_point(clone, base, files, "a point", record) == made
    run(project, "checkout", "--quiet", "refs/sfd/offsets/a-point")
    assert (project / "params").read_text() == files["params"]
    assert (project / "sfd_core" / "a").read_text() == "1"


def test_signatures_that_git_shows_are_no_part_of_a_point(project: Path, tmp_path: Path) -> None:
    run(project, "config", "log.showSignature", "true")
    text = run(project, "cat-file", "commit", "HEAD")
    signature = "gpgsig -----BEGIN SSH SIGNATURE-----\n AAAA\n -----END SSH SIGNATURE-----"
    signed = tmp_path / "signed"
    signed.write_text(text.replace("\n\n", f"\n{signature}\n\n", 1) + "\n")
    base = run(project, "hash-object", "-t", "commit", "-w", str(signed))
    assert git.commit_point(project, base, {"params.yaml": "lr: 1\n"}, "point", {})


def test_refs_of_no_sweep_are_none(project: Path) -> None:
    assert git.read_records(project, "points") == {}


def test_a_commit_that_only_a_remote_has_is_fetched_and_one_that_nobody_has_is_named(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(tmp_path, "clone", "--quiet", str(project), str(clone))
    newer = commit(project, readme="new")
    git.require_commit(clone, newer)
    with pytest.raises(DataError, match="has no commit 0123"):
        git.require_commit(clone, "0123" * 10)


def test_refs_are_sent_to_a_remote(project: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote.git"
    run(tmp_path, "init", "--quiet", "--bare", str(remote))
    git.set_refs(project, {"offsets/a": git.base_commit(project)})
    git.push_refs(project, str(remote), "offsets")
    assert "refs/sfd/offsets/a" in run(remote, "for-each-ref")
    with pytest.raises(DataError, match="git push failed"):
        git.push_refs(project, str(tmp_path / "nowhere"), "offsets")


def test_a_sweep_goes_on_with_other_code_and_not_with_other_values(project: Path) -> None:
    space = Space(["sfd"], {"delta_t": [0.3]}, [], {})
    (point,) = plan_points(VALUES, space, "code", ROOT)
    files = {"params.yaml": yaml.safe_dump(dict(point.values))}
    made = git.commit_point(project, git.base_commit(project), files, point.name, {"numbers": {}})
    git.set_refs(project, {f"offsets/{point.name}": made})
    require_same_sweep(project, "offsets", [point])
    require_same_sweep(project, "offsets", plan_points(VALUES, space, "other code", ROOT))
    wider = Space(["sfd"], {"delta_t": [0.4]}, [], {"train.optimisation.steps": 9000})
    require_same_sweep(project, "offsets", plan_points(VALUES, wider, "code", ROOT))
    longer = plan_points(VALUES, Space(["sfd"], {"delta_t": [0.3]}, [], {"train.optimisation.steps": 9000}), "code", ROOT)
    require_same_sweep(project, "longer", longer)
    with pytest.raises(ConfigError, match=r"the sweep offsets has point .*steps 1200 instead of 9000; choose another name"):
        require_same_sweep(project, "offsets", longer)


def test_a_point_is_refused_where_its_paths_hold_other_files_than_the_planner_s(project: Path, tmp_path: Path) -> None:
    for name in ("planner", "project"):
        (tmp_path / name / "images" / "cat").mkdir(parents=True)
        (tmp_path / name / "images" / "cat" / "0.png").write_text(name)
    changes = {"prepare.path": "images", "prepare.held_out_path": None, "prepare.held_out": 0.1}
    values = load_preset("cifar10", ROOT / "presets").values
    (point,) = plan_points(values, Space(["sfd"], {}, [], changes), "code", tmp_path / "planner")
    commit = git.base_commit(project)
    with (
        pytest.raises(ConfigError, match=r"images \(prepare.path\): the point reads other files"),
        point_place(project, point.key, commit, point.values, print, point.inputs),
    ):
        pass
    (project / "images" / "cat" / "0.png").write_text("planner")
    with point_place(project, point.key, commit, point.values, print, point.inputs) as place:
        assert (place.folder / "images" / "cat" / "0.png").read_text() == "planner"
