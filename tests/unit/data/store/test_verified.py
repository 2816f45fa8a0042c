"""A file is hashed once a machine, and again as soon as it may be another one."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from sfd_core.data.store import verified
from sfd_core.data.store.verified import known_finite, note_finite, verify_files
from sfd_core.host.errors import ConfigError, DataError

LONG_AGO_NS = 1_600_000_000_000_000_000


pytestmark = pytest.mark.usefixtures("in_an_empty_project")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed, in any order; hashing works as ever."""
    names: list[str] = []
    compare = verified._compare

    def counted(path: Path, sha256: str) -> None:
        names.append(path.name)
        compare(path, sha256)

    monkeypatch.setattr(verified, "_compare", counted)
    return names


def age(path: Path, nanoseconds: int = LONG_AGO_NS) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


def lay_out(folder: Path, names: str = "ab", settled: bool = True) -> dict[str, str]:
    """Write files and return their hashes; their last change is long ago unless it is not `settled`."""
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode() * 1000)
        if settled:
            age(folder / name)
    return {name: hashlib.sha256(name.encode() * 1000).hexdigest() for name in names}


def test_a_file_is_hashed_once(hashed: list[str]) -> None:
    hashes = lay_out(Path("s"))
    for _ in range(3):
        verify_files(Path("s"), hashes)
        verify_files(Path("s").absolute(), hashes)
    assert sorted(hashed) == ["a", "b"]


@pytest.mark.parametrize("change", ["time", "size", "inode", "hash"])
def test_only_the_file_that_may_be_another_one_is_hashed_again(change: str, hashed: list[str]) -> None:
    hashes = lay_out(Path("s"))
    verify_files(Path("s"), hashes)
    hashed.clear()
    path = Path("s/b")
    if change == "time":
        age(path, LONG_AGO_NS + 1)
    elif change == "size":
        path.write_bytes(path.read_bytes() + b".")
        age(path)
    elif change == "inode":
        shutil.copy2(path, "s/c")
        Path("s/c").replace(path)
    else:
        hashes["b"] = "0" * 64
    if change in ("size", "hash"):
        with pytest.raises(DataError, match=r"s/b has sha256 .* changed or damaged after it was written; delete s and run"):
            verify_files(Path("s"), hashes)
    else:
        verify_files(Path("s"), hashes)
    assert hashed == ["b"]


def test_what_is_right_beside_a_damaged_file_is_noted(hashed: list[str]) -> None:
    hashes = lay_out(Path("s"))
    Path("s/b").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(DataError, match="s/b has sha256"):
            verify_files(Path("s"), hashes)
    assert sorted(hashed) == ["a", "b", "b"]


def test_a_file_that_changed_a_moment_ago_is_not_trusted() -> None:
    hashes = lay_out(Path("s"), settled=False)
    verify_files(Path("s"), hashes)
    for name in hashes:
        found = Path("s", name).stat()
        Path("s", name).write_bytes(b"?" * found.st_size)
        os.utime(Path("s", name), ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(DataError, match="has sha256"):
        verify_files(Path("s"), hashes)


def test_a_file_that_changes_while_it_is_hashed_is_not_trusted(monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> None:
    hashes, compare = lay_out(Path("s")), verified._compare

    def changing(path: Path, sha256: str) -> None:
        compare(path, sha256)
        age(path, LONG_AGO_NS + len(hashed))

    monkeypatch.setattr(verified, "_compare", changing)
    verify_files(Path("s"), hashes)
    hashed.clear()
    verify_files(Path("s"), hashes)
    assert sorted(hashed) == ["a", "b"]


def test_a_missing_file_is_named_though_it_was_verified() -> None:
    hashes = lay_out(Path("s"))
    verify_files(Path("s"), hashes)
    Path("s/a").unlink()
    with pytest.raises(DataError, match=r"s/a is missing, but its manifest lists it"):
        verify_files(Path("s"), hashes)


def test_all_is_hashed_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> None:
    hashes = lay_out(Path("s"))
    verify_files(Path("s"), hashes)
    note_finite("content", "z of s")
    assert known_finite("content")
    monkeypatch.setenv("SFD_VERIFY", "always")
    hashed.clear()
    verify_files(Path("s"), hashes)
    assert sorted(hashed) == ["a", "b"]
    assert not known_finite("content")
    monkeypatch.setenv("SFD_VERIFY", "sometimes")
    with pytest.raises(ConfigError, match="SFD_VERIFY is 'sometimes', but must be 'always'"):
        verify_files(Path("s"), hashes)


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"a": 1}}', "\x00"])
def test_notes_that_cannot_be_read_say_nothing(text: str, hashed: list[str]) -> None:
    hashes = lay_out(Path("s"))
    verify_files(Path("s"), hashes)
    (note,) = Path(".sfd/verified").glob("*.json")
    note.write_text(text)
    for _ in range(2):
        verify_files(Path("s"), hashes)
    assert sorted(hashed) == ["a", "a", "b", "b"]


def test_notes_on_a_folder_that_is_no_more_are_forgotten() -> None:
    verify_files(Path("s"), lay_out(Path("s")))
    shutil.rmtree("s")
    verify_files(Path("t"), lay_out(Path("t")))
    assert [Path(json.loads(note.read_text())["folder"]).name for note in Path(".sfd/verified").glob("*.json")] == ["t"]


def test_where_nothing_can_be_noted_all_is_verified(hashed: list[str]) -> None:
    hashes = lay_out(Path("s"))
    Path(".sfd").write_text("no folder")
    for _ in range(2):
        verify_files(Path("s"), hashes)
    assert sorted(hashed) == ["a", "a", "b", "b"]


def test_a_long_verification_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = lay_out(Path("s"))
    monkeypatch.setenv("SFD_VERIFY", "always")
    verify_files(Path("s"), hashes)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(verified, "SILENT_SECONDS", 0.0)
    verify_files(Path("s"), hashes)
    assert capsys.readouterr().err.splitlines()[-1].startswith("verify s: 2 files in ")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    verify_files(Path("s"), hashes)
    assert "verify s:" in capsys.readouterr().err
