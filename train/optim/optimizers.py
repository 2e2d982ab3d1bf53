"""Which optimizer updates what, and its state as named tensors.

    Muon      the matrices inside the blocks, with --optimizer muon (muon.py)
    Adagrad   the n-gram tables
    AdamW     all else, with weight decay on matrices and embeddings only

Each keeps its state for a shard as it has the parameter: DTensors, updated through their local
tensors. None is a torch.optim.Optimizer: that class imports torch's compiler the first time it is
used, which takes as long as importing torch itself: much of a run of ten seconds.

Sources: AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101); Adagrad: Duchi, Hazan and Singer
2011, "Adaptive subgradient methods for online learning and stochastic optimization".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from common.models.gpt import GPT
from train.config import TrainConfig
from train.distributed.fsdp import full_tensor, shard_like, to_local
from train.optim.lora import unmerged
from train.optim.muon import Muon

VALUE = "value"  # of a parameter, where state names its moments "exp_avg" and so on
ADAMW_EPS = 1e-8
# In mean squared gradients of the first step. Without, 3.5 % more bits a byte after 1.5 epochs of
# wikitext-2; 10 to 100 are nearly the same: tests/bench/RECIPE.md.
DAMPING = 30.0
ADAGRAD_EPS = 1e-10  # keeps 0 from being divided by 0
ONE_THREAD_SUM = 1 << 15  # numbers that torch sums alike with any number of threads


@dataclass(eq=False, kw_only=True)
class AdamW:
    """Updates ``params`` at the rate ``lr``, by PyTorch's fused kernel."""

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
        for p in params:
            if p not in self.state:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                }
        states = [self.state[p] for p in params]
        adamw(
            [to_local(p) for p in params],
            [to_local(p.grad) for p in params if p.grad is not None],
            [to_local(state["exp_avg"]) for state in states],
            [to_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=ADAMW_EPS,
            maximize=False,
        )


@dataclass(eq=False, kw_only=True)
class Adagrad:
    """Updates embedding tables at the rate ``lr``, of each only the rows that have a gradient.

    A row's rate falls with the sum of its own squared gradients, so that a rare one still learns
    fast - but not at full rate from its first gradient on, or it would memorize the few texts that
    it occurs in: each row begins as if it had had DAMPING gradients.
    """

    params: Sequence[Tensor]
    lr: float = 0.0
    ratio: float = 1.0  # of this rate to the schedule's
    state: dict[Tensor, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update every row that has a gradient; a dense gradient has all of them."""
        for p in self.params:
            if p.grad is None:
                continue
            if p not in self.state:
                self.state[p] = {"sum": torch.full_like(p, DAMPING * _mean_square(p.grad))}
            sum_ = self.state[p]["sum"]
            if p.grad.is_sparse:
                gradient = p.grad.coalesce()
                rows, g = gradient._indices()[0], gradient._values()  # (n,) and (n, C)
                row_sum = torch.addcmul(sum_[rows], g, g)
                sum_.index_copy_(0, rows, row_sum)
                p.index_add_(0, rows, g / row_sum.sqrt_().add_(ADAGRAD_EPS), alpha=-self.lr)
            else:
                local_sum, g = to_local(sum_), to_local(p.grad)
                local_sum.addcmul_(g, g)
                to_local(p).addcdiv_(g, local_sum.sqrt().add_(ADAGRAD_EPS), value=-self.lr)


def _mean_square(gradient: Tensor) -> float:
    """Return the mean of the squares of a gradient's values that are not 0."""
    values = gradient.coalesce()._values() if gradient.is_sparse else gradient
    squares = values.square()
    parts = torch.split(squares.flatten(), ONE_THREAD_SUM) if gradient.is_sparse else [squares]
    total = sum(float(full_tensor(part.sum())) for part in parts)
    count = full_tensor((values != 0).sum())
    return total / max(1, int(count))


class OptimizerGroup:
    """Optimizers of the parameters of ``model``, each of some, used as one."""

    def __init__(self, model: GPT, *optimizers: AdamW | Muon | Adagrad) -> None:
        self.optimizers = optimizers
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._unmerged = unmerged(model)  # weights that a saved network has only the sum of

    def set_lr(self, lr: float) -> None:
        """Set the schedule's learning rate, and each optimizer's in proportion."""
        for optimizer in self.optimizers:
            optimizer.lr = lr * optimizer.ratio

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state by name, e.g. ``wte.weight:exp_avg``."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        tensors = {
            f"{names[parameter]}:{key}": value
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        return tensors | {f"{name}:{VALUE}": p.detach() for name, p in self._unmerged.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Put back what state_dict() returned, in place of all state; weights only of adapters."""
        state_of = {p: optimizer.state for optimizer in self.optimizers for p in optimizer.params}
        for state in state_of.values():
            state.clear()
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition(":")
            parameter = self._parameters[name]
            if key == VALUE:
                parameter.data.copy_(value)
                continue
            if value.shape == parameter.shape:
                value = shard_like(value, parameter)
            state_of[parameter].setdefault(parameter, {})[key] = value.to(parameter.device)


def make_optimizer(model: GPT, config: TrainConfig) -> OptimizerGroup:
    """Return the optimizers that the config names, over all of the model's parameters."""

    def ratio(peak_lr: float | None) -> float:
        """Return an optimizer's peak over the schedule's; None: it is --learning-rate."""
        peak_lr = config.learning_rate if peak_lr is None else peak_lr
        return peak_lr / config.base_lr if config.base_lr else 0.0

    # neither embeddings nor the head, which learn better by AdamW: Jordan et al. 2024
    matrices = [p for p in model.h.parameters() if p.dim() == 2]
    hidden = matrices if config.optimizer == "muon" else []
    tables = list(model.wge.parameters())
    assigned = {*hidden, *tables}
    others = [p for p in model.parameters() if p not in assigned]
    make_adamw = partial(AdamW, betas=(config.beta1, config.beta2), ratio=ratio(None))
    optimizer = OptimizerGroup(
        model,
        make_adamw(params=[p for p in others if p.dim() >= 2], weight_decay=config.weight_decay),
        make_adamw(params=[p for p in others if p.dim() < 2], weight_decay=0.0),
        Muon(
            params=hidden,
            split_sizes=_qkv_rows(model),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            ratio=ratio(config.matrix_lr),
        ),
        Adagrad(params=tables, ratio=ratio(config.table_lr)),
    )
    optimizer.set_lr(config.base_lr)
    return optimizer


def _qkv_rows(model: GPT) -> dict[Tensor, list[int]]:
    """Return the rows of queries, keys and values in each c_attn: three matrices in one."""
    c = model.config
    sizes = [heads * c.head_size for heads in (c.n_head, c.kv_heads, c.kv_heads)]
    return {p: sizes for name, p in model.named_parameters() if name.endswith("attn.c_attn.weight")}
