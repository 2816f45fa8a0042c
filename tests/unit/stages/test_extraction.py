"""Tokens and latents made in pieces: by one process or two, at one go or killed and continued, the bytes are the same."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_images import FEATURES, prepare_images

from sfd_core.data.store import pieces
from sfd_core.data.store.pieces import PiecedShard
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import FeaturesParams
from sfd_core.host.ahead import ahead
from sfd_core.host.processes import Processes
from sfd_core.latents.composite import StreamingMoments, load_statistics
from sfd_core.stages.extraction import Extraction, Values
from sfd_core.stages.features import extract_features


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_images()


def toy(path: Path, computed: list[range], stop_at: int | None = None) -> Extraction[np.ndarray]:
    """Squares of row numbers, two to a batch and four to a piece."""

    def compute(rows: range, numbers: np.ndarray) -> Values:
        if rows.start == stop_at:
            raise KeyboardInterrupt
        computed.append(rows)
        squares = torch.from_numpy(numbers).double().square()[:, None]
        return Values({"x": squares.numpy()}, {"square": StreamingMoments.of(squares)})

    shard = PiecedShard(path, {"x": FieldSpec("float64", (1,))}, 11, 4)
    return Extraction("toy", shard, 2, read=np.array, compute=compute)


def test_an_interrupted_extraction_computes_only_what_is_missing(tmp_path: Path) -> None:
    computed: list[range] = []
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "s", computed, stop_at=8).run(Processes(0, 1))
    assert [rows.start for rows in computed] == [0, 2, 4, 6]
    computed.clear()
    extraction = toy(tmp_path / "s", computed)
    extraction.run(Processes(0, 1))
    assert [rows.start for rows in computed] == [8, 10]
    extraction.shard.join({})
    np.testing.assert_array_equal(ShardReader(tmp_path / "s")["x"][:][:, 0], np.arange(11) ** 2)
    statistics = extraction.counted()["square"].statistics()
    assert statistics.mean.item() == pytest.approx(np.mean(np.arange(11) ** 2), rel=1e-7)
    assert statistics.std.item() == pytest.approx(np.std(np.arange(11) ** 2), rel=1e-7)


def test_statistics_are_exact_over_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "ROWS", 6)
    params = FeaturesParams.model_validate(FEATURES | {"store": True})
    extract_features(params, Path("prepare"), Path("features"))
    tokens = ShardReader(Path("features/train"))["tokens"][:].astype(np.float64)
    statistics = load_statistics(Path("features/statistics.safetensors"))["token"]
    np.testing.assert_allclose(statistics.mean, tokens.mean(axis=(0, 1, 3, 4)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(statistics.std, tokens.std(axis=(0, 1, 3, 4)), rtol=1e-6)


def test_the_time_of_all_is_estimated_where_it_is_long(tmp_path: Path) -> None:
    extraction = toy(tmp_path / "s", [])
    assert extraction.seconds_per_row() is None

    def wait(_: range, numbers: np.ndarray) -> Values:
        time.sleep(0.02)
        return Values({"x": numbers[:, None].astype(float)}, {})

    shard = PiecedShard(tmp_path / "long", {"x": FieldSpec("float64", (1,))}, 1000, 500)
    seconds = Extraction("long", shard, 2, read=np.array, compute=wait).seconds_per_row()
    assert seconds is not None
    assert seconds >= 0.01
    assert not (tmp_path / "long").exists()


def test_items_are_made_ahead_in_order_in_another_thread() -> None:
    made: list[int] = []

    def numbers() -> object:
        for number in range(6):
            made.append(number)
            yield number, threading.get_ident()

    items = ahead(numbers())
    assert made == []
    first, thread = next(items)
    assert (first, thread == threading.get_ident()) == (0, False)
    assert [number for number, _ in items] == [1, 2, 3, 4, 5]
    assert list(ahead([])) == []


def test_an_error_ahead_reaches_whoever_asks() -> None:
    def numbers() -> object:
        yield 1
        raise ZeroDivisionError

    items = ahead(numbers())
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)
