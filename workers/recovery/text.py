"""The text of a recovery, and what the base makes of it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """Windows (w, length) of tokens, int64. The first `held_out` of them judge; they are never
    trained on.

    `taught` returns the base's last hidden states (length, hidden) of the window of a number: exact
    logits are its head's product with them, so nothing of the base is computed again.
    """

    windows: Tensor
    held_out: int
    taught: Callable[[int], Tensor]

    @property
    def judges(self) -> Tensor:
        """The numbers of the windows that judge."""
        return torch.arange(self.held_out)

    @property
    def trained(self) -> Tensor:
        """The numbers of the windows to train on."""
        return torch.arange(self.held_out, len(self.windows))

    def teach(self, rows: Tensor) -> Tensor:
        """Return the base's last hidden states (rows, length, hidden) of some windows."""
        return torch.stack([self.taught(row) for row in rows.tolist()])
