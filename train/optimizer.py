"""AdamW with decay on matrices only, and its state as named tensors.

Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
"""

import torch
from torch import Tensor

from common.errors import CheckpointError
from common.model import GPT
from train.config import TrainConfig


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the model: matrices and embeddings decay, norms and biases do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def optimizer_tensors(optimizer: torch.optim.AdamW, model: GPT) -> dict[str, Tensor]:
    """Return the optimizer's state by name, e.g. ``wte.weight:exp_avg``."""
    return {
        f"{name}:{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.AdamW, model: GPT, tensors: dict[str, Tensor]
) -> None:
    """Put back what optimizer_tensors returned.

    Raises: CheckpointError when the names are not those of this model.
    """
    by_name = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(":")
        if name not in by_name:
            raise CheckpointError(
                f"optimizer.safetensors holds {full_name}, which this model has not: "
                "it belongs to another run."
            )
        parameter = by_name[name]
        device = parameter.device if key != "step" or parameter.device.type == "cuda" else "cpu"
        optimizer.state[parameter][key] = value.to(device)
