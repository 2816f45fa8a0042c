import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from emoji import emoji_values
from image_folder import draw_images
from PIL import Image
from same_outputs import bytes_below

from sfd_core.data.sources.parts import load_images, split
from sfd_core.data.store import pieces
from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import PrepareParams
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.stages import prepare as stage
from sfd_core.stages.prepare import main, prepare


def params(path: Path | None, **changes: object) -> PrepareParams:
    values = {
        "source": "folder", "path": path and str(path), "held_out_path": None, "labels": "folder", "resolution": 16,
        "copies": 1, "held_out": 0.3, "skip_unreadable": False, "seed": 0,
    }  # fmt: skip
    return PrepareParams.model_validate(values | changes)


pytestmark = pytest.mark.usefixtures("in_an_empty_project")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "data")


def test_all_images_are_written_once_with_their_labels_and_names(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepare"
    prepare(params(folder), out)
    loaded = load_images(params(folder))
    shards = {part: ShardReader(out / part) for part in ("train", "held_out")}
    assert sorted(name for shard in shards.values() for name in shard.meta["names"]) == sorted(loaded.names)
    for shard in shards.values():
        assert (shard.meta["classes"], shard.meta["resolution"], shard.meta["source"]) == (["ant", "cat"], 16, "folder")
        for row, name in enumerate(shard.meta["names"]):
            index = loaded.names.index(name)
            np.testing.assert_array_equal(shard["image"][row], loaded.render(index, 0).transpose(2, 0, 1))
            assert shard["label"][row] == loaded.labels[index]
    expected = split(loaded, 0.3, 0)
    assert shards["held_out"].meta["names"] == [loaded.names[index] for index in expected.held_out]


def test_metrics_count_images_and_classes(folder: Path, tmp_path: Path) -> None:
    prepare(params(folder), tmp_path / "prepare")
    metrics = json.loads((tmp_path / "prepare" / "metrics.json").read_text())
    assert metrics["classes"] == 2
    assert sum(metrics["images"].values()) == 14
    assert {name: metrics["per_class"]["train"][name] + metrics["per_class"]["held_out"][name] for name in ("ant", "cat")} == {
        "ant": 8,
        "cat": 6,
    }


def test_the_contact_sheet_shows_the_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepare"
    prepare(params(folder), out)
    train = ShardReader(out / "train")
    with Image.open(out / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    first = train["image"][0].transpose(1, 2, 0)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 16, 3)).reshape(-1, 16, 16, 3)
    assert (windows == first).all(axis=(1, 2, 3)).any()


def test_two_runs_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        prepare(params(folder), tmp_path / name)
    assert bytes_below(tmp_path / "first") == bytes_below(tmp_path / "second")
    assert len(bytes_below(tmp_path / "first")) == 10


@pytest.mark.slow
def test_twemoji_copies_follow_the_plain_training_images(tmp_path: Path) -> None:
    prepare(params(None, source="twemoji", labels="category", copies=2), tmp_path / "prepare")
    train, held_out = (ShardReader(tmp_path / "prepare" / part) for part in ("train", "held_out"))
    names = train.meta["names"]
    half = len(names) // 2
    assert names[half:] == [f"{name}#1" for name in names[:half]]
    np.testing.assert_array_equal(train["label"][:half], train["label"][half:])
    assert (train["image"][:half] != train["image"][half:]).any(axis=(1, 2, 3)).mean() > 0.99
    assert half + len(held_out) == 1898
    assert not any("#" in name for name in held_out.meta["names"])
    assert not set(held_out.meta["names"]) & set(names)


BAD_FILES = {"not an image": b"this is text", "truncated": None, "empty file": b""}


