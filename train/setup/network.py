"""The network of a run before its first step."""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file

from common.checkpoint import MODEL_NAME
from common.dataset import Ids
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.ngram import tag_ngrams
from train.config import TrainConfig
from train.distributed import fsdp
from train.distributed.comm import ProcessGroup
from train.optim.lora import add_lora

log = logging.getLogger(__name__)


def initial_model(
    shape: ModelConfig, config: TrainConfig, init_from: Path | None, ids: Ids | None = None
) -> GPT:
    """Return the network before its first step: drawn from the seed, or another run's.

    Of ``ids``, those to train on, tables hold the n-grams that --ngram-min-count names, beside
    another run's.
    """
    torch.manual_seed(config.seed)
    model = GPT(shape, zero_init=config.zero_init)
    if init_from is not None:
        model.load_state_dict(load_file(init_from / MODEL_NAME))
    if shape.ngram_min_count and ids is not None:
        tag_ngrams(model.wge, ids, shape.ngram_min_count)
    add_lora(model, config.lora, config.lora_alpha, config.seed)
    return model


def parallelize(model: GPT, config: TrainConfig, device: Device, group: ProcessGroup) -> GPT:
    """Return ``model`` in training mode, of which each rank keeps a shard with --shard."""
    if config.shard and not group.is_distributed:
        log.warning("--shard is for several processes: torchrun starts them. This one keeps all.")
    model.train()
    return fsdp.apply_fsdp(model, device) if config.shard and group.is_distributed else model
