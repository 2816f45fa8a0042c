"""Whether two folders of outputs are equal in all but the times they tell: tensors bit for bit, numbers and curves exactly."""

import csv
import json
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

Content = Mapping[str, Any]
"""What a file says, in parts that are compared with `==`."""


def bytes_below(place: Path | str) -> dict[str, bytes]:
    """Return the content of every file below a folder, or of a file, by its relative name."""
    found = sorted(path for path in (Path(place), *Path(place).rglob("*")) if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def differences(one: Path, other: Path, times: Set[str] = frozenset()) -> list[str]:
    """Return what differs between two folders, or nothing; values named in `times` may differ."""
    files, others = ({file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()} for folder in (one, other))
    found = [f"{file} is only in {one}" for file in sorted(files - others)]
    found += [f"{file} is only in {other}" for file in sorted(others - files)]
    for file in sorted(files & others):
        expected, got = (content(folder / file, times) for folder in (one, other))
        found += [f"{file}: {part} differs" for part in sorted({*expected, *got}) if expected.get(part) != got.get(part)]
    return found


def content(file: Path, times: Set[str] = frozenset()) -> Content:
    """Return what a file says, without the values named in `times`."""
    read: Mapping[str, Callable[[Path, Set[str]], Content]] = {
        ".safetensors": _tensors,
        ".npz": _arrays,
        ".json": _values,
        ".csv": _columns,
    }
    return read.get(file.suffix, _bytes)(file, times)


def _tensors(file: Path, times: Set[str]) -> Content:
    with safe_open(file, framework="numpy") as handle:
        header = handle.metadata() or {}
    said = {f"header {name}": text for name, text in header.items() if name not in times}
    return said | {f"tensor {name}": _plain(array) for name, array in load_file(file).items()}


def _arrays(file: Path, _: Set[str]) -> Content:
    with np.load(file, allow_pickle=False) as arrays:
        return {f"array {name}": _plain(array) for name, array in arrays.items()}


def _plain(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def _values(file: Path, times: Set[str]) -> Content:
    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(part) for name, part in value.items() if name not in times}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    read = timeless(json.loads(file.read_text()))
    return {"top": list(read), **read} if isinstance(read, dict) else {"value": read}


def _columns(file: Path, times: Set[str]) -> Content:
    with file.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    columns = {f"column {name}": [row[index] for row in rows] for index, name in enumerate(header) if name not in times}
    return {"header": header, "rows": len(rows), **columns}


def _bytes(file: Path, _: Set[str]) -> Content:
    return {"content": file.read_bytes()}
