"""A stored row becomes the same latent for every reader, whether its posterior was sampled before or is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import ShardReader
from sfd_core.host.errors import DataError, NumericsError
from sfd_core.host.seeding import generator, sample_noise
from sfd_core.latents.stored import StoredLatent, latent_fields, moments_of, posterior_meta

ROWS, GRID, SEED = 6, 4, 3
CHANNELS = {"z_tex": 3, "z_sem": 2, "z_pca": 5}
MIRRORED = torch.tensor([False, True, True, False])


def written(folder: Path, posterior: str, dtype: str = "float32") -> tuple[ShardReader, dict[str, np.ndarray]]:
    """Write random latents of a part `train`; deviations are positive, as a posterior's are."""
    random = np.random.default_rng(0)
    fields = latent_fields(posterior, CHANNELS, dtype, GRID)  # type: ignore[arg-type]
    arrays = {name: random.normal(size=(ROWS, *spec.shape)).astype(dtype) for name, spec in fields.items()}
    arrays = {name: np.abs(array) if name.endswith("_std") else array for name, array in arrays.items()}
    with ShardWriter(folder, fields, posterior_meta(posterior, "train", SEED), rows_per_file=4) as writer:  # type: ignore[arg-type]
        writer.append(**arrays)
    return ShardReader(folder), arrays


def taken(array: np.ndarray, rows: list[int]) -> Tensor:
    """Rows of image or mirror image, as MIRRORED says, picked one by one."""
    return torch.stack([torch.from_numpy(array[row, int(side)]).float() for row, side in zip(rows, MIRRORED, strict=True)])


def test_fields_are_the_latent_itself_or_the_moments_of_its_posterior() -> None:
    assert list(latent_fields("sample", CHANNELS, "float16", GRID)) == ["z_tex", "z_sem", "z_pca"]
    moments = latent_fields("moments", CHANNELS, "float16", GRID)
    assert list(moments) == ["z_tex_mean", "z_tex_std", "z_sem_mean", "z_sem_std", "z_pca"]
    assert moments["z_sem_std"].shape == (2, 2, GRID, GRID)
    assert moments["z_sem_std"].dtype == "float16"


@pytest.mark.parametrize("name", CHANNELS)
def test_a_frozen_sample_is_what_every_reader_gets(name: str, tmp_path: Path) -> None:
    shard, arrays = written(tmp_path / "s", "sample", "float16")
    latent, rows = StoredLatent(shard, name), [5, 0, 5, 2]
    expected = taken(arrays[name], rows)
    for found in (latent.draw(rows, MIRRORED, torch.zeros), latent.frozen(rows, MIRRORED), latent.central(rows, MIRRORED)):
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32
    assert (latent.channels, latent.grid) == (CHANNELS[name], GRID)


def test_a_drawn_latent_is_mean_plus_deviation_times_noise_of_its_place_in_the_batch(tmp_path: Path) -> None:
    shard, arrays = written(tmp_path / "s", "moments")
    latent = StoredLatent(shard, "z_tex")
    noise = torch.randn(4, 3, GRID, GRID, generator=generator(0, "x", 1))
    for rows in ([5, 0, 5, 2], [1, 1, 1, 1]):
        expected = taken(arrays["z_tex_mean"], rows) + taken(arrays["z_tex_std"], rows) * noise
        assert torch.equal(latent.draw(rows, MIRRORED, lambda _: noise), expected)
        assert torch.equal(latent.central(rows, MIRRORED), taken(arrays["z_tex_mean"], rows))
    assert not torch.equal(latent.draw([1] * 4, MIRRORED, lambda _: noise + 1), expected)


def test_the_frozen_sample_of_moments_depends_on_the_row_and_not_on_the_batch(tmp_path: Path) -> None:
    shard, arrays = written(tmp_path / "s", "moments")
    latent = StoredLatent(shard, "z_sem")
    noise = sample_noise(SEED, [4], (2, 2, GRID, GRID), "train semantic")[0]
    expected = torch.from_numpy(arrays["z_sem_mean"][4]) + torch.from_numpy(arrays["z_sem_std"][4]) * noise
    found = latent.frozen([0, 4, 4, 2], MIRRORED)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(latent.frozen([4], torch.tensor([False]))[0], expected[0])


def test_pca_has_no_posterior_and_is_stored_itself_beside_moments(tmp_path: Path) -> None:
    shard, arrays = written(tmp_path / "s", "moments")
    latent = StoredLatent(shard, "z_pca")
    assert torch.equal(latent.draw([1, 2, 3, 4], MIRRORED, torch.zeros), taken(arrays["z_pca"], [1, 2, 3, 4]))


@pytest.mark.parametrize("name", ["z_tex", "z_pca"])
@pytest.mark.parametrize("posterior", ["sample", "moments"])
def test_mean_and_deviation_of_a_batch_of_fields(posterior: str, name: str, tmp_path: Path) -> None:
    _, arrays = written(tmp_path / "s", posterior)
    mean, std = moments_of({field: torch.from_numpy(array) for field, array in arrays.items()}, name)
    drawn = (posterior, name) == ("moments", "z_tex")
    np.testing.assert_array_equal(mean.numpy(), arrays["z_tex_mean" if drawn else name].reshape(12, -1, GRID, GRID))
    assert (std is not None) == drawn
    if std is not None:
        np.testing.assert_array_equal(std.numpy(), arrays["z_tex_std"].reshape(12, -1, GRID, GRID))


def test_a_shard_without_the_latent_and_one_with_nan_are_named(tmp_path: Path) -> None:
    shard, _ = written(tmp_path / "s", "moments")
    with pytest.raises(DataError, match="no field 'z_new'"):
        StoredLatent(shard, "z_new")
    fields = latent_fields("moments", {"z_sem": 2}, "float32", GRID)
    broken = np.ones((2, 2, 2, GRID, GRID), np.float32)
    broken[1, 0, 1] = np.nan
    with ShardWriter(tmp_path / "broken", fields, {}) as writer:
        writer.append(z_sem_mean=np.ones_like(broken), z_sem_std=broken)
    with pytest.raises(NumericsError, match="row 1 of 'z_sem_std'"):
        StoredLatent(ShardReader(tmp_path / "broken"), "z_sem").require_finite()
