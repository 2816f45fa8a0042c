import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.host.errors import DataError, NumericsError
from sfd_core.latents.composite import (
    ChannelStatistics,
    Composite,
    LatentStatistics,
    StreamingMoments,
    load_statistics,
    save_statistics,
)

N, TEXTURE, SEMANTIC, SIDE = 10, 3, 2, 4


def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_tex = 5 + 3 * torch.randn(N, TEXTURE, SIDE, SIDE, generator=generator)
    z_sem = -2 + 0.1 * torch.randn(N, SEMANTIC, SIDE, SIDE, generator=generator)
    return z_tex, z_sem


def moments(z: Tensor) -> ChannelStatistics:
    streaming = StreamingMoments(z.shape[1])
    streaming.update(z)
    return streaming.statistics()


def both() -> LatentStatistics:
    z_tex, z_sem = latents()
    return LatentStatistics(moments(z_tex), moments(z_sem))


def require_state(moments: StreamingMoments, values: np.ndarray) -> None:
    """Require what moments of values (C, n) hold, by NumPy in float64."""
    found, mean = moments.state(), values.mean(1, keepdims=True)
    assert found["count"] == moments.count == values.shape[1]
    np.testing.assert_allclose(found["mean"], mean[:, 0], rtol=1e-13)
    np.testing.assert_allclose(found["squares"], ((values - mean) ** 2).sum(1), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_streaming_moments_are_exact_however_the_data_is_cut(batch: int, dtype: torch.dtype) -> None:
    z = (1000 + latents()[0]).to(dtype)
    streaming = StreamingMoments(TEXTURE)
    for rows in z.split(batch):
        streaming.update(rows)
    streaming.update(z[:0])
    values = z.double().transpose(0, 1).flatten(1)
    require_state(streaming, values.numpy())
    assert torch.allclose(streaming.statistics().mean, values.mean(1).float())
    assert torch.allclose(streaming.statistics().std, values.std(1, correction=0).float())


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_moments_of_drawn_latents_are_exact_without_drawing(batch: int) -> None:
    mean, std = (5 + latents()[0]).double(), latents()[0].abs().double()
    streaming = StreamingMoments(TEXTURE)
    for rows, deviations in zip(mean.split(batch), std.split(batch), strict=True):
        streaming.update(rows, deviations)
    # two equally likely values with this mean and deviation have the statistics of all that can be drawn
    values = torch.cat([mean - std, mean + std]).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(streaming.state()["mean"], values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(streaming.state()["squares"], values.var(1) * streaming.count, rtol=1e-12)
    np.testing.assert_allclose(streaming.statistics().std.numpy(), values.std(1), rtol=1e-6)
    with pytest.raises(NumericsError, match="NaN or infinity"):
        streaming.update(mean, std * float("inf"))


def test_joined_latents_are_normalised_texture_first_and_split_gives_them_back() -> None:
    z_tex, z_sem = latents()
    composite = Composite(both())
    x = composite.join(z_tex, z_sem)
    assert x.shape == (N, TEXTURE + SEMANTIC, SIDE, SIDE)
    assert (composite.n_texture, composite.n_semantic, composite.channels) == (TEXTURE, SEMANTIC, TEXTURE + SEMANTIC)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(TEXTURE + SEMANTIC), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(TEXTURE + SEMANTIC), atol=1e-5)
    parts = composite.split(x)
    assert parts.semantic is not None
    assert torch.equal(torch.cat([parts.texture, parts.semantic], dim=1), x)
    assert torch.allclose(composite.denormalise_texture(parts.texture), z_tex, atol=1e-5)
    assert torch.allclose(both().semantic.denormalise(parts.semantic), z_sem, atol=1e-5)


def test_texture_alone() -> None:
    z_tex, z_sem = latents()
    composite = Composite(LatentStatistics(moments(z_tex), None))
    x = composite.join(z_tex)
    assert x.shape == z_tex.shape
    assert composite.split(x).semantic is None
    assert torch.equal(x, Composite(both()).join(z_tex, z_sem)[:, :TEXTURE])
    with pytest.raises(DataError, match="texture-only composite"):
        composite.join(z_tex, z_sem)


def test_latents_that_do_not_fit_are_refused() -> None:
    z_tex, z_sem = latents()
    composite = Composite(both())
    for texture in (z_sem, z_tex[:, :, 0]):
        with pytest.raises(DataError, match="texture latent has shape"):
            composite.join(texture, z_sem)
    with pytest.raises(DataError, match="texture latent has shape"):
        composite.denormalise_texture(z_sem)
    with pytest.raises(DataError, match="semantic latent has shape"):
        composite.join(z_tex, z_tex)
    with pytest.raises(DataError, match="no semantic latent"):
        composite.join(z_tex)
    with pytest.raises(DataError, match="encode both at the same resolution"):
        composite.join(z_tex, z_sem[:, :, ::2, ::2])
    with pytest.raises(DataError, match="composite latent has shape"):
        composite.split(z_tex)


def test_statistics_survive_the_disk_to_the_last_bit(tmp_path: Path) -> None:
    statistics = both()
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = LatentStatistics.load(tmp_path / "statistics.safetensors")
    z_tex, z_sem = latents()
    assert torch.equal(Composite(loaded).join(z_tex, z_sem), Composite(statistics).join(z_tex, z_sem))
    LatentStatistics(statistics.texture, None).save(tmp_path / "texture.safetensors")
    assert LatentStatistics.load(tmp_path / "texture.safetensors").semantic is None
    save_statistics(tmp_path / "more", {"texture": statistics.texture, "pca": moments(z_sem)})
    assert set(load_statistics(tmp_path / "more")) == {"texture", "pca"}


def test_files_that_hold_no_statistics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        LatentStatistics.load(tmp_path / "missing.safetensors")
    (tmp_path / "noise").write_bytes(b"not safetensors at all")
    with pytest.raises(DataError, match="no latent statistics"):
        LatentStatistics.load(tmp_path / "noise")
    save_statistics(tmp_path / "semantic", {"semantic": both().texture})
    with pytest.raises(DataError, match="not of texture"):
        LatentStatistics.load(tmp_path / "semantic")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(bad: float) -> None:
    z = latents()[0]
    z[3, 1, 2, 2] = bad
    with pytest.raises(NumericsError, match="NaN or infinity"):
        StreamingMoments(TEXTURE).update(z)


def test_a_constant_channel_is_named() -> None:
    z = latents()[0]
    z[:, 1] = 4.0
    with pytest.raises(NumericsError, match=r"channels \[1\]"):
        moments(z)


def test_no_latents_have_no_statistics() -> None:
    with pytest.raises(DataError, match="no latents to compute statistics of"):
        StreamingMoments(TEXTURE).statistics()
    for mean, std in ((torch.zeros(2), torch.ones(3)), (torch.zeros(2, 2), torch.ones(2, 2))):
        with pytest.raises(DataError, match="one value per channel"):
            ChannelStatistics(mean, std)


def test_merged_moments_are_those_of_all_values() -> None:
    z = (1000 + latents()[0]).double()
    first, second = StreamingMoments.of(z[:3]), StreamingMoments.of(z[3:])
    first.merge(StreamingMoments(TEXTURE))
    require_state(first, z[:3].transpose(0, 1).flatten(1).numpy())
    first.merge(second)
    require_state(first, z.transpose(0, 1).flatten(1).numpy())
    require_state(second, z[3:].transpose(0, 1).flatten(1).numpy())


def test_moments_come_back_from_json_to_the_last_bit() -> None:
    made = StreamingMoments.of(1000 + latents()[0])
    loaded = StreamingMoments.from_state(json.loads(json.dumps(made.state())))
    assert loaded.state() == made.state()
    assert loaded.channels == TEXTURE
    assert torch.equal(loaded.statistics().std, made.statistics().std)


def test_half_precision_latents_are_normalised_in_float32() -> None:
    z_tex, z_sem = (values.half() for values in latents())
    composite = Composite(both())
    assert torch.equal(composite.join(z_tex, z_sem), composite.join(z_tex.float(), z_sem.float()))


def test_moments_of_latents_that_are_trained_do_not_keep_their_graph() -> None:
    z = latents()[0].requires_grad_()
    assert not StreamingMoments.of(z).statistics().mean.requires_grad


@pytest.mark.parametrize(
    ("mean", "std"),
    [([math.nan, 0.0], [1.0, 1.0]), ([0.0, 0.0], [math.inf, 1.0]), ([0.0, 0.0], [-1.0, 1.0]), ([0.0, 0.0], [0.0, 1.0])],
)
def test_statistics_that_cannot_normalise_are_refused_by_channel(mean: list[float], std: list[float]) -> None:
    with pytest.raises(NumericsError, match=r"channels \[0\]"):
        ChannelStatistics(torch.tensor(mean), torch.tensor(std))


def test_statistics_that_are_views_are_written_and_half_of_them_are_refused(tmp_path: Path) -> None:
    view = ChannelStatistics(torch.arange(6.0)[::2], torch.arange(1.0, 7.0)[::2])
    save_statistics(tmp_path / "view", {"texture": view})
    loaded = load_statistics(tmp_path / "view")["texture"]
    assert (loaded.mean.tolist(), loaded.std.tolist()) == ([0.0, 2.0, 4.0], [1.0, 3.0, 5.0])
    save_file({"texture_mean": torch.zeros(3)}, tmp_path / "half")
    with pytest.raises(DataError, match="no latent statistics"):
        load_statistics(tmp_path / "half")


def test_scaled_statistics_give_the_channels_their_deviations_at_the_same_energy() -> None:
    z = latents()[0]
    scaled = moments(z).scaled(torch.tensor([1.0, 2.0, 4.0]))
    x = scaled.normalise(z)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(TEXTURE), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.tensor([1.0, 2.0, 4.0]) / 7**0.5, rtol=1e-4)
    assert torch.allclose(scaled.denormalise(x), z, atol=1e-4)
