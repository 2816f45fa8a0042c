"""Parquet files of images as a data set, in the layout of Hugging Face image data sets.

Column `image` (or `img`, as in CIFAR-10) is a struct with the encoded file in its field `bytes`, or plain binary. Column
`label` is a class number. Class names come from the `ClassLabel` feature of Hugging Face in the schema; without it classes
are named by number. Row groups are read one at a time and must fit into memory (Hugging Face writes 100 to 1,000 rows).
"""

import bisect
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sfd_core.data.sources.crops import REMEDY, Pixels, centre_crop, decode_image
from sfd_core.data.sources.image_set import ImageSet, Location, find_files, numbered_classes, require_classes, stamp_files
from sfd_core.host.errors import DataError

IMAGES, LABEL = ("image", "img"), "label"
"""Column names; the first existing one holds the images."""
KEPT_GROUPS = 2
"""Row groups kept in memory; threads read rows in order, so two are enough."""
LARGEST_GROUP = 2 << 30
"""Bytes."""


@dataclass(frozen=True)
class _Group:
    """A row group: file, number in the file, and index of its first row overall and in the file."""

    file: Path
    number: int
    first: int
    first_in_file: int


class _Images:
    """The encoded images of all rows; thread-safe."""

    def __init__(self, groups: list[_Group]) -> None:
        self._groups = groups
        self._firsts = [group.first for group in groups]
        self._column = lru_cache(KEPT_GROUPS)(self._read)
        self._lock = threading.Lock()

    def render(self, resolution: int, row: int, _: int) -> Pixels:
        place = bisect.bisect_right(self._firsts, row) - 1
        group = self._groups[place]
        with self._lock:
            column = self._column(place)
        value = column[row - group.first].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        where = f"row {row - group.first + group.first_in_file} of {group.file}"
        if data is None:
            path = value.get("path") if isinstance(value, dict) else None
            raise DataError(f"{where} has no image bytes{f', only the path {path}' if path else ''}; {REMEDY}")
        return centre_crop(decode_image(io.BytesIO(data), where), resolution)

    def _read(self, place: int) -> Any:
        group = self._groups[place]
        with _open_parquet(group.file) as file:
            name = _image_column(file.schema_arrow)
            return file.read_row_group(group.number, columns=[name]).column(name)


def parquet_images(location: Location, resolution: int) -> ImageSet:
    """List the images of one Parquet file, of all files in a folder, or of all files that match a pattern.

    Raises `DataError` for a damaged file, wrong columns, too large row groups, class names that differ from the first file,
    or labels that are no class.
    """
    files = find_files(location, ".parquet")
    groups: list[_Group] = []
    names: list[str] = []
    labels: list[int] = []
    classes: list[str] | None = None
    for number, path in enumerate(files):
        with _open_parquet(path) as file:
            _require_columns(path, file.schema_arrow)
            named = _class_names(file.schema_arrow)
            require_classes(named or [], location)
            if number and named != classes:
                raise DataError(f"{path} has other class names than {files[0]}; all files of a data set need the same classes")
            classes = named
            groups += _groups(path, file.metadata, len(labels))
            found = file.read(columns=[LABEL]).column(LABEL).to_pylist()
        _require_labels(path, found, classes)
        names += [f"{path.name}/{row}" for row in range(len(found))]
        labels += found
    if not labels:
        raise DataError(f"{location} has no rows; download its files again")
    classes = classes if classes is not None else numbered_classes(labels, location)
    return ImageSet(names, labels, classes, partial(_Images(groups).render, resolution), lambda: stamp_files(files))


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no complete Parquet file ({error}); download it again") from error


def _require_columns(path: Path, schema: Any) -> None:
    column = _image_column(schema)
    for name in (column, LABEL):
        if name not in schema.names:
            raise DataError(f"{path} has no column {name!r}, only {', '.join(schema.names)}; rename its columns")
    image, label = schema.field(column).type, schema.field(LABEL).type
    encoded = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise DataError(f"{path}: column {column!r} is {image}, but encoded images are binary or a struct with binary 'bytes'")
    if not pa.types.is_integer(label):
        raise DataError(f"{path}: column {LABEL!r} is {label}, but class numbers must be integers")


def _image_column(schema: Any) -> str:
    """Return the name of the image column; the usual name if there is none."""
    return next((name for name in IMAGES if name in schema.names), IMAGES[0])


def _class_names(schema: Any) -> list[str] | None:
    """Return the class names of Hugging Face's `ClassLabel` feature, or None without it."""
    try:
        stored = json.loads((schema.metadata or {})[b"huggingface"])
        names = stored["info"]["features"][LABEL]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return [str(name) for name in names]


def _groups(path: Path, metadata: Any, first: int) -> Iterator[_Group]:
    in_file = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > LARGEST_GROUP:
            raise DataError(
                f"{path}: row group {number} holds {group.total_byte_size / 1e9:.1f} GB, which must fit into memory; "
                "write the file again with row groups of about 100 rows"
            )
        yield _Group(path, number, first + in_file, in_file)
        in_file += group.num_rows


def _require_labels(path: Path, labels: list[Any], classes: list[str] | None) -> None:
    for row, label in enumerate(labels):
        if label is None:
            raise DataError(f"row {row} of {path} has no label; remove such rows")
        if label < 0 or (classes is not None and label >= len(classes)):
            known = "" if classes is None else f" among the {len(classes)} of its schema"
            raise DataError(
                f"row {row} of {path} has label {label}, which is no class{known}; if the folder holds a test set, select "
                "files with a pattern such as 'data/train-*.parquet'"
            )
