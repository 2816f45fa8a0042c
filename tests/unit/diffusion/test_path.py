import torch

from sfd_core.diffusion.path import by_channel, interpolate, predict_data, sample_path, velocity, velocity_to
from sfd_core.diffusion.schedule import LocalTimes, Schedule

N, TEXTURE, SEMANTIC = 6, 3, 2


def ends() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, N, TEXTURE + SEMANTIC, 4, 4, generator=generator)
    return x0, x1


def test_ends_are_exact() -> None:
    x0, x1 = ends()
    assert torch.equal(interpolate(x0, x1, torch.zeros(N)), x0)
    assert torch.equal(interpolate(x0, x1, torch.ones(N)), x1)


def test_velocity_is_the_derivative_and_leads_back_to_both_ends() -> None:
    x0, x1 = (end.double() for end in ends())
    t = torch.linspace(0.1, 0.9, N, dtype=torch.float64)
    v = velocity(x0, x1)
    slope = (interpolate(x0, x1, t + 1e-3) - interpolate(x0, x1, t - 1e-3)) / 2e-3
    assert torch.allclose(slope, v)
    x_t = interpolate(x0, x1, t)
    assert torch.allclose(predict_data(x_t, v, t), x1)
    assert torch.allclose(x_t - t[:, None, None, None] * v, x0)


def test_each_part_is_at_its_own_time() -> None:
    x0, x1 = ends()
    times = LocalTimes(t_tex=torch.zeros(N), t_sem=torch.ones(N))
    x_t = sample_path(x0, x1, times, TEXTURE).x_t
    assert torch.equal(x_t[:, :TEXTURE], x0[:, :TEXTURE])
    assert torch.equal(x_t[:, TEXTURE:], x1[:, TEXTURE:])
    t = by_channel(torch.full((N,), 0.2), torch.full((N,), 0.5), TEXTURE, TEXTURE + SEMANTIC)
    assert t.shape == (N, TEXTURE + SEMANTIC, 1, 1)
    assert t[0].flatten().tolist() == torch.tensor([0.2] * TEXTURE + [0.5] * SEMANTIC).tolist()


def test_without_an_offset_the_composite_path_is_plain_flow_matching() -> None:
    x0, x1 = ends()
    u = torch.rand(N, generator=torch.Generator().manual_seed(3))
    times = Schedule.offset(0.0).local_times(u)
    sample = sample_path(x0, x1, times, TEXTURE)
    t = u[:, None, None, None]
    assert torch.equal(sample.x_t, t * x1 + (1 - t) * x0)
    assert torch.equal(sample.velocity, x1 - x0)
    alone = sample_path(x0[:, :TEXTURE], x1[:, :TEXTURE], times, TEXTURE)
    assert torch.equal(alone.x_t, sample.x_t[:, :TEXTURE])


def test_the_velocity_to_the_data_is_that_of_the_path_until_its_bound_near_the_end() -> None:
    x0, x1 = (end.double() for end in ends())
    t = torch.tensor([0.0, 0.3, 0.9, 0.95, 0.99, 1.0], dtype=torch.float64)[:, None, None, None]
    found, path = velocity_to(x1, interpolate(x0, x1, t), t), velocity(x0, x1)
    assert torch.allclose(found[:4], path[:4])
    # 1 - t counts as 0.05 from there on
    assert torch.allclose(found[4], path[4] * 0.01 / 0.05)
    assert torch.allclose(found[5], torch.zeros_like(path[5]))
