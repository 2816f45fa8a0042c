"""Stage `prepare`: images to uint8 shards.

    python -m sfd_core.stages.prepare

writes `outputs/prepare/{train,held_out}/` (image uint8 (3, R, R), label int64), `metrics.json` and `contact_sheet.png`, all
of it or nothing. Rows of train come copy by copy: first every image plain, then every image's second rendering, and so on.
"""

import argparse
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sfd_core.data.sources.crops import Pixels
from sfd_core.data.sources.parts import Part, load_parts
from sfd_core.data.store.contact_sheet import write_contact_sheet
from sfd_core.data.store.pieces import PiecedShard, rows_per_piece
from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import PrepareParams, fingerprint
from sfd_core.host.errors import DataError, exits_cleanly
from sfd_core.host.machine import cores
from sfd_core.host.paths import stage_dir, write_json
from sfd_core.host.processes import ALONE
from sfd_core.host.progress import with_progress
from sfd_core.host.resume import mixed_codes, resumable_dir, resume_dir
from sfd_core.stages.outlook import Outlook, require_room, tell_of_forgotten
from sfd_core.stages.start import begin_stage

LOOK_AHEAD = 4
"""Images in work per thread: enough to keep threads busy, few enough to need no memory."""
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

    A run that is killed and started again goes on with the missing pieces and ends in the same bytes. Raises `DataError`
    for unusable images and `ResourceError` for a full disk or a missing package.
    """
    parts = load_parts(params)
    plans = {"train": Plan(parts.train, params.copies), "held_out": Plan(parts.held_out, 1)}
    work = resume_dir("prepare", _resume_key(params, plans))
    tell_of_forgotten(work.parent, work)
    fields = {"image": FieldSpec("uint8", (3, params.resolution, params.resolution)), "label": FieldSpec("int64", ())}
    row_bytes = sum(field.row_bytes for field in fields.values())
    rows = {name: len(plan) for name, plan in plans.items()}
    name_bytes = sum(len(name) for name in parts.train.images.names) * params.copies
    room = partial(require_room, work, out, sum(rows.values()) * row_bytes + name_bytes + SPARE_BYTES, "stage prepare")
    with resumable_dir(out, work, stage_code("prepare"), room) as folder:
        shards = {name: PiecedShard(folder / name, fields, len(plan), rows_per_piece(fields)) for name, plan in plans.items()}
        kept = sum(shard.rows_kept() for shard in shards.values())
        Outlook("prepare", rows, row_bytes, kept, _seconds_per_row(plans["train"])).show(work)
        for name, plan in plans.items():
            _write_part(shards[name], plan, params)
        train, held_out = (ShardReader(folder / part, verify=False) for part in plans)
        _require_classes(train)
        write_contact_sheet(train, folder / "contact_sheet.png")
        write_json(folder / "metrics.json", _metrics(train, held_out) | mixed_codes(work))


def _resume_key(params: PrepareParams, plans: dict[str, Plan]) -> str:
    """Return the hash of all that shapes the result; each piece says what it skipped."""
    values = params.model_dump(mode="json", exclude={"skip_unreadable"})
    sets = {id(plan.part.images): plan.part.images for plan in plans.values()}
    return fingerprint(values, [images.digest() for images in sets.values()])


def _write_part(shard: PiecedShard, plan: Plan, params: PrepareParams) -> None:
    """Write the pieces of a part that are not there yet, then the part's manifest."""
    left = shard.left(ALONE)
    skipped = [note for notes in shard.notes() for note in notes["skipped"]]
    if skipped and not params.skip_unreadable:
        raise DataError(skipped[0]["error"])
    rows = [row for piece in left for row in piece.rows]
    rendered = with_progress(_rendered(plan, rows), len(rows), f"prepare {shard.path.name}")
    for piece in left:
        _write_piece(shard.writer(piece), plan, zip(piece.rows, rendered, strict=False), params.skip_unreadable)
    next(rendered, None)  # tells the progress that this was all
    skipped = [note for notes in shard.notes() for note in notes["skipped"]]
    for note in skipped[:MOST_NAMED]:
        print(f"skipped: {note['error']}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} of {len(plan)} files of {shard.path.name}", file=sys.stderr)
    left_out = {note["row"] for note in skipped}
    meta = {
        "classes": plan.part.images.classes,
        "resolution": params.resolution,
        "source": params.source,
        "copies": params.copies,
        "names": [plan.name(row) for row in range(len(plan)) if row not in left_out],
    }
    shard.join(meta)


def _write_piece(
    opened: ShardWriter, plan: Plan, rendered: Iterable[tuple[int, Pixels | DataError]], skip_unreadable: bool
) -> None:
    """Write one piece; it names the rows that it lacks as their files are unreadable."""
    with opened as writer:
        skipped = []
        for row, result in rendered:
            if not isinstance(result, DataError):
                writer.append(image=result.transpose(2, 0, 1)[None], label=np.array([plan.label(row)], dtype=np.int64))
            elif skip_unreadable:
                skipped.append({"row": row, "error": str(result)})
            else:
                raise result
        writer.meta["skipped"] = skipped


def _rendered(plan: Plan, rows: Iterable[int]) -> Iterator[Pixels | DataError]:
    """Yield the pixels of rows in order, or the error of a file; only a few images are in memory."""
    threads = cores()
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
    prepare(begin_stage("prepare").prepare, stage_dir("prepare"))


if __name__ == "__main__":
    main()
