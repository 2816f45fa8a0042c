"""Power-function averages: their profile by definition, and any width reconstructed like one that was tracked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfd_core.host.errors import ConfigError, DataError
from sfd_core.training.ema import EMA
from sfd_core.training.power_ema import Averages, PowerEMA, StoredAverage, exponent, power_averages, reconstruct

STEPS, EVERY = 400, 25


class Walk(nn.Module):
    """A weight that walks at random, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1000))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("positions", torch.ones(3))

    def step(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.weight += torch.randn(1000, generator=generator)
            self.count += 1


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[float, int], torch.Tensor]]:
    """A folder of averages of two widths, and averages of other widths that were tracked all along."""
    folder, model, generator = tmp_path_factory.mktemp("averages"), Walk(), torch.Generator().manual_seed(0)
    averages = power_averages(model, EMA(model, 0.99, warmup=False), [0.05, 0.1], sharded=False)
    assert isinstance(averages, Averages)
    others = {sigma: PowerEMA(model, sigma) for sigma in (0.03, 0.05, 0.07, 0.15, 0.2)}
    found = {}
    for step in range(1, STEPS + 1):
        model.step(generator)
        averages.update(model)
        for sigma, average in others.items():
            average.update(model)
            if step in (300, STEPS):
                found[sigma, step] = average.weights()["weight"].clone()
        if step % EVERY == 0:
            averages.save(step, folder)
    return folder, found


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_widths_have_the_published_exponents(sigma: float, gamma: float) -> None:
    assert exponent(sigma) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_the_width_is_that_of_the_weight_that_steps_have(sigma: float) -> None:
    model, steps = Walk(), 2000
    average = PowerEMA(model, sigma)
    decays = []
    for _ in range(steps):
        decays.append(average.current_decay)
        average.updates += 1
    weights = np.array([(1 - decay) * np.prod(decays[index + 1 :]) for index, decay in enumerate(decays)])
    times = np.arange(1, steps + 1) / steps
    assert weights.sum() == pytest.approx(1)
    mean = (weights * times).sum()
    assert ((weights * (times - mean) ** 2).sum()) ** 0.5 == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize(
    ("sigma", "step", "off"), [(0.05, STEPS, 1e-5), (0.07, STEPS, 0.01), (0.15, STEPS, 0.01), (0.15, 300, 0.01)]
)
def test_a_reconstructed_average_is_the_tracked_one(
    tracked: tuple[Path, dict[tuple[float, int], torch.Tensor]], sigma: float, step: int, off: float
) -> None:
    folder, expected = tracked
    weights, mismatch = reconstruct(StoredAverage.all_in(folder), sigma, step)
    difference = (weights["weight"] - expected[sigma, step]).norm() / expected[sigma, step].norm()
    assert difference < off
    assert mismatch < 0.05
    # far from its neighbours, so that no other width would pass
    others = [value for (width, at), value in expected.items() if at == step and width != sigma]
    assert min((weights["weight"] - other).norm() / other.norm() for other in others) > 2 * off
    assert weights["count"] == step


@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.2])
@pytest.mark.parametrize("widths", [[0.05], [0.05, 0.1]])
@pytest.mark.parametrize("step", [25, STEPS])
def test_what_never_changes_is_the_same_in_every_average(
    tracked: tuple[Path, dict[tuple[float, int], torch.Tensor]], sigma: float, widths: list[float], step: int
) -> None:
    averages = [average for average in StoredAverage.all_in(tracked[0]) if average.sigma in widths]
    weights, _ = reconstruct(averages, sigma, step)
    torch.testing.assert_close(weights["positions"], torch.ones(3))


def test_impossible_widths_steps_and_folders_are_refused(
    tracked: tuple[Path, dict[tuple[float, int], torch.Tensor]], tmp_path: Path
) -> None:
    averages = StoredAverage.all_in(tracked[0])
    for sigma in (0.0, 0.3, -1.0):
        with pytest.raises(ConfigError, match=f"width {sigma}"):
            reconstruct(averages, sigma, STEPS)
    for step in (10, STEPS + 1):
        with pytest.raises(ConfigError, match=f"no average of step {step}; choose one between those of 25, 50"):
            reconstruct(averages, 0.1, step)
    with pytest.raises(DataError, match=r"train with train\.power_emas"):
        StoredAverage.all_in(tmp_path)
    with pytest.raises(ConfigError, match="whole weights"):
        power_averages(Walk(), EMA(Walk(), 0.9, warmup=False), [0.1], sharded=True)


def test_a_resumed_training_goes_on_with_all_averages() -> None:
    def averages(model: nn.Module) -> Averages:
        made = power_averages(model, EMA(model, 0.9, warmup=False), [0.05, 0.1], sharded=False)
        assert isinstance(made, Averages)
        return made

    model, generator = Walk(), torch.Generator().manual_seed(1)
    unbroken = averages(model)
    for _ in range(5):
        model.step(generator)
        unbroken.update(model)
    resumed = averages(Walk())
    resumed.load_state_dict({name: value.clone() for name, value in unbroken.state_dict().items()})
    for average in (unbroken, resumed):
        average.update(model)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
