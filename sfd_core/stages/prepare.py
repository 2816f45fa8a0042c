"""Stage `prepare`: images to uint8 shards.

    python -m sfd_core.stages.prepare

writes `outputs/prepare/{train,held_out}/` (image uint8 (3, R, R), label int64), `metrics.json` and `contact_sheet.png`, all
of it or nothing. Rows of train come copy by copy: first every image plain, then every image's second rendering, and so on.
"""

import argparse
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from sfd_core.codehash import code_fingerprint
from sfd_core.config import PrepareParams, fingerprint, load_params
from sfd_core.data.contact_sheet import write_contact_sheet
from sfd_core.data.crops import Pixels
from sfd_core.data.images import Part, load_parts
from sfd_core.data.shard_writer import ResumableShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import DataError, exits_cleanly
from sfd_core.paths import resumable_dir, resume_dir, stage_dir, write_json
from sfd_core.stages.outlook import Outlook, require_room, tell_of_forgotten
from sfd_core.stages.progress import with_progress

LOOK_AHEAD = 4
"""Images in work per thread: enough to keep threads busy, few enough to need no memory."""
FILE_BYTES = 1 << 30
"""A file of images is about this large at most: what a kill costs, and what a reader maps at once."""
MOST_ROWS_PER_FILE = 65536
SPARE_BYTES = 1 << 20
"""Room for manifests, metrics and the contact sheet."""
TIMED = 48
"""Images that the time of all is estimated from."""
MOST_NAMED = 10


@dataclass(frozen=True)
class Plan:
    """The rows of a part: copy by copy, all images of the part in order."""

    part: Part
    copies: int

    def __len__(self) -> int:
        return len(self.part.indices) * self.copies

    def label(self, row: int) -> int:
        """Return the class of the image of a row."""
        return self.part.images.labels[self._index(row)]

    def name(self, row: int) -> str:
        """Return the name of the image of a row; a copy's ends with its number."""
        copy = row // len(self.part.indices)
        return self.part.images.names[self._index(row)] + (f"#{copy}" if copy else "")

    def render(self, row: int) -> Pixels | DataError:
        """Return the pixels of a row, or the error of its file."""
        try:
            return self.part.images.render(self._index(row), row // len(self.part.indices))
        except DataError as error:
            return error

    def _index(self, row: int) -> int:
        return self.part.indices[row % len(self.part.indices)]


def prepare(params: PrepareParams, out: Path) -> None:
    """Write the shards, metrics and contact sheet of `params` to the folder `out` in one atomic step.

    A run that is killed and started again goes on after the last whole file and ends in the same bytes. Raises `DataError`
    for unusable images and `ResourceError` for a full disk or a missing package.
    """
    parts = load_parts(params)
    plans = {"train": Plan(parts.train, params.copies), "held_out": Plan(parts.held_out, 1)}
    work = resume_dir("prepare", _resume_key(params, plans))
    tell_of_forgotten(work.parent, work)
    row_bytes = _image_field(params).row_bytes + 8
    rows = {name: len(plan) for name, plan in plans.items()}
    name_bytes = sum(len(name) for name in parts.train.images.names) * params.copies
    require_room(work, out, sum(rows.values()) * row_bytes + name_bytes + SPARE_BYTES, "stage prepare")
    with resumable_dir(out, work) as folder:
        seconds = _seconds_per_row(plans["train"])
        for name, plan in plans.items():
            fields = {"image": _image_field(params), "label": FieldSpec("int64", ())}
            images = plan.part.images
            meta = {
                "classes": images.classes,
                "resolution": params.resolution,
                "source": params.source,
                "copies": params.copies,
            }
            journal = work / f"{name}.jsonl"
            with ResumableShardWriter(folder / name, fields, meta, journal, _rows_per_file(fields["image"])) as writer:
                if name == "train":
                    Outlook("prepare", rows, row_bytes, len(writer), seconds).show(work)
                _write_part(writer, plan, params.skip_unreadable)
        train, held_out = (ShardReader(folder / part, verify=False) for part in plans)
        _require_classes(train)
        write_contact_sheet(train, folder / "contact_sheet.png")
        write_json(folder / "metrics.json", _metrics(train, held_out))


def _resume_key(params: PrepareParams, plans: dict[str, Plan]) -> str:
    """Return the hash of all that shapes the result; what was skipped is known from the journal."""
    values = params.model_dump(mode="json", exclude={"skip_unreadable"})
    sets = {id(plan.part.images): plan.part.images for plan in plans.values()}
    return fingerprint(values, [images.digest() for images in sets.values()], PIL.__version__, code_fingerprint())


def _write_part(writer: ResumableShardWriter, plan: Plan, skip_unreadable: bool) -> None:
    """Append the rows of a part that are not there yet; a note is taken of every image that is skipped."""
    part = writer.path.name
    if writer.notes and not skip_unreadable:
        raise DataError(writer.notes[0]["error"])
    first = len(writer) + len(writer.notes)
    left = range(first, len(plan))
    for row, result in zip(left, with_progress(_rendered(plan, left), len(left), f"prepare {part}"), strict=True):
        if isinstance(result, DataError):
            if not skip_unreadable:
                raise result
            writer.note({"row": row, "error": str(result)})
            continue
        label = np.array([plan.label(row)], dtype=np.int64)
        writer.append(image=result.transpose(2, 0, 1)[None], label=label)
    skipped = {note["row"] for note in writer.notes}
    writer.meta["names"] = [plan.name(row) for row in range(len(plan)) if row not in skipped]
    for note in writer.notes[:MOST_NAMED]:
        print(f"skipped: {note['error']}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} of {len(plan)} files of {part}", file=sys.stderr)


def _rendered(plan: Plan, rows: range) -> Iterator[Pixels | DataError]:
    """Yield the pixels of rows in order, or the error of a file; only a few images are in memory."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[Future[Pixels | DataError]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for row in rows:
            pending.append(pool.submit(plan.render, row))
            if len(pending) > threads * LOOK_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _seconds_per_row(plan: Plan) -> float | None:
    """Time the first few images, as many at once as later; None where there are too few to be worth it."""
    if len(plan) < 20 * TIMED:
        return None
    start = time.perf_counter()
    for _ in _rendered(plan, range(TIMED)):
        pass
    return (time.perf_counter() - start) / TIMED


def _image_field(params: PrepareParams) -> FieldSpec:
    return FieldSpec("uint8", (3, params.resolution, params.resolution))


def _rows_per_file(image: FieldSpec) -> int:
    return max(1, min(MOST_ROWS_PER_FILE, FILE_BYTES // image.row_bytes))


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
