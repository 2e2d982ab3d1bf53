"""AdamW by PyTorch's fused kernel, without torch.optim.Optimizer around it.

That class imports torch's compiler the first time it is used, which takes as long as importing
torch itself: much of a run of ten seconds.

Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from train.distributed.fsdp import to_local

EPS = 1e-8
FUSED = ("cpu", "cuda", "mps", "xpu")  # devices on which AdamW is one kernel


@dataclass(eq=False, kw_only=True)
class AdamW:
    """Updates ``params`` at the rate ``lr``, which is to be set before each step."""

    params: Sequence[Tensor]
    betas: tuple[float, float]
    weight_decay: float
    lr: float = 0.0
    ratio: float = 1.0  # of this rate to the schedule's
    state: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        params = [p for p in self.params if p.grad is not None]
        if not params:
            return
        for p in params:
            if p not in self.state:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                }
        states = [self.state[p] for p in params]
        fused = params[0].device.type in FUSED
        adamw(
            [to_local(p) for p in params],
            [to_local(p.grad) for p in params if p.grad is not None],
            [to_local(state["exp_avg"]) for state in states],
            [to_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            foreach=not fused,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=EPS,
            maximize=False,
        )
