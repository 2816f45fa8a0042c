"""Which images make the batch of a step: a function of the seed and the step alone, so that a resumed run continues it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfd_core.host.errors import ConfigError
from sfd_core.host.seeding import generator


@dataclass
class BatchOrder:
    """Epochs of all images, each in its own random order; a batch may span two epochs.

    Raises `ConfigError` when a batch is larger than the data set.
    """

    images: int
    batch_size: int
    seed: int
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size > self.images:
            raise ConfigError(
                f"batch_size {self.batch_size} is larger than the data set of {self.images} training images; "
                "lower batch_size or prepare more images"
            )

    def rows(self, step: int) -> Tensor:
        """Return the rows (batch_size,) of the batch of `step`, counted from 0."""
        position = step * self.batch_size
        rows: list[Tensor] = []
        left = self.batch_size
        while left:
            epoch, offset = divmod(position, self.images)
            part = self._order(epoch)[offset : offset + left]
            rows.append(part)
            position += len(part)
            left -= len(part)
        return torch.cat(rows)

    def mirrored(self, step: int) -> Tensor:
        """Return for each image of the batch whether its mirror image is taken (batch_size,), bool."""
        return torch.rand(self.batch_size, generator=generator(self.seed, "mirror", step)) < 0.5

    def _order(self, epoch: int) -> Tensor:
        order = self._orders.get(epoch)  # another thread may replace them at any moment
        if order is None:
            order = torch.randperm(self.images, generator=generator(self.seed, "order", epoch))
            self._orders = {kept: value for kept, value in self._orders.items() if kept == epoch - 1} | {epoch: order}
        return order
