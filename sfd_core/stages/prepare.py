"""Stage `prepare`: images to uint8 shards.

    python -m sfd_core.stages.prepare

writes `outputs/prepare/{train,held_out}/` (image uint8 (3, R, R), label int64), `metrics.json` and `contact_sheet.png`, all
of it or nothing. Rows of train come copy by copy: first every image plain, then every image's second rendering, and so on.
"""

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from sfd_core.config import PrepareParams, load_params
from sfd_core.data.contact_sheet import write_contact_sheet
from sfd_core.data.crops import Pixels
from sfd_core.data.images import ImageSet, load_images, split
from sfd_core.data.shards import FieldSpec, ShardReader, ShardWriter
from sfd_core.errors import DataError, exits_cleanly
from sfd_core.paths import atomic_dir, require_disk, stage_dir, write_json
from sfd_core.stages.progress import with_progress

LOOK_AHEAD = 4
"""Images in work per thread: enough to keep threads busy, few enough to need no memory."""
SPARE_BYTES = 1 << 20
"""Room for manifests, metrics and the contact sheet."""
MOST_NAMED = 10


@dataclass(frozen=True)
class Rendering:
    """One image to be read or drawn: its index in the `ImageSet` and which copy."""

    index: int
    copy: int


def prepare(params: PrepareParams, out: Path) -> None:
    """Write the shards, metrics and contact sheet of `params` to the folder `out` in one atomic step.

    Raises `DataError` for unusable images and `ResourceError` for a full disk or a missing package.
    """
    images = load_images(params)
    parts = split(images, params.held_out, params.seed)
    plans = {
        "train": [Rendering(index, copy) for copy, index in product(range(params.copies), parts.train)],
        "held_out": [Rendering(index, 0) for index in parts.held_out],
    }
    rows = sum(len(plan) for plan in plans.values())
    name_bytes = sum(len(name) for name in images.names) * params.copies
    require_disk(out, rows * (_image_field(params).row_bytes + 8) + name_bytes + SPARE_BYTES, "stage prepare")
    with atomic_dir(out) as folder:
        for part, plan in plans.items():
            _write_part(images, plan, params, folder / part)
        train, held_out = (ShardReader(folder / part, verify=False) for part in plans)
        _require_classes(train)
        write_contact_sheet(train, folder / "contact_sheet.png")
        write_json(folder / "metrics.json", _metrics(train, held_out))


def _write_part(images: ImageSet, plan: list[Rendering], params: PrepareParams, path: Path) -> None:
    fields = {"image": _image_field(params), "label": FieldSpec("int64", ())}
    meta = {"classes": images.classes, "resolution": params.resolution, "source": params.source, "copies": params.copies}
    names: list[str] = []
    skipped: list[str] = []
    pixels = with_progress(_rendered(images, plan), len(plan), f"prepare {path.name}")
    with ShardWriter(path, fields, meta) as writer:
        for rendering, result in zip(plan, pixels, strict=True):
            if isinstance(result, DataError):
                if not params.skip_unreadable:
                    raise result
                skipped.append(str(result))
                continue
            label = np.array([images.labels[rendering.index]], dtype=np.int64)
            writer.append(image=result.transpose(2, 0, 1)[None], label=label)
            names.append(images.names[rendering.index] + (f"#{rendering.copy}" if rendering.copy else ""))
        writer.meta["names"] = names
    for line in skipped[:MOST_NAMED]:
        print(f"skipped: {line}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} of {len(plan)} files of {path.name}", file=sys.stderr)


def _rendered(images: ImageSet, plan: list[Rendering]) -> Iterator[Pixels | DataError]:
    """Yield the pixels of each rendering in order, or the error of its file; only a few images are in memory."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[Future[Pixels | DataError]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for rendering in plan:
            pending.append(pool.submit(_render, images, rendering))
            if len(pending) > threads * LOOK_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _render(images: ImageSet, rendering: Rendering) -> Pixels | DataError:
    try:
        return images.render(rendering.index, rendering.copy)
    except DataError as error:
        return error


def _image_field(params: PrepareParams) -> FieldSpec:
    return FieldSpec("uint8", (3, params.resolution, params.resolution))


def _require_classes(train: ShardReader) -> None:
    classes: list[str] = train.meta["classes"]
    counts = np.bincount(train["label"].array, minlength=len(classes))
    if not counts.all():
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        raise DataError(
            f"no readable training image in {len(empty)} of {len(classes)} classes: {', '.join(empty[:MOST_NAMED])}; "
            "mend their files or remove their folders"
        )


def _metrics(train: ShardReader, held_out: ShardReader) -> dict[str, object]:
    def per_class(shard: ShardReader) -> dict[str, int]:
        counts = Counter(shard["label"].array.tolist())
        return {name: counts[label] for label, name in enumerate(shard.meta["classes"])}

    return {
        "images": {"train": len(train), "held_out": len(held_out)},
        "classes": len(train.meta["classes"]),
        "per_class": {"train": per_class(train), "held_out": per_class(held_out)},
    }


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Images to uint8 shards (outputs/prepare).").parse_args()
    prepare(load_params().prepare, stage_dir("prepare"))


if __name__ == "__main__":
    main()
