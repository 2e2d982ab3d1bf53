"""Which optimizer updates what, and its state as named tensors.

Muon: the matrices inside the blocks, with --optimizer muon. Adagrad: the n-gram tables. AdamW: all
else, with weight decay on matrices and embeddings only.

Source: Loshchilov and Hutter 2019 (arXiv:1711.05101); muon.py.
"""

from torch import Tensor

from common.errors import CheckpointError
from common.models.gpt import GPT
from train.config import TrainConfig
from train.distributed.fsdp import shard_like
from train.optim.adagrad import Adagrad
from train.optim.adamw import AdamW
from train.optim.muon import Muon


class OptimizerGroup:
    """Optimizers of different parameters, used as one."""

    def __init__(self, *optimizers: AdamW | Muon | Adagrad) -> None:
        self.optimizers = optimizers

    def set_lr(self, lr: float) -> None:
        """Set the schedule's learning rate, and each optimizer's in proportion."""
        for optimizer in self.optimizers:
            optimizer.lr = lr * optimizer.ratio

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for optimizer in self.optimizers:
            for parameter in optimizer.params:
                parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self, model: GPT) -> dict[str, Tensor]:
        """Return the state by name, e.g. ``wte.weight:exp_avg``."""
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        return {
            f"{names[parameter]}:{key}": value
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state_dict(self, model: GPT, tensors: dict[str, Tensor]) -> None:
        """Put back what state_dict() returned, in place of all state.

        Raises: CheckpointError when the names are not those of this model.
        """
        by_name = dict(model.named_parameters())
        optimizer_of = {p: optimizer for optimizer in self.optimizers for p in optimizer.params}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition(":")
            if name not in by_name:
                raise CheckpointError(
                    f"optimizer.safetensors holds {full_name}, which this model has not: "
                    "it belongs to another run."
                )
            parameter = by_name[name]
            state = optimizer_of[parameter].state.setdefault(parameter, {})
            if value.shape == parameter.shape:
                value = shard_like(value, parameter)
            state[key] = value.to(parameter.device)


def make_optimizer(model: GPT, config: TrainConfig) -> OptimizerGroup:
    """Return the optimizers that the config names, over all of the model's parameters."""

    def ratio(peak_lr: float | None) -> float:
        """Return an optimizer's peak over the schedule's; None: it is --learning-rate."""
        peak_lr = config.learning_rate if peak_lr is None else peak_lr
        return peak_lr / config.base_lr if config.base_lr else 0.0

    def adamw(params: list[Tensor], weight_decay: float) -> AdamW:
        betas = (config.beta1, config.beta2)
        return AdamW(params=params, betas=betas, weight_decay=weight_decay, ratio=ratio(None))

    tables = list(model.wge.parameters())
    # neither embeddings nor the head, which learn better by AdamW: Jordan et al. 2024
    hidden = [p for block in model.h for p in block.parameters() if p.dim() == 2]
    by_muon = hidden if config.optimizer == "muon" else []
    others = {id(p) for p in (*by_muon, *tables)}
    by_adamw: list[Tensor] = [p for p in model.parameters() if id(p) not in others]
    optimizers: list[AdamW | Muon | Adagrad] = [
        adamw([p for p in by_adamw if p.dim() >= 2], config.weight_decay),
        adamw([p for p in by_adamw if p.dim() < 2], 0.0),
    ]
    if by_muon:
        optimizers.append(
            Muon(
                params=by_muon,
                rows=_qkv_rows(model),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                ratio=ratio(config.matrix_lr),
            )
        )
    if tables:
        optimizers.append(Adagrad(params=tables, ratio=ratio(config.table_lr)))
    optimizer = OptimizerGroup(*optimizers)
    optimizer.set_lr(config.base_lr)
    return optimizer


def _qkv_rows(model: GPT) -> dict[Tensor, list[int]]:
    """Return the rows of queries, keys and values in each c_attn: three matrices in one."""
    c = model.config
    sizes = [heads * c.head_size for heads in (c.n_head, c.kv_heads, c.kv_heads)]
    return {p: sizes for name, p in model.named_parameters() if name.endswith("attn.c_attn.weight")}
