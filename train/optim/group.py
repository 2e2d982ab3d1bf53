"""Which optimizer updates what, and its state as named tensors.

Muon where asked for and where it is made for: the matrices inside the blocks. Adagrad for n-gram
tables. AdamW for all else, with decay on matrices and embeddings only.

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
        for part in self.optimizers:
            part.lr = lr * part.ratio

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.optimizers:
            for parameter in part.params:
                parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.optimizers:
            part.step()


def make_optimizer(model: GPT, config: TrainConfig) -> OptimizerGroup:
    """Return what the config asks for, over all of the model's parameters."""
    by_muon = hidden_matrices(model) if config.optimizer == "muon" else []
    tables = list(model.wge.parameters())
    theirs = {id(p) for p in (*by_muon, *tables)}
    others: list[Tensor] = [p for p in model.parameters() if id(p) not in theirs]
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    matrices, vectors = [p for p in others if p.dim() >= 2], [p for p in others if p.dim() < 2]
    optimizers: list[AdamW | Muon | Adagrad] = [
        AdamW(params=matrices, betas=betas, weight_decay=decay, ratio=_ratio(None, config)),
        AdamW(params=vectors, betas=betas, weight_decay=0.0, ratio=_ratio(None, config)),
    ]
    if by_muon:
        optimizers.append(
            Muon(
                params=by_muon,
                rows=attention_rows(model),
                momentum=config.momentum,
                weight_decay=decay,
                ratio=_ratio(config.matrix_lr, config),
            )
        )
    if tables:
        optimizers.append(Adagrad(params=tables, ratio=_ratio(config.table_lr, config)))
    optimizer = OptimizerGroup(*optimizers)
    optimizer.set_lr(config.base_lr)
    return optimizer


def _ratio(peak_lr: float | None, config: TrainConfig) -> float:
    """Return an optimizer's peak over the schedule's; None: it is --learning-rate."""
    peak_lr = config.learning_rate if peak_lr is None else peak_lr
    return peak_lr / config.base_lr if config.base_lr else 0.0


def hidden_matrices(model: GPT) -> list[Tensor]:
    """Return the matrices inside the blocks: neither embeddings nor the head, whose rows are ids.

    Source: Jordan et al. 2024: embeddings and head learn better by AdamW.
    """
    return [p for block in model.h for p in block.parameters() if p.dim() == 2]


def attention_rows(model: GPT) -> dict[Tensor, list[int]]:
    """Return the rows of queries, keys and values in each c_attn: three matrices in one."""
    c = model.config
    sizes = [heads * c.head_size for heads in (c.n_head, c.kv_heads, c.kv_heads)]
    return {p: sizes for name, p in model.named_parameters() if name.endswith("attn.c_attn.weight")}


def optimizer_state_dict(optimizer: OptimizerGroup, model: GPT) -> dict[str, Tensor]:
    """Return the optimizer's state by name, e.g. ``wte.weight:exp_avg``."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[parameter]}:{key}": value
        for part in optimizer.optimizers
        for parameter, state in part.state.items()
        for key, value in state.items()
    }


def load_optimizer_state_dict(
    optimizer: OptimizerGroup, model: GPT, tensors: dict[str, Tensor]
) -> None:
    """Put back what optimizer_state_dict returned.

    Raises: CheckpointError when the names are not those of this model.
    """
    by_name = dict(model.named_parameters())
    optimizer_of = {parameter: part for part in optimizer.optimizers for parameter in part.params}
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
