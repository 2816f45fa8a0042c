"""No damaged archive ends in a traceback, hangs or loses images without a word."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import encoded, samples, write_parquet, write_tar

from sfd_core.data.sources.image_set import ImageSet, Location
from sfd_core.data.sources.parquet import parquet_images
from sfd_core.data.sources.tar import tar_images
from sfd_core.host.errors import DataError

IMAGES = 8
KINDS: dict[str, tuple[str, Callable[[Path], Path], Callable[[Location], ImageSet]]] = {
    "folders in a tar file": (
        "a.tar",
        lambda path: write_tar(path, {f"class-{number % 2}/{number}.png": encoded(number) for number in range(IMAGES)}),
        lambda location: tar_images(location, "folder", 16),
    ),
    "WebDataset": (
        "a.tar",
        lambda path: write_tar(path, samples({str(number): number % 2 for number in range(IMAGES)})),
        lambda location: tar_images(location, "stored", 16),
    ),
    "Parquet": (
        "a.parquet",
        lambda path: write_parquet(path, [number % 2 for number in range(IMAGES)]),
        lambda location: parquet_images(location, 16),
    ),
}


def damage(whole: bytes, source: random.Random) -> bytes:
    """Cut, overwrite, repeat or leave out a piece, as broken downloads and disks do; none is as long as whole members."""
    start = source.randrange(len(whole))
    end = min(len(whole), start + source.choice([1, 8, 511, 4095]))
    match source.randrange(5):
        case 0:
            return whole[:start]
        case 1:
            return whole[:start] + source.randbytes(end - start) + whole[end:]
        case 2:
            return whole[:start] + bytes(end - start) + whole[end:]
        case 3:
            return whole[:end] + whole[start:]
        case _:
            return whole[:start] + whole[end:]


def unreadable(images: ImageSet) -> int:
    """Return how many of the listed images are refused."""
    refused = 0
    for index in range(len(images.names)):
        try:
            images.render(index, 0)
        except DataError:
            refused += 1
    return refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_damage_ends_in_a_traceback_or_loses_images_silently(
    tmp_path: Path, kind: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write, read = KINDS[kind]
    path, source = tmp_path / name, random.Random(0)
    whole = write(path).read_bytes()
    assert unreadable(read(Location("prepare.path", str(path)))) == 0
    refused = 0
    for _ in range(count):
        damaged = damage(whole, source)
        path.write_bytes(damaged)
        try:
            images = read(Location("prepare.path", str(path)))
        except DataError:
            refused += 1
            continue
        if whole.startswith(damaged.rstrip(b"\0")):
            continue  # without its last members, and zero bytes in their place, it is a shorter archive
        assert unreadable(images) or len(images.names) == IMAGES or "skipped: " in capsys.readouterr().err
    assert refused > count / 4
