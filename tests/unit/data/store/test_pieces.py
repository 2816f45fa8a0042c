from pathlib import Path

import numpy as np
import pytest
from same_outputs import bytes_below

from sfd_core.data.store import pieces
from sfd_core.data.store.pieces import PiecedShard, rows_per_piece
from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.host.errors import DataError
from sfd_core.host.processes import ALONE

FIELDS = {"x": FieldSpec("int64", (3,)), "label": FieldSpec("int64", ())}
ROWS, SIZE = 23, 5


def arrays(rows: range) -> dict[str, np.ndarray]:
    numbers = np.array(rows)
    return {"x": np.stack([numbers, numbers * 7, numbers**2], axis=1), "label": numbers}


def write(shard: PiecedShard, numbers: list[int] | None = None) -> None:
    for number, piece in enumerate(shard.pieces):
        if numbers is None or number in numbers:
            with shard.writer(piece) as writer:
                writer.append(**arrays(piece.rows))
                writer.meta["first"] = piece.rows.start


def test_joined_pieces_are_a_shard_of_all_rows_in_order(tmp_path: Path) -> None:
    shard = PiecedShard(tmp_path / "s", FIELDS, ROWS, SIZE)
    assert [len(piece.rows) for piece in shard.pieces] == [5, 5, 5, 5, 3]
    write(shard)
    shard.join({"classes": ["a"]})
    with ShardWriter(tmp_path / "plain", FIELDS, {}) as writer:
        writer.append(**arrays(range(ROWS)))
    joined, plain = ShardReader(tmp_path / "s"), ShardReader(tmp_path / "plain")
    assert len(joined) == ROWS
    assert joined.meta == {"classes": ["a"]}
    for name in FIELDS:
        np.testing.assert_array_equal(joined[name][:], plain[name][:])
        np.testing.assert_array_equal(joined[name].take([22, 4, 5, 0]), plain[name].take([22, 4, 5, 0]))


def test_the_order_in_which_pieces_are_made_changes_no_byte(tmp_path: Path) -> None:
    for name, order in (("forwards", range(5)), ("backwards", reversed(range(5)))):
        shard = PiecedShard(tmp_path / name, FIELDS, ROWS, SIZE)
        for number in order:
            write(shard, [number])
        shard.join({})
    assert bytes_below(tmp_path / "forwards") == bytes_below(tmp_path / "backwards")


def test_what_is_left_is_shared_and_what_is_there_is_kept(tmp_path: Path) -> None:
    shard = PiecedShard(tmp_path / "s", FIELDS, ROWS, SIZE)
    assert list(shard.left(ALONE)) == shard.pieces
    write(shard, [1, 4])
    assert shard.rows_kept() == 5 + 3
    assert [piece.rows.start for piece in shard.left(ALONE)] == [0, 10, 15]
    assert [notes["first"] for notes in shard.notes()] == [5, 20]


def test_a_damaged_piece_is_named_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = PiecedShard(tmp_path / "s", FIELDS, ROWS, SIZE)
    write(shard)
    whole = bytes_below(tmp_path / "s")
    file = tmp_path / "s" / "00002" / "x-00000.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (tmp_path / "s" / "00003" / "manifest.json").unlink()
    assert [piece.rows.start for piece in shard.left(ALONE)] == [10, 15]
    said = capsys.readouterr().err
    assert "00002/x-00000.npy has sha256" in said
    assert "00003/manifest.json does not exist" in said
    write(shard, [2, 3])
    assert bytes_below(tmp_path / "s") == whole


def test_a_missing_piece_cannot_be_joined(tmp_path: Path) -> None:
    shard = PiecedShard(tmp_path / "s", FIELDS, ROWS, SIZE)
    write(shard, [0, 1, 2, 4])
    with pytest.raises(DataError, match=r"00003/manifest\.json does not exist"):
        shard.join({})
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_pieces_may_hold_fewer_rows_than_their_source_or_none(tmp_path: Path) -> None:
    shard = PiecedShard(tmp_path / "s", FIELDS, 9, 3)
    for piece in shard.pieces:
        with shard.writer(piece) as writer:
            if piece.rows.start != 3:
                writer.append(**arrays(piece.rows[:2]))
    shard.join({})
    assert ShardReader(tmp_path / "s")["label"][:].tolist() == [0, 1, 6, 7]


def test_a_shard_without_fields_keeps_notes_alone(tmp_path: Path) -> None:
    shard = PiecedShard(tmp_path / "s", {}, 4, 2)
    for piece in shard.pieces:
        with shard.writer(piece) as writer:
            writer.meta["sum"] = sum(piece.rows)
    assert [notes["sum"] for notes in shard.notes()] == [1, 5]
    assert list(shard.left(ALONE)) == []


def test_a_piece_holds_whole_batches_and_not_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_per_piece(FIELDS, 64) == 4096
    assert rows_per_piece(FIELDS, 100) == 4000
    assert rows_per_piece(FIELDS, 10_000) == 10_000
    assert rows_per_piece({}, 64) == 4096
    monkeypatch.setattr(pieces, "BYTES", 24 * 130)
    assert rows_per_piece(FIELDS, 64) == 128
    assert rows_per_piece(FIELDS) == 130
