"""Samples a second out of memory-mapped shards, against a reader that opens a file for every sample; same data, same order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors import safe_open
from safetensors.numpy import save_file

from sfd_core.data.shard_writer import ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader

pytestmark = pytest.mark.bench

Latents = dict[str, np.ndarray]
PerSecond = Callable[[int], None]

ROWS, BATCH, BATCHES = 4_096, 256, 16
FIELDS = {"z_tex": FieldSpec("float32", (2, 16, 8, 8)), "z_sem": FieldSpec("float32", (2, 8, 8, 8))}


@pytest.fixture(scope="module")
def latents() -> Latents:
    random = np.random.default_rng(0)
    return {name: random.standard_normal((ROWS, *spec.shape), dtype=np.float32) for name, spec in FIELDS.items()}


@pytest.fixture(scope="module")
def batches() -> np.ndarray:
    return np.random.default_rng(1).integers(0, ROWS, (BATCHES, BATCH))


def test_shards(
    benchmark: BenchmarkFixture, per_second: PerSecond, tmp_path: Path, latents: Latents, batches: np.ndarray
) -> None:
    with ShardWriter(tmp_path / "shard", FIELDS, {}) as writer:
        writer.append(**latents)
    reader = ShardReader(tmp_path / "shard")

    def epoch() -> list[Latents]:
        return [{name: reader[name].take(rows) for name in FIELDS} for rows in batches]

    loaded = benchmark(epoch)
    np.testing.assert_array_equal(loaded[-1]["z_sem"], latents["z_sem"][batches[-1]])
    per_second(BATCHES * BATCH)


def test_one_open_file_for_every_sample(
    benchmark: BenchmarkFixture, per_second: PerSecond, tmp_path: Path, latents: Latents, batches: np.ndarray
) -> None:
    path = tmp_path / "latents.safetensors"
    save_file(latents, path)

    def sample(row: int) -> Latents:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name)[row] for name in FIELDS}

    def epoch() -> list[Latents]:
        loaded = [[sample(int(row)) for row in rows] for rows in batches]
        return [{name: np.stack([item[name] for item in items]) for name in FIELDS} for items in loaded]

    loaded = benchmark.pedantic(epoch, rounds=3, warmup_rounds=1)
    np.testing.assert_array_equal(loaded[-1]["z_sem"], latents["z_sem"][batches[-1]])
    per_second(BATCHES * BATCH)
