import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from sfd_core.data.shard_writer import ResumableShardWriter, ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import DataError, ResourceError
from sfd_core.paths import resumable_dir

FIELDS = {"x": FieldSpec("int64", (3,)), "label": FieldSpec("int64", ())}
ROWS, ROWS_PER_FILE = 23, 5


class EndedError(Exception):
    """Stands for whatever ends a run."""


def row(number: int) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 3), number) * 7, "label": np.array([number])}


def write(folder: Path, stop_before: int | None = None, rows: int = ROWS, rows_per_file: int = ROWS_PER_FILE) -> list[int]:
    """Write rows, noting every fourth, and return the rows that were appended in this run."""
    appended = []
    with ResumableShardWriter(folder / "s", FIELDS, {"a": 1}, folder / "s.jsonl", rows_per_file) as writer:
        assert writer.notes == [number for number in range(len(writer)) if number % 4 == 0]
        for number in range(len(writer), rows):
            if number == stop_before:
                raise EndedError
            if number % 4 == 0:
                writer.note(number)
            writer.append(**row(number))
            appended.append(number)
    return appended


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_writes_the_bytes_of_the_plain_writer(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "plain", FIELDS, {"a": 1}, ROWS_PER_FILE) as writer:
        for number in range(ROWS):
            writer.append(**row(number))
    write(tmp_path)
    assert files(tmp_path / "s") == files(tmp_path / "plain")


@pytest.mark.parametrize("stop", range(ROWS))
def test_an_interrupted_run_continues_after_the_last_whole_file_and_ends_in_the_same_bytes(tmp_path: Path, stop: int) -> None:
    with pytest.raises(EndedError):
        write(tmp_path / "broken", stop_before=stop)
    with pytest.raises(DataError, match="does not exist"):
        ShardReader(tmp_path / "broken" / "s")
    assert write(tmp_path / "broken") == list(range(stop - stop % ROWS_PER_FILE, ROWS))
    write(tmp_path / "whole")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_whole_shard_needs_no_further_row_and_takes_none(tmp_path: Path) -> None:
    write(tmp_path)
    before = files(tmp_path)
    assert write(tmp_path) == []
    assert files(tmp_path) == before
    with pytest.raises(DataError, match=r"was whole with 23 rows"):
        write(tmp_path, rows=ROWS + 1)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_journal_whose_last_line_was_cut_costs_one_file(tmp_path: Path, cut: int) -> None:
    with pytest.raises(EndedError):
        write(tmp_path, stop_before=12)
    journal = tmp_path / "s.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert write(tmp_path)[0] == 5
    ShardReader(tmp_path / "s")


def test_a_damaged_file_is_named_and_written_again_with_all_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EndedError):
        write(tmp_path, stop_before=17)
    file = tmp_path / "s" / "x-00001.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert write(tmp_path)[0] == 5
    assert "x-00001.npy is damaged; it is written again" in capsys.readouterr().err
    assert ShardReader(tmp_path / "s")["label"].array.tolist() == list(range(ROWS))


def test_a_journal_of_another_layout_is_discarded(tmp_path: Path) -> None:
    with pytest.raises(EndedError):
        write(tmp_path, stop_before=12)
    assert write(tmp_path, rows_per_file=4)[0] == 0
    assert len(files(tmp_path / "s")) == 2 * 6 + 1


def test_rows_that_cross_a_file_are_cut_at_its_end(tmp_path: Path) -> None:
    def end_in_the_second_file() -> None:
        with ResumableShardWriter(tmp_path / "s", FIELDS, {}, tmp_path / "j", 4) as writer:
            writer.append(x=np.zeros((6, 3), np.int64), label=np.arange(6))
            raise EndedError

    with pytest.raises(EndedError):
        end_in_the_second_file()
    with ResumableShardWriter(tmp_path / "s", FIELDS, {}, tmp_path / "j", 4) as writer:
        assert len(writer) == 4
        writer.append(x=np.zeros((5, 3), np.int64), label=np.arange(4, 9))
    assert ShardReader(tmp_path / "s")["label"].array.tolist() == list(range(9))


def test_notes_after_the_last_row_are_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with ResumableShardWriter(tmp_path / "s", FIELDS, {}, tmp_path / "j", 1) as writer:
            if not len(writer):
                writer.append(**row(0))
                writer.note({"last": 1})
            assert writer.notes == [{"last": 1}]


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


PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    from sfd_core.data.shard_writer import ResumableShardWriter
    from sfd_core.data.shards import FieldSpec
    from sfd_core.paths import resumable_dir
    root = Path(sys.argv[1])
    with resumable_dir(root / "out", root / "work") as folder:
        fields, journal = {"x": FieldSpec("float64", (50,))}, root / "work" / "x.jsonl"
        with ResumableShardWriter(folder / "x", fields, {}, journal, 3) as writer:
            print(len(writer), flush=True)
            for number in range(len(writer), 100):
                sys.stdin.readline()
                if number % 7 == 0:
                    writer.note(number)
                writer.append(x=np.random.default_rng(number).normal(size=(1, 50)))
                print(number, flush=True)
            writer.meta["notes"] = writer.notes
""")


def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    chance, started = random.Random(0), []

    def program(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    for _ in range(4):
        with program("killed") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            started.append(int(process.stdout.readline()))
            # The program may append 20 rows and dies at any moment after the tenth or so, also while it writes one.
            process.stdin.write("\n" * 20)
            process.stdin.flush()
            for _ in range(chance.randrange(8, 12)):
                process.stdout.readline()
            time.sleep(chance.uniform(0, 0.002))
            process.kill()
    for name in ("killed", "whole"):
        with program(name) as process:
            output, _ = process.communicate("\n" * 100)
            assert process.returncode == 0
            started.append(int(output.split()[0]))
    *killed, whole = started
    assert whole == killed[0] == 0
    assert all(earlier < later for earlier, later in itertools.pairwise(killed))
    assert files(tmp_path / "killed" / "out") == files(tmp_path / "whole" / "out")
    assert not (tmp_path / "killed" / "work").exists()
    assert json.loads((tmp_path / "whole" / "out" / "x" / "manifest.json").read_text())["meta"]["notes"] == list(
        range(0, 100, 7)
    )
