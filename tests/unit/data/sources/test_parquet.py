from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import encoded, write_parquet

from sfd_core.data.sources import parquet
from sfd_core.data.sources.image_set import ImageSet, Location
from sfd_core.data.sources.parquet import parquet_images
from sfd_core.host.errors import DataError


def load(path: Path) -> ImageSet:
    return parquet_images(Location("prepare.path", str(path)), 16)


def write(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_of_all_files_in_order_with_names_of_the_schema(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d" / "train-0.parquet", [1, 0, 2], ["ant", "bee", "cat"])
    write_parquet(tmp_path / "d" / "train-1.parquet", [2, 2, 1, 0, 0], ["ant", "bee", "cat"])
    write_parquet(tmp_path / "d" / "test-0.parquet", [-1], ["ant", "bee", "cat"])
    images = load(tmp_path / "d" / "train-*.parquet")
    assert images.classes == ["ant", "bee", "cat"]
    assert images.labels == [1, 0, 2, 2, 2, 1, 0, 0]
    assert images.names == [f"train-0.parquet/{row}" for row in range(3)] + [f"train-1.parquet/{row}" for row in range(5)]
    assert [int(images.render(row, 0)[0, 0, 0]) for row in range(8)] == [0, 1, 2, 0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"row 0 of .*test-0\.parquet has label -1, .* select files with a pattern"):
        load(tmp_path / "d")


def test_without_names_classes_are_numbers(tmp_path: Path) -> None:
    assert load(write_parquet(tmp_path / "a.parquet", [1, 0, 1])).classes == ["0", "1"]
    with pytest.raises(DataError, match="the largest label is 2, but class 1 has no image"):
        load(write_parquet(tmp_path / "a.parquet", [2, 0]))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_may_be_plain_binary(tmp_path: Path, kind: pa.DataType) -> None:
    images = load(write(tmp_path / "a.parquet", image=pa.array([encoded(7)], kind), label=pa.array([0], pa.int8())))
    assert images.render(0, 0)[0, 0, 0] == 7


def test_images_may_be_in_the_column_of_cifar_10(tmp_path: Path) -> None:
    column = pa.array([{"bytes": encoded(7), "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    images = load(write(tmp_path / "a.parquet", img=column, label=pa.array([0])))
    assert images.render(0, 0)[0, 0, 0] == 7


def test_only_a_few_row_groups_are_in_memory_and_threads_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load(write_parquet(tmp_path / "a.parquet", [0] * 40, row_group_size=4))
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, number: int, **options: object) -> pa.Table:
        read.append(number)
        return original(file, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: int(images.render(row, 0)[0, 0, 0]), range(40)))
    assert found == list(range(40))
    assert sorted(set(read)) == list(range(10))
    assert len(read) <= 20


def test_row_groups_too_large_for_memory_are_told_before_any_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 1000)
    with pytest.raises(DataError, match=r"row group 0 holds .* GB, which must fit into memory"):
        load(write_parquet(tmp_path / "a.parquet", [0, 0]))


def test_rows_that_are_no_image_are_named_when_they_are_read(tmp_path: Path) -> None:
    column = pa.array([{"bytes": None, "path": "x.png"}, {"bytes": b"text", "path": None}])
    images = load(write(tmp_path / "a.parquet", image=column, label=pa.array([0, 0])))
    with pytest.raises(DataError, match=r"row 0 of .*a\.parquet has no image bytes, only the path x\.png; .*skip_unreadable"):
        images.render(0, 0)
    with pytest.raises(DataError, match=r"row 1 of .*a\.parquet is not an image"):
        images.render(1, 0)


def test_other_columns_are_named(tmp_path: Path) -> None:
    image, label = pa.array([encoded(0)]), pa.array([0])
    cases = [
        ({"jpg": image, "label": label}, r"has no column 'image', only jpg, label; rename its columns"),
        ({"image": image, "fine_label": label}, r"has no column 'label', only image, fine_label"),
        ({"image": pa.array(["a.png"]), "label": label}, r"column 'image' is string, but encoded images are binary"),
        ({"image": pa.array([{"path": "a.png"}]), "label": label}, r"column 'image' is struct<path: string>"),
        ({"image": image, "label": pa.array(["cat"])}, r"column 'label' is string, but class numbers must be integers"),
        ({"image": image, "label": pa.array([None], pa.int64())}, r"row 0 of .* has no label"),
        ({"image": image[:0], "label": label[:0]}, r"has no rows"),
    ]
    for columns, message in cases:
        with pytest.raises(DataError, match=message):
            load(write(tmp_path / "a.parquet", **columns))


def test_labels_beyond_the_named_classes_and_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 of .* has label 2, which is no class among the 2 of its schema"):
        load(write_parquet(tmp_path / "a.parquet", [0, 2], ["ant", "bee"]))
    write_parquet(tmp_path / "a.parquet", [0, 1], ["ant", "bee"])
    write_parquet(tmp_path / "b.parquet", [0, 1], ["ant", "cat"])
    with pytest.raises(DataError, match=r"b\.parquet has other class names than .*a\.parquet"):
        load(tmp_path)


def test_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 2 classes named 'ant'; give every class a name of its own"):
        load(write_parquet(tmp_path / "a.parquet", [0, 1], ["ant", "ant"]))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 0])
    content = path.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet is no complete Parquet file"):
            load(path)
    path.write_bytes(content)
    images = load(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.parquet is no complete Parquet file"):
        images.render(0, 0)
