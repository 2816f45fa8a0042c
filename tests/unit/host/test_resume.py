import os
import shutil
import sys
from pathlib import Path

import pytest

from sfd_core.host.errors import ConfigError, DataError, ResourceError
from sfd_core.host.resume import Code, codes_of, command_of, held, mixed_codes, resumable_dir, settle


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


OLD = Code("old" * 4, {"sfd_core.a": "1", "sfd_core.b": "1"}, {"torch": "1.0"})
NEW = Code("new" * 4, {"sfd_core.a": "2", "sfd_core.c": "1"}, {"torch": "1.0", "numpy": "2.0"})
HOUR = 3600.0


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of work that `OLD` began, in an empty project."""
    monkeypatch.chdir(tmp_path)
    folder = Path(".sfd/resume/stage/key")
    settle(folder, OLD, 0.0)
    (folder / "pieces").mkdir()
    (folder / "pieces" / "00000").write_text("1")
    return folder


def test_the_same_code_goes_on(work: Path) -> None:
    settle(work, OLD, HOUR)
    assert (work / "pieces" / "00000").read_text() == "1"
    assert mixed_codes(work) == {}


def test_other_code_repeats_a_few_minutes_and_says_so(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settle(work, NEW, 600.0)
    assert [path.name for path in work.iterdir()] == ["code.json"]
    assert codes_of(work) == [NEW]
    assert "sfd_core.a, sfd_core.b, sfd_core.c, numpy unused -> 2.0" in capsys.readouterr().err


def test_other_code_asks_before_it_throws_longer_work_away(work: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        settle(work, NEW, HOUR)
    words = str(raised.value)
    assert "60 minutes" in words
    assert "sfd_core.a, sfd_core.b, sfd_core.c, numpy unused -> 2.0 differ" in words
    assert "SFD_RESUME=continue dvc repro" in words
    assert "SFD_RESUME=restart dvc repro" in words
    assert (work / "pieces" / "00000").exists()
    assert codes_of(work) == [OLD]


@pytest.mark.parametrize(("count", "more"), [(8, ""), (10, " and 2 more")])
def test_of_many_modules_that_differ_the_first_eight_are_named(work: Path, count: int, more: str) -> None:
    other = Code("other", OLD.modules | {f"sfd_core.m{number}": "1" for number in range(count)}, OLD.libraries)
    named = ", ".join(f"sfd_core.m{number}" for number in range(8))
    with pytest.raises(ConfigError, match=rf": {named}{more} differ"):
        settle(work, other, HOUR)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/bin/sfd", "evaluate", "a b"], "sfd evaluate 'a b'"),
        (["/x/sfd_core/cli/__main__.py", "solvers"], "sfd solvers"),
        (["/x/sfd_core/stages/train.py", "--variant", "sfd"], "dvc repro"),
    ],
)
def test_the_user_is_told_to_run_the_same_command_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(ConfigError) as raised:
        settle(work, NEW, HOUR)
    assert [line.partition("SFD_RESUME=")[2] for line in str(raised.value).splitlines()[1:]] == [
        f"continue {command}",
        f"restart {command}",
    ]


def test_the_user_lets_other_code_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_RESUME", "continue")
    settle(work, NEW, HOUR)
    assert (work / "pieces" / "00000").exists()
    assert mixed_codes(work) == {"codes": [OLD.hash, NEW.hash]}
    monkeypatch.delenv("SFD_RESUME")
    settle(work, NEW, HOUR)
    assert (work / "pieces" / "00000").exists(), "the last code goes on without asking"
    assert mixed_codes(work) == {"codes": [OLD.hash, NEW.hash]}, "and the result still says that there were two"


def test_the_user_starts_again_and_the_old_work_is_kept(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_RESUME", "restart")
    settle(work, NEW, HOUR)
    assert [path.name for path in work.iterdir()] == ["code.json"]
    kept = Path(".sfd/kept/stage") / f"key-{OLD.hash[:8]}"
    assert (kept / "pieces" / "00000").read_text() == "1"
    assert codes_of(kept) == [OLD]
    assert codes_of(work) == [NEW]


def test_the_time_of_other_work_is_that_between_its_first_and_last_file(work: Path) -> None:
    (work / "pieces" / "00001").write_text("2")
    os.utime(work / "pieces" / "00000", (1000.0, 1000.0))
    os.utime(work / "pieces" / "00001", (1000.0, 1601.0))
    with pytest.raises(ConfigError, match="10 minutes"):
        settle(work, NEW)
    os.utime(work / "pieces" / "00001", (1000.0, 1600.0))
    settle(work, NEW)
    assert codes_of(work) == [NEW]


def test_the_first_piece_of_work_took_the_time_since_it_began(work: Path) -> None:
    os.utime(work / "code.json", (1000.0, 1000.0))
    settle(work, OLD)
    os.utime(work / "pieces" / "00000", (1000.0, 1601.0))
    with pytest.raises(ConfigError, match="10 minutes"):
        settle(work, NEW)


def test_work_that_is_kept_twice_is_kept_in_two_places(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_RESUME", "restart")
    for number, (code, other) in enumerate([(OLD, NEW), (NEW, OLD), (OLD, NEW)]):
        (work / "number").write_text(str(number))
        settle(work, other, HOUR)
        assert codes_of(work) == [other], code
    kept = Path(".sfd/kept/stage")
    assert (kept / f"key-{OLD.hash[:8]}" / "number").read_text() == "0"
    assert (kept / f"key-{OLD.hash[:8]}-2" / "number").read_text() == "2"


def test_nothing_to_resume_is_no_work_of_other_code(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SFD_RESUME", "continue")
    settle(work, NEW, 0.0)
    assert codes_of(work) == [NEW]
    assert [path.name for path in work.iterdir()] == ["code.json"]
    assert capsys.readouterr().err == ""


def test_folders_without_a_file_are_no_work(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "pieces" / "00000").unlink()
    settle(work, NEW)
    assert codes_of(work) == [NEW]
    assert capsys.readouterr().err == ""


def test_codes_whose_work_is_gone_are_forgotten(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_RESUME", "continue")
    settle(work, NEW, HOUR)
    shutil.rmtree(work / "pieces")
    settle(work, NEW, 0.0)
    assert codes_of(work) == [NEW]


def test_a_few_minutes_are_not_kept_when_the_user_starts_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_RESUME", "restart")
    settle(work, NEW, 600.0)
    assert codes_of(work) == [NEW]
    assert not Path(".sfd/kept").exists()


@pytest.mark.parametrize("value", ["yes", "CONTINUE"])
def test_another_value_of_the_variable_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SFD_RESUME", value)
    with pytest.raises(ConfigError, match=f"SFD_RESUME is '{value}', but must be continue or restart"):
        settle(work, NEW, 1.0)


def test_a_damaged_record_is_named(work: Path) -> None:
    (work / "code.json").write_text("{")
    with pytest.raises(DataError, match=r"code\.json is damaged"):
        settle(work, NEW, 1.0)


def test_a_folder_at_work_records_its_code(tmp_path: Path) -> None:
    def half_way(code: Code) -> None:
        with resumable_dir(tmp_path / "out", tmp_path / "work", code) as folder:
            (folder / "half").touch()
            raise EndedError

    with pytest.raises(EndedError):
        half_way(OLD)
    assert codes_of(tmp_path / "work") == [OLD]
    with resumable_dir(tmp_path / "out", tmp_path / "work", NEW) as folder:
        assert list(folder.iterdir()) == []


def test_who_holds_a_folder_can_be_named(tmp_path: Path) -> None:
    with held(tmp_path, "measuring"):
        assert command_of(tmp_path) == sys.argv
    assert command_of(tmp_path / "nowhere") == []
