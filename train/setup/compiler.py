"""The forward pass, compiled where that works.

Compiling is a gain and never a condition: whatever fails in it, at wrapping or at a call, for lack
of a C++ compiler or Triton or by an error of its own, is one warning, and the network runs eagerly.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class CompiledForward:
    """Calls a model for its loss; the model itself stays as it is, and so do its names on disk."""

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        self._model = model
        self._forward: Callable[..., Tensor] = model
        if compiled:
            self.compile()

    @property
    def compiled(self) -> bool:
        """Whether calls go to compiled code."""
        return self._forward is not self._model

    def compile(self) -> None:
        """Compile, at the next call."""
        try:
            # dynamic=False: a run has one shape, and another one after out-of-memory
            self._forward = torch.compile(self._model, dynamic=False)
        except Exception as error:
            self.fall_back(error)

    def use_eager(self) -> None:
        """Run the model itself from now on."""
        self._forward = self._model

    def fall_back(self, error: Exception) -> None:
        """Run eagerly from now on, and log why."""
        self.use_eager()
        kind = type(error).__name__
        reason = (str(error).strip() or kind).splitlines()[0]
        message = "compiling failed (%s: %s): going on without it. --compile off does not try."
        log.warning(message, kind, reason)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of targets ``y`` (B, T) after ids ``x`` (B, T)."""
        return self._forward(x, y)
