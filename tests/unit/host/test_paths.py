"""Outputs appear whole or not at all, and two writers never take one another's work."""

from pathlib import Path

import pytest

from sfd_core.host.errors import BusyError
from sfd_core.host.paths import atomic_dir


def test_a_live_writer_s_folder_is_no_leftover(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "out") as first:
        (first / "mine").touch()
        with pytest.raises(BusyError, match=r"another process is writing .*out; wait for it"), atomic_dir(tmp_path / "out"):
            pass
        assert (first / "mine").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_dead_writer_s_folder_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".out.abcdefgh.partial").mkdir()
    (tmp_path / ".out.more.abcdefgh.partial").mkdir()
    with atomic_dir(tmp_path / "out") as folder:
        (folder / "mine").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.more.abcdefgh.partial", "out"]