def spoil(folder: Path, content: bytes | None) -> Path:
    file = folder / "ant" / "3.png"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    return file


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_readable_image_stops_and_is_named(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    file = spoil(folder, content)
    with pytest.raises(DataError, match=str(file)):
        prepare(params(folder), tmp_path / "out" / "prepare")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_it_is_skipped_and_named_only_when_told_so(
    folder: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spoil(folder, content)
    prepare(params(folder, skip_unreadable=True), tmp_path / "prepare")
    shards = [ShardReader(tmp_path / "prepare" / part) for part in ("train", "held_out")]
    assert sum(len(shard) for shard in shards) == 13
    assert "ant/3.png" not in [name for shard in shards for name in shard.meta["names"]]
    said = capsys.readouterr().err
    assert str(file) in said
    assert "skipped 1 of" in said


def test_a_class_whose_files_are_all_unreadable_is_an_error_even_when_skipping(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "cat").iterdir():
        file.write_text("text")
    with pytest.raises(DataError, match="no readable training image in 1 of 2 classes: cat"):
        prepare(params(folder, skip_unreadable=True), tmp_path / "out" / "prepare")
    assert not (tmp_path / "out").exists()


def test_an_earlier_result_survives_a_failure(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "prepare"
    prepare(params(folder), out)
    before = ShardReader(out / "train").digest
    spoil(folder, b"text")
    with pytest.raises(DataError):
        prepare(params(folder), out)
    assert ShardReader(out / "train").digest == before
    assert [entry.name for entry in out.parent.iterdir()] == ["prepare"]


def test_a_nearly_full_disk_is_told_before_any_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9000))
    spoil(folder, b"would be an error if it were read")
    with pytest.raises(ResourceError, match=r"stage prepare needs 0\.00 GB .* free some space"):
        prepare(params(folder), tmp_path / "out" / "prepare")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["nowhere", "data/ant/0.png"])
def test_the_command_ends_with_code_2_and_one_line_for_bad_input(
    folder: Path, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = emoji_values()
    values["prepare"] |= {"source": "folder", "path": missing, "labels": "folder", "copies": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: prepare.path {missing} is no folder; give a folder that holds one folder per class\n"
    )
    assert not (tmp_path / "outputs").exists()


def limit_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(pieces, "BYTES", rows * 3 * 16 * 16)


def test_an_interrupted_run_reads_only_what_is_missing_and_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit_pieces(monkeypatch, rows=3)
    spoil(folder, b"text")
    values, read = params(folder, skip_unreadable=True), []
    prepare(values, tmp_path / "whole")
    original = stage.Plan.render

    def render(plan: stage.Plan, row: int) -> object:
        read.append((plan.copies, row))
        if len(read) == interrupted_at:
            raise KeyboardInterrupt
        return original(plan, row)

    monkeypatch.setattr(stage.Plan, "render", render)
    interrupted_at = 9
    with pytest.raises(KeyboardInterrupt):
        prepare(values, tmp_path / "broken")
    read.clear()
    interrupted_at = 0
    capsys.readouterr()
    prepare(values, tmp_path / "broken")
    assert len(read) <= 14 - 3
    assert "rows of an interrupted run" in capsys.readouterr().err
    assert bytes_below(tmp_path / "broken") == bytes_below(tmp_path / "whole")
    assert not list(Path(".sfd/resume/prepare").iterdir())


def test_what_was_skipped_stops_a_continued_run_that_may_not_skip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_pieces(monkeypatch, rows=1)
    file = spoil(folder, b"text")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "write_contact_sheet", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(params(folder, skip_unreadable=True), tmp_path / "prepare")
    with pytest.raises(DataError, match=str(file)):
        prepare(params(folder), tmp_path / "prepare")


def test_other_images_start_anew_and_the_forgotten_work_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spoil(folder, b"text")
    with pytest.raises(DataError):
        prepare(params(folder), tmp_path / "prepare")
    Image.new("RGB", (20, 18)).save(file)
    prepare(params(folder), tmp_path / "prepare")
    assert re.search(r"note: \.sfd/resume/prepare/\w+ keeps .* of an interrupted run", capsys.readouterr().err)


def test_the_outlook_tells_rows_bytes_disk_and_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "_seconds_per_row", lambda plan: 600.0)
    prepare(params(folder), tmp_path / "prepare")
    said = capsys.readouterr().err
    assert re.search(r"rows +14 \(train \d+, held_out \d+\)", said)
    assert re.search(r"bytes +10\.9 kB, 776 a row", said)
    assert re.search(r"free disk +[\d.,]+ [GT]B", said)
    assert re.search(r"time +about 2\.3 hours", said)
