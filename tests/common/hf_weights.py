"""Our weights in transformers' networks: the architectures' oracles."""

from typing import Any

import transformers

from common.huggingface.network import config_json, weights_of
from common.models.gpt import GPT


def transformers_like(model: GPT) -> Any:
    """Return the network of transformers' that a model is exported as, with its weights."""
    settings = config_json(model.config)
    kind = getattr(transformers, settings["architectures"][0])
    theirs = kind(kind.config_class(**settings))
    ours = model.state_dict()
    weights = {weight.name: weight.of(ours[weight.source]) for weight in weights_of(model.config)}
    if model.config.tied_head:
        weights["lm_head.weight"] = model.wte.weight[: model.config.vocab_size]
    theirs.load_state_dict(weights, strict=True)
    return theirs.eval()
