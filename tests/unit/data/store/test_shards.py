import json
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_shards import FIELDS, leftovers, write
from sparse_latents import lay_out

from sfd_core.data.store import shards
from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import ShardReader, evenly_spaced
from sfd_core.host.errors import DataError, NumericsError


@pytest.mark.parametrize("rows_per_file", [1, 3, 4, 10, 65536])
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_round_trip_is_exact_for_any_file_and_batch_size(tmp_path: Path, rows_per_file: int, batch: int) -> None:
    arrays = write(tmp_path / "s", rows_per_file=rows_per_file, batch=batch)
    reader = ShardReader(tmp_path / "s")
    assert len(reader) == 10
    assert reader.meta == {"classes": ["a"]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader[name].array, array)
        assert reader[name].dtype == array.dtype
        assert reader[name].shape == array.shape
        indices = [9, 0, 3, 3, -1, 7]
        np.testing.assert_array_equal(reader[name].take(indices), array[indices])
        np.testing.assert_array_equal(reader[name][2:7], array[2:7])
        np.testing.assert_array_equal(reader[name][4], array[4])
        np.testing.assert_array_equal(np.concatenate(list(reader[name].blocks(4))), array)


def test_files_are_ordinary_npy_files(tmp_path: Path) -> None:
    arrays = write(tmp_path / "s", rows_per_file=4)
    files = sorted((tmp_path / "s").glob("z-*.npy"))
    assert [file.name for file in files] == ["z-00000.npy", "z-00001.npy", "z-00002.npy"]
    np.testing.assert_array_equal(np.concatenate([np.load(file) for file in files]), arrays["z"])


def test_one_file_is_memory_mapped_and_not_copied(tmp_path: Path) -> None:
    write(tmp_path / "s")
    array = ShardReader(tmp_path / "s")["z"].array
    assert isinstance(array.base, mmap.mmap)
    assert not array.flags.writeable


@pytest.mark.parametrize("fetches", [False, True])
@pytest.mark.parametrize("gathered", [0, 4096])
@pytest.mark.parametrize("rows_per_file", [7, 65536])
def test_rows_and_slices_are_the_same_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_file: int, gathered: int, fetches: bool
) -> None:
    monkeypatch.setattr(shards, "GATHERED_ROWS", gathered)
    monkeypatch.setattr(shards, "READ_AHEAD_SHARE", 0.0 if fetches else 1.0)
    arrays = write(tmp_path / "s", rows=100, rows_per_file=rows_per_file, batch=100)
    reader = ShardReader(tmp_path / "s")
    wanted = np.random.default_rng(1).integers(-100, 100, 300)
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader[name].take(wanted), array[wanted])
        for chosen in (slice(None), slice(5, 6), slice(6, 8), slice(7, 7), slice(9, 3), slice(-20, 300), slice(90, 3, -4)):
            np.testing.assert_array_equal(reader[name][chosen], array[chosen])
        assert reader[name].take([]).shape == (0, *array.shape[1:])


@pytest.mark.parametrize("fetches", [False, True])
@pytest.mark.parametrize("rows_per_file", [3, 65536])
def test_the_first_two_axes_may_be_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_file: int, fetches: bool
) -> None:
    monkeypatch.setattr(shards, "READ_AHEAD_SHARE", 0.0 if fetches else 1.0)
    arrays = write(tmp_path / "s", rows_per_file=rows_per_file)
    flat, expected = ShardReader(tmp_path / "s")["z"].flattened(), arrays["z"].reshape(30, 2)
    assert flat.shape == (30, 2)
    np.testing.assert_array_equal(flat.take([29, 0, 17, 17, -30]), expected[[29, 0, 17, 17, 0]])
    np.testing.assert_array_equal(flat[4:22], expected[4:22])


def test_opening_large_latents_reads_their_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = lay_out(tmp_path / "s", images=20_000)
    before = bytes_read()
    reader = ShardReader(tmp_path / "s")
    reader["z_tex"].flattened()
    assert bytes_read() - before < 300_000 < size // 5_000
    assert reader["z_tex"].shape == (20_000, 2, 32, 16, 16)


