"""A network as one ONNX graph with its KV cache, which onnxruntime runs: in browsers, on phones.

    input_ids                    (B, T)            ->  logits               (B, T, V)
    past_key_values.I.key/value  (B, n_kv, P, hs)  ->  present.I.key/value  (B, n_kv, P + T, hs)
    past_key_values.ids          (B, P)            ->  present.ids          (B, P + T)

A text begins with a past of P = 0 tokens; what comes out as present is the past of the tokens that
follow. The ids are there with n-gram tables only. The names are optimum's and transformers.js's.
Rows have no padding: their texts are of one length, P + T up to the context.

Traced is what generates by PyTorch's operators, so that every network can be exported.
"""

import logging
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir.passes.common
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError
from common.huggingface.network import Weight, config_json
from common.inference.torch_backend import TorchBackend
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.ngram import shifted_ids
from sample.weights_file import read_tensor

NAME, DATA_NAME = "model.onnx", "model.onnx_data"  # as transformers.js knows them
OPSET = 20  # of 2023: onnxruntime 1.17 and newer


class WithCache(nn.Module):
    """A network that takes the keys and values of a text so far, and gives those of all of it."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, past: list[Tensor], past_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return logits and the present, of ids (B, T); ``past`` are keys, values, keys ..."""
        backend, c = TorchBackend(self.model), self.model.config
        (B, T), P = input_ids.shape, past[0].shape[2]  # noqa: N806
        positions = torch.arange(P, P + T)
        mask = torch.arange(P + T) <= positions[:, None]  # (T, P + T)
        ids = input_ids if past_ids is None else torch.cat((past_ids, input_ids), dim=1)
        recent = [each[:, -T:] for each in shifted_ids(ids, c.n_recent)]
        present: list[Tensor] = []

        def attend(layer: int, heads: Tensor) -> Tensor:
            q, k, v = torch.split(heads.transpose(1, 2), [c.n_head, c.kv_heads, c.kv_heads], dim=1)
            k = torch.cat((past[2 * layer], k), dim=2)
            v = torch.cat((past[2 * layer + 1], v), dim=2)
            present.extend((k, v))
            y = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=c.n_head != c.kv_heads)
            return y.transpose(1, 2).flatten(2)

        hidden = backend.hidden(recent, positions.expand(B, T), attend)
        logits = F.linear(hidden, backend.head_weight, backend.head_bias)
        return (logits, *present, *([] if past_ids is None else [ids]))


def write_onnx(model: GPT, source: Path, folder: Path) -> None:
    """Write the graph and, in a file beside it, which may be larger than 2 GB, the weights.

    They are read from ``source``, a checkpoint's file, into which the model's are mapped. PyTorch's
    exporter takes 180 MB beside the 250 that PyTorch and the program take, of small networks too.
    """
    c = model.config
    names = [f"{layer}.{kind}" for layer in range(c.n_layer) for kind in ("key", "value")]
    # sizes that differ from each other, and from 0 and 1, are not taken for constants
    past = [torch.zeros(2, c.kv_heads, 3, c.head_size) for _ in names]  # one tensor would be one
    inputs: list[Any] = [torch.zeros(2, 5, dtype=torch.int64), past]
    batch, length = "batch_size", "past_sequence_length"  # transformers.js looks for the first
    sizes: list[Any] = [{0: batch, 1: "sequence_length"}, [{0: batch, 2: length}] * len(names)]
    if c.ngrams > 1:
        names.append("ids")
        inputs.append(torch.zeros(2, 3, dtype=torch.int64))
        sizes.append({0: batch, 1: length})
    for module in ("torch.onnx", "onnxscript", "onnx_ir"):  # what each step has changed
        logging.getLogger(module).setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        program: Any = torch.onnx.export(
            WithCache(model).eval(),
            tuple(inputs),
            input_names=["input_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            opset_version=OPSET,
            dynamic_shapes=sizes,
            verbose=False,
        )
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)  # paths of our code
    weights = {tensor.data_ptr(): name for name, tensor in model.state_dict().items()}
    for value in program.model.graph.initializers.values():
        view = torch.from_numpy(value.const_value.numpy())  # linear maps have been transposed
        if name := weights.get(view.data_ptr()):
            read = partial(read_view, source, name, view)
            value.const_value = onnx_ir.LazyTensor(read, value.dtype, value.shape, name=value.name)
    onnx_ir.save(program.model, folder / NAME, external_data=DATA_NAME)


def read_view(source: Path, name: str, view: Tensor) -> onnx_ir.TensorProtocol:
    """Return what ``view`` is of a tensor in a file, read anew: what is mapped stays in memory."""
    whole = read_tensor(source, Weight(name, name), "float32")
    return onnx_ir.tensor(whole.as_strided(view.shape, view.stride()).contiguous())


def settings_of(c: ModelConfig) -> dict[str, Any]:
    """Return config.json: that of transformers' class, where there is one."""
    try:
        found = config_json(c)
    except ConfigError:
        found = {"model_type": "quern", "quern": asdict(c)}
    found.pop("auto_map", None)  # names code that the folder has not
    return found | {"transformers.js_config": {"use_external_data_format": True}}
