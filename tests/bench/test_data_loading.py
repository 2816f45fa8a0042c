"""Latents a second, as a training step takes them, against the public code's way to read them; and how a large index starts.

The public code opens a safetensors file for every image, takes the row of the latent or of its flipped twin and of the label,
and lets the data loader stack them. Both ways read the same data in the same order out of the page cache, by turns.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors import safe_open
from safetensors.torch import save_file
from sparse_latents import lay_out
from torch import Tensor
from torch.utils.data import default_collate

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.latents.stored import StoredLatent, latent_fields
from sfd_core.training.batches import BatchOrder

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

PerSecond = Callable[[int], None]
Remark = Callable[[str], None]
Batch = list[Tensor]
"""z_tex and z_sem (N, C, g, g) float32, labels (N,)."""

NAMES = ("z_tex", "z_sem")
IMAGES, BATCH, BATCHES = 2_048, 256, 16
IMAGENET = 1_281_167
CASES = {"embedded": (16, 8, 8, "float32"), "imagenet": (32, 16, 16, "float32"), "imagenet-half": (32, 16, 16, "float16")}
"""Channels of texture and of semantics, side of the grid, stored type."""


def by_shard(latents: dict[str, StoredLatent], shard: ShardReader, rows: np.ndarray, mirrored: Tensor) -> Batch:
    """Read what `LatentBatches` needs for a batch."""
    return [*(latents[name].frozen(rows, mirrored) for name in NAMES), torch.from_numpy(shard["label"].take(rows))]


def by_item(path: Path, rows: np.ndarray, mirrored: Tensor) -> Batch:
    """Read a batch as the public code does."""

    def item(row: int, flipped: bool) -> tuple[Tensor, ...]:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = (*(f"{name}_flip" if flipped else name for name in NAMES), "label")
            return tuple(file.get_slice(name)[row : row + 1].squeeze(0) for name in names)

    loaded: Batch = default_collate([item(*wanted) for wanted in zip(rows.tolist(), mirrored.tolist(), strict=True)])
    return loaded


@pytest.mark.parametrize("case", CASES)
def test_latents_of_shards(
    benchmark: BenchmarkFixture, per_second: PerSecond, remark: Remark, tmp_path: Path, case: str
) -> None:
    texture, semantic, grid, dtype = CASES[case]
    fields = latent_fields("sample", dict(zip(NAMES, (texture, semantic), strict=True)), dtype, grid)
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((IMAGES, *spec.shape), np.float32).astype(dtype) for name, spec in fields.items()}
    arrays["label"] = random.integers(0, 1000, IMAGES)
    with ShardWriter(tmp_path / "shard", fields | {"label": FieldSpec("int64", ())}, {}) as writer:
        writer.append(**arrays)
    sides = {
        f"{name}{'_flip' * side}": torch.from_numpy(arrays[name][:, side]).contiguous() for name in NAMES for side in (0, 1)
    }
    save_file(sides | {"label": torch.from_numpy(arrays["label"])}, tmp_path / "latents.safetensors")
    shard = ShardReader(tmp_path / "shard")
    latents = {name: StoredLatent(shard, name) for name in NAMES}
    batches = [(random.integers(0, IMAGES, BATCH), torch.rand(BATCH) < 0.5) for _ in range(BATCHES)]
    seconds: list[float] = []

    def public_way() -> None:
        start = time.perf_counter()
        for wanted in batches[:4]:
            by_item(tmp_path / "latents.safetensors", *wanted)
        seconds.append((time.perf_counter() - start) / 4)

    def epoch() -> None:
        for wanted in batches:
            by_shard(latents, shard, *wanted)

    for mine, theirs in zip(
        by_shard(latents, shard, *batches[0]), by_item(tmp_path / "latents.safetensors", *batches[0]), strict=True
    ):
        assert torch.equal(mine, theirs.to(mine.dtype))
    benchmark.pedantic(epoch, setup=public_way, rounds=7, warmup_rounds=1)
    per_second(BATCHES * BATCH)
    if benchmark.stats is not None:
        times = BATCHES * median(seconds[1:]) / benchmark.stats.stats.median
        remark(f"{times:.1f} times a safetensors file opened for every image")
        assert times > 20


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the latents of all of ImageNet, as holes, in `train`."""
    folder = tmp_path_factory.mktemp("imagenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lay_out(folder / "train", IMAGENET)
        yield folder


def test_start_of_an_imagenet_index(benchmark: BenchmarkFixture, remark: Remark, index: Path) -> None:
    seeds = iter(range(100))

    def start() -> Batch:
        shard = ShardReader(index / "train")
        latents = {name: StoredLatent(shard, name) for name in NAMES}
        for latent in latents.values():
            assert latent.grid == 16
        order = BatchOrder(len(shard), BATCH, next(seeds))
        return by_shard(latents, shard, order.rows(0).numpy(), order.mirrored(0))

    z_tex, z_sem, labels = benchmark.pedantic(start, rounds=5)
    assert (z_tex.shape, z_sem.shape, labels.shape) == ((BATCH, 32, 16, 16), (BATCH, 16, 16, 16), (BATCH,))
    if benchmark.stats is not None:
        slowest = benchmark.stats.stats.max
        remark(f"{slowest:.2f} s at most to open {IMAGENET:,} images, order them and read a batch")
        assert slowest < 2


def test_random_batches_of_an_imagenet_index(
    benchmark: BenchmarkFixture, per_second: PerSecond, remark: Remark, index: Path
) -> None:
    shard = ShardReader(index / "train")
    latents = {name: StoredLatent(shard, name) for name in NAMES}
    order = BatchOrder(len(shard), BATCH, 0)
    batches = [(order.rows(step).numpy(), order.mirrored(step)) for step in range(BATCHES)]

    def epoch() -> Batch:
        return [by_shard(latents, shard, *wanted) for wanted in batches][-1]

    benchmark.pedantic(epoch, rounds=7, warmup_rounds=1)
    per_second(BATCHES * BATCH)
    remark(f"out of {len(list((index / 'train').iterdir())) - 1} pieces")