def bytes_read() -> int:
    """Bytes that this process has read from files, memory maps excepted."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except FileNotFoundError:
        pytest.skip("needs /proc of Linux")
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_taken_rows_are_copies_that_may_be_changed(tmp_path: Path) -> None:
    write(tmp_path / "s")
    reader = ShardReader(tmp_path / "s")
    reader["z"].take([0])[:] = 5.0
    assert not (reader["z"][0] == 5.0).any()


def test_an_empty_shard_reads_as_no_rows(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", FIELDS, {}):
        pass
    reader = ShardReader(tmp_path / "s")
    assert len(reader) == 0
    assert reader["z"].array.shape == (0, 3, 2)
    assert reader["z"].take([]).shape == (0, 3, 2)


def test_a_row_outside_is_an_index_error(tmp_path: Path) -> None:
    write(tmp_path / "s")
    with pytest.raises(IndexError, match="row 10 of an array with 10 rows"):
        ShardReader(tmp_path / "s")["z"].take([0, 10])


def test_equal_content_has_equal_digest_and_other_content_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / name, seed=seed)
    first, second, third = (ShardReader(tmp_path / name).digest for name in "abc")
    assert first == second
    assert first != third


def test_meta_may_be_completed_while_writing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", FIELDS, {}) as writer:
        writer.append(z=np.zeros((2, 3, 2), np.float32), label=np.arange(2))
        writer.meta["names"] = ["a", "b"]
    assert ShardReader(tmp_path / "s").meta == {"names": ["a", "b"]}


def test_a_new_shard_replaces_the_old_one_whole(tmp_path: Path) -> None:
    write(tmp_path / "s", rows_per_file=2)
    arrays = write(tmp_path / "s", rows=3, seed=1)
    reader = ShardReader(tmp_path / "s")
    np.testing.assert_array_equal(reader["z"].array, arrays["z"])
    assert leftovers(tmp_path / "s") == ["label-00000.npy", "manifest.json", "z-00000.npy"]


def test_a_failure_inside_leaves_nothing_and_keeps_the_old_shard(tmp_path: Path) -> None:
    arrays = write(tmp_path / "s")

    def fail_half_way() -> None:
        with ShardWriter(tmp_path / "s", FIELDS, {}) as writer:
            writer.append(z=np.zeros((2, 3, 2), np.float32), label=np.arange(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert leftovers(tmp_path) == ["s"]
    np.testing.assert_array_equal(ShardReader(tmp_path / "s")["z"].array, arrays["z"])


def test_a_failure_while_finishing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), ShardWriter(tmp_path / "s", FIELDS, {"not json": object()}) as writer:
        writer.append(z=np.zeros((2, 3, 2), np.float32), label=np.arange(2))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 3, 2), np.float32)}, r"got fields \['z'\], but the shard holds \['label', 'z'\]"),
        ({"z": np.zeros((2, 3, 2)), "label": np.arange(2)}, "rows of 'z' are float64"),
        ({"z": np.zeros((2, 2, 3), np.float32), "label": np.arange(2)}, r"rows of 'z' are float32 \(2, 2, 3\)"),
        ({"z": np.zeros((2, 3, 2), np.float32), "label": np.arange(3)}, r"rows of 'label' are int64 \(3,\)"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message), ShardWriter(tmp_path / "s", FIELDS, {}) as writer:
        writer.append(**arrays)
    assert leftovers(tmp_path) == []


def test_a_changed_byte_is_found_and_named(tmp_path: Path) -> None:
    write(tmp_path / "s", rows_per_file=4)
    file = tmp_path / "s" / "z-00001.npy"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=r"z-00001\.npy has sha256 .* delete .* and run its stage again"):
        ShardReader(tmp_path / "s")
    assert len(ShardReader(tmp_path / "s", verify=False)) == 10


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / "label-00000.npy").unlink()
    with pytest.raises(DataError, match=r"label-00000\.npy is missing"):
        ShardReader(tmp_path / "s")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-8]), "is no array file"),
        (lambda file: np.save(file, np.array([{}] * 10, dtype=object), allow_pickle=True), "is no array file"),
        (lambda file: np.save(file, np.arange(9)), r"holds int64 \(9,\), its manifest says int64 \(10,\)"),
    ],
    ids=["cut", "pickled", "of another shape"],
)
def test_a_damaged_file_is_named_even_without_verifying(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    write(tmp_path / "s")
    spoil(tmp_path / "s" / "label-00000.npy")
    with pytest.raises(DataError, match=rf"label-00000\.npy {said}"):
        ShardReader(tmp_path / "s", verify=False)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json"])
def test_a_broken_manifest_is_named(tmp_path: Path, text: str) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is no shard manifest"):
        ShardReader(tmp_path / "s")


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s")
    file = tmp_path / "s" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
    with pytest.raises(DataError, match="format version 99, this program reads 1"):
        ShardReader(tmp_path / "s")


def test_a_missing_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; run the stage that writes"):
        ShardReader(tmp_path / "nowhere")


def test_an_unknown_field_says_which_there_are(tmp_path: Path) -> None:
    write(tmp_path / "s")
    reader = ShardReader(tmp_path / "s")
    assert "z" in reader
    with pytest.raises(DataError, match="has no field 'tokens', only z, label"):
        reader["tokens"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_and_their_row_named(tmp_path: Path, bad: float) -> None:
    z = np.zeros((10, 3, 2), np.float32)
    z[6, 1, 1] = bad
    with ShardWriter(tmp_path / "s", FIELDS, {}, rows_per_file=4) as writer:
        writer.append(z=z, label=np.arange(10))
    reader = ShardReader(tmp_path / "s")
    reader.require_finite("label")
    with pytest.raises(NumericsError, match="row 6 of 'z' holds NaN or infinity"):
        reader.require_finite("z")


def test_what_was_found_finite_is_not_read_again_but_other_content_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("same", 0), ("other", 1)):
        write(tmp_path / name, seed=seed)
    ShardReader(tmp_path / "a", verify=False).require_finite("z")
    scans = []
    monkeypatch.setattr(shards, "_not_finite", lambda array, start, size: scans.append(start) or (start, 0, 0))
    for name, verify, expected in (("a", True, 1), ("a", False, 1), ("same", True, 1), ("other", True, 2)):
        ShardReader(tmp_path / name, verify=verify).require_finite("z")
        assert len(scans) == expected, (
            f"{name}: what was not verified says nothing of the content, what was says it of all copies"
        )
    monkeypatch.setenv("SFD_VERIFY", "always")
    ShardReader(tmp_path / "a").require_finite("z")
    assert len(scans) == 3


@pytest.mark.parametrize(("length", "most", "rows"), [(10, 4, [0, 3, 6, 9]), (3, 5, [0, 1, 2]), (9, 2, [0, 8]), (7, 1, [0])])
def test_evenly_spaced_rows_have_the_first_and_the_last_among_them(length: int, most: int, rows: list[int]) -> None:
    assert evenly_spaced(length, most).tolist() == rows
