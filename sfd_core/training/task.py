"""What the training loop asks of a network that is trained, and of an average of its weights."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from sfd_core.training.batches import BatchOrder


class TrainingTask(Protocol):
    """What is trained: a network and its loss."""

    @property
    def model(self) -> nn.Module:
        """The network; the loop moves it to the device and updates it in place."""

    @property
    def order(self) -> BatchOrder:
        """Which images make the global batch of a step."""

    def batch(self, step: int, part: slice) -> Mapping[str, Tensor]:
        """Return, on the CPU, what `loss` needs of positions `part` of the global batch of `step`, counted from 0.

        Everything random depends on `step`, position and a fixed seed only. It is called in a thread, ahead of time.
        """

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return named scalars, means over the images of a batch on the model's device, of which `loss` is minimised."""


class WeightAverage(Protocol):
    """A running average of the weights, such as `training.ema.EMA`."""

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""

    def restart(self, model: nn.Module) -> None:
        """Begin anew from the weights as they are now and lie where they lie now, shards of them too."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the averaged weights under the model's own names."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything a resumed run needs; the tensors are the average's own."""

    def load_state_dict(self, state: Any) -> object:
        """Restore `state_dict`."""
