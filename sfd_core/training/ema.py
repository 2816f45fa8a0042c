"""Exponential moving average of a network's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_UPDATES = "updates"
_WEIGHTS = "weights."


class EMA:
    """Moving average of a model's trained weights; what is not trained is copied as it is.

    With `warmup` update i (from 0) decays by min(decay, (1 + i) / (10 + i)), so that a young average does not hold on
    to the random start; the public code decays by `decay` from the first step.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self._shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._averaged = [name for name in self._shadow if name in trained]
        self._copied = [name for name in self._shadow if name not in trained]

    @property
    def current_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`, which must have the names and shapes of the averaged one."""
        state = model.state_dict()
        shadows = [self._shadow[name] for name in self._averaged]
        torch._foreach_lerp_(shadows, [state[name] for name in self._averaged], 1 - self.current_decay)
        for name in self._copied:
            self._shadow[name].copy_(state[name])
        self.updates += 1

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin anew from the weights as they are now, in shards where they are in shards."""
        self._shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.updates = 0

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights under the model's names; they keep changing with further updates."""
        return dict(self._shadow)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as flat tensors."""
        return {_UPDATES: torch.tensor(self.updates), **{_WEIGHTS + name: value for name, value in self._shadow.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = int(state[_UPDATES])
        for name, value in self._shadow.items():
            value.copy_(state[_WEIGHTS + name])
