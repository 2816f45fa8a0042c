import torch
from torch import nn

from sfd_core.training.ema import EMA


class Network(nn.Module):
    """A trained weight, a fixed one, and a buffer."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.full((2,), value))
        self.fixed = nn.Parameter(torch.full((2,), value), requires_grad=False)
        self.register_buffer("count", torch.tensor(int(value)))


def set_to(model: Network, value: float) -> Network:
    with torch.no_grad():
        model.trained.fill_(value)
        model.fixed.fill_(value)
        model.count.fill_(int(value))
    return model


def test_warm_up_follows_its_formula_until_the_decay_is_reached() -> None:
    model, expected = Network(0.0), 0.0
    ema = EMA(model, decay=0.5, warmup=True)
    for i in range(20):
        decay = min(0.5, (1 + i) / (10 + i))
        assert ema.current_decay == decay
        expected = decay * expected + (1 - decay) * i
        ema.update(set_to(model, i))
    assert ema.current_decay == 0.5
    torch.testing.assert_close(ema.weights()["trained"], torch.full((2,), expected))


def test_without_warm_up_the_decay_is_constant_and_what_is_not_trained_is_copied() -> None:
    model = Network(1.0)
    ema = EMA(model, decay=0.9, warmup=False)
    ema.update(set_to(model, 3.0))
    torch.testing.assert_close(ema.weights()["trained"], torch.full((2,), 1.2))
    assert ema.weights()["fixed"].tolist() == [3, 3]
    assert ema.weights()["count"].item() == 3


def test_a_resumed_average_equals_an_unbroken_one() -> None:
    model = Network(0.0)
    unbroken = EMA(model, decay=0.99, warmup=True)
    for i in range(5):
        unbroken.update(set_to(model, i))
    saved = {name: value.clone() for name, value in unbroken.state_dict().items()}
    resumed = EMA(Network(42.0), decay=0.99, warmup=True)
    resumed.load_state_dict(saved)
    for ema in (unbroken, resumed):
        ema.update(set_to(model, 9.0))
    assert resumed.updates == unbroken.updates == 6
    assert torch.equal(resumed.weights()["trained"], unbroken.weights()["trained"])
