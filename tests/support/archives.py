"""Image data sets in tar and Parquet files, written for tests in the layouts that are published."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(number: int, size: tuple[int, int] = (20, 30), kind: str = "PNG") -> bytes:
    """Return an image file whose first pixel is (number, 0, 0)."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[: size[1] // 2] = (number, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in sorted({str(Path(name).parent) for name in members} - {"."}):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def samples(labels: Mapping[str, int], kind: str = "cls") -> dict[str, bytes]:
    """Return WebDataset members: image number i of `labels` has the first pixel (i, 0, 0)."""
    members = {}
    for number, (key, label) in enumerate(labels.items()):
        members[f"{key}.png"] = encoded(number)
        members[f"{key}.{kind}"] = str(label).encode() if kind == "cls" else json.dumps({"label": label, "x": "y"}).encode()
    return members


def write_parquet(path: Path, labels: list[int | None], names: list[str] | None = None, **options: object) -> Path:
    """Write rows whose image number i has the first pixel (i, 0, 0), as Hugging Face does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(number), "path": f"{number}.png"} for number in range(len(labels))]
    column = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": column, "label": pa.array(labels, pa.int64())})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=options.get("row_group_size", 2))
    return path
