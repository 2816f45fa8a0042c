import os
from pathlib import Path

import pytest

from sfd_core.host.errors import ResourceError
from sfd_core.host.paths import resumable_dir


class EndedError(Exception):
    """Stands for whatever ends a run."""


def test_a_folder_at_work_keeps_its_content_until_it_is_whole(tmp_path: Path) -> None:
    out, work = tmp_path / "out" / "stage", tmp_path / "work" / "key"
    (out / "old").mkdir(parents=True)

    def end_half_way() -> None:
        with resumable_dir(out, work) as folder:
            (folder / "half").write_text("1")
            raise EndedError

    with pytest.raises(EndedError):
        end_half_way()
    assert (out / "old").is_dir()
    with resumable_dir(out, work) as folder:
        assert (folder / "half").read_text() == "1"
    assert [path.name for path in out.iterdir()] == ["half"]
    assert list(work.parent.iterdir()) == []


def test_what_a_killed_run_was_just_writing_is_no_part_of_the_result(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    for folder in (work / "out" / "part", work / "out" / "part" / ".00003.x.partial"):
        folder.mkdir(parents=True)
        (folder / ".manifest.json.x.partial").write_text("")
        (folder / "manifest.json").write_text("")
    with resumable_dir(out, work):
        pass
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))] == ["part", "part/manifest.json"]


def test_a_folder_on_another_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work, real = tmp_path / "out" / "stage", tmp_path / "work", Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        values = list(real(path, **options))
        return os.stat_result([*values[:2], values[2] + (path.parent == work), *values[3:]])

    with resumable_dir(out, work) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("1")
        monkeypatch.setattr(Path, "stat", stat)
    assert (out / "deep" / "file").read_text() == "1"
    assert not work.exists()


def test_a_folder_at_work_belongs_to_one_process(tmp_path: Path) -> None:
    with (
        resumable_dir(tmp_path / "out", tmp_path / "work"),
        pytest.raises(ResourceError, match="another process is writing"),
        resumable_dir(tmp_path / "out", tmp_path / "work"),
    ):
        pass
