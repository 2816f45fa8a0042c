"""What the training loop asks of a network that is trained, and of an average of its weights."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class TrainingTask(Protocol):
    """What is trained: a network and its loss."""

    @property
    def model(self) -> nn.Module:
        """The network; the loop moves it to the device and updates it in place."""

    def loss(self, step: int) -> Mapping[str, Tensor]:
        """Return named scalars of step `step` (counted from 0), of which `loss` is minimised.

        Everything random, the batch included, depends on `step` and a fixed seed only.
        """


class WeightAverage(Protocol):
    """A running average of the weights, such as `models.ema.EMA`."""

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the averaged weights under the model's own names."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything a resumed run needs."""

    def load_state_dict(self, state: Any) -> object:
        """Restore `state_dict`."""
