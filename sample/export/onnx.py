"""A network as one ONNX graph with its KV cache, which onnxruntime runs: in browsers, on phones.

    input_ids                    (B, T)            ->  logits               (B, T, V)
    past_key_values.I.key/value  (B, n_kv, P, hs)  ->  present.I.key/value  (B, n_kv, P + T, hs)
    past_key_values.ids          (B, P)            ->  present.ids          (B, P + T)

A text begins with a past of P = 0 tokens; what comes out as present is the past of the tokens that
follow. The ids are there with n-gram tables only. The names are optimum's and transformers.js's.
Rows have no padding: their texts are of one length, P + T up to the context.

Traced is what generates by PyTorch's operators, so that every network can be exported. That is done
by PyTorch's exporter of TorchScript: the one by torch.export needs 150 MB more.
"""

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn
from torch.onnx import register_custom_op_symbolic  # type: ignore[attr-defined]
from torch.onnx.symbolic_helper import parse_args

from common.huggingface.network import Weight
from common.inference.torch_backend import TorchBackend
from common.models.gpt import GPT
from common.models.ngram import shifted_ids
from sample.weights_file import read_tensor

NAME, DATA_NAME = "model.onnx", "model.onnx_data"  # as transformers.js knows them
OPSET = 20  # of 2023: onnxruntime 1.17 and newer


def with_cache(model: GPT, weights: list[Tensor], input_ids: Tensor, *past: Tensor) -> list[Tensor]:
    """Return logits (B, T, V) and the present, of ids (B, T) and the past: keys, values, keys ...

    The ``weights``, in the order of the model's own, which they replace, are inputs of the graph:
    of parameters the exporter makes copies.
    """
    for name, weight in zip([*model.state_dict()], weights, strict=True):
        module, _, leaf = name.rpartition(".")
        # load_state_dict would detach each, which the trace keeps in memory
        delattr(model.get_submodule(module), leaf)
        setattr(model.get_submodule(module), leaf, weight)
    backend, c = TorchBackend(model), model.config
    T, P = input_ids.shape[1], past[0].shape[2]  # noqa: N806
    mask = torch.full((T, P + T), float("-inf")).triu(P + 1)
    ids = torch.cat((*past[2 * c.n_layer :], input_ids), dim=1)
    recent = [each[:, -T:] for each in shifted_ids(ids, c.n_recent)]
    present: list[Tensor] = []

    def attend(layer: int, heads: Tensor) -> Tensor:
        q, *kv = torch.split(heads.transpose(1, 2), [c.n_head, c.kv_heads, c.kv_heads], dim=1)
        kv = [torch.cat(pair, dim=2) for pair in zip(past[2 * layer :], kv, strict=False)]
        present.extend(kv)
        if c.n_head != c.kv_heads:
            kv = [x.repeat_interleave(c.n_head // c.kv_heads, dim=1) for x in kv]
        scores = q * c.head_size**-0.5 @ kv[0].transpose(2, 3) + mask
        return (torch.softmax(scores, dim=-1) @ kv[1]).transpose(1, 2).flatten(2)

    hidden = backend.hidden(recent, torch.arange(P, P + T)[None], attend)
    logits = nn.functional.linear(hidden, backend.head_weight, backend.head_bias)
    return [logits, *present, ids][: 1 + len(past)]


def write_onnx(model: GPT, source: Path, folder: Path) -> None:
    """Write the graph and, in a file beside it, which may be larger than 2 GB, the weights.

    They are read from ``source``, a checkpoint's file, a tensor at a time; the model loses its own.
    """
    c, tables = model.config, dict(model.named_buffers(recurse=False))
    for name, table in tables.items():
        model.register_buffer(name, table)  # in the state_dict: of positions, which no file holds
    names = [f"{layer}.{kind}" for layer in range(c.n_layer) for kind in ("key", "value")]
    past = {name: torch.zeros(2, c.kv_heads, 0, c.head_size) for name in names}
    past |= {"ids": torch.zeros(2, 0).long()} if c.ngrams > 1 else {}
    # transformers.js looks for the first name
    sizes = {name: {0: "batch_size", 1: "sequence_length"} for name in ("input_ids", "logits")}
    for name, x in past.items():
        at = x.dim() // 2  # (B, P), or (B, n_kv, P, hs)
        sizes[f"past_key_values.{name}"] = {0: "batch_size", at: "past_sequence_length"}
        sizes[f"present.{name}"] = {0: "batch_size", at: "total_sequence_length"}
    # a zero for all of each, which takes no memory: what is written is read from the file
    weights = {n: x.new_zeros(()).expand_as(x) for n, x in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)  # the file's map is let go
    traced, model = nn.Module(), model.requires_grad_(False)
    traced.forward = lambda *given: with_cache(model, *given)
    register_custom_op_symbolic("aten::rms_norm", rms_norm, OPSET)
    register_custom_op_symbolic("aten::__rshift_", shift_right, OPSET)  # without its last _
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            traced.eval(), ([*weights.values()], torch.zeros(2, 1).long(), *past.values()),
            folder / NAME, dynamic_axes=sizes, opset_version=OPSET, dynamo=False,
            input_names=[*weights, "input_ids", *(f"past_key_values.{name}" for name in past)],
            output_names=["logits", *(f"present.{name}" for name in past)],
        )  # fmt: skip
    program = onnx.load(folder / NAME)
    del program.graph.input[: len(weights)]
    sources = {name: name for name in weights}  # ours, by the name in the graph
    for node in [n for n in program.graph.node if n.op_type == "Transpose"]:
        if node.input[0] in weights:  # of a linear map, used once: written as it is multiplied
            sources[node.output[0]] = sources.pop(node.input[0])
            program.graph.node.remove(node)
    with (folder / DATA_NAME).open("wb") as data:
        for name, ours in sources.items():
            weight = Weight(name, ours, is_transposed=name != ours)
            values = tables[ours] if ours in tables else read_tensor(source, weight, "float32")
            # set_external_data asks for raw_data, which onnx.save would write
            tensor = program.graph.initializer.add(name=name, dims=values.shape, raw_data=b"")
            tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.numpy().dtype)
            set_external_data(tensor, DATA_NAME, data.tell(), data.write(values.numpy().data))
            tensor.ClearField("raw_data")
    onnx.save(program, folder / NAME)


@parse_args("v", "none", "v", "f")
def rms_norm(g: Any, x: Any, _: None, weight: Any, eps: float) -> Any:
    """Return the nodes of F.rms_norm over the last dimension, as onnxruntime knows them."""
    two, small, last = (g.op("Constant", value_t=torch.tensor(v)) for v in (2.0, eps, [-1]))
    mean = g.op("ReduceMean", g.op("Pow", x, two), last)
    normed = g.op("Div", x, g.op("Sqrt", g.op("Add", mean, small)))
    return normed if weight.node().mustBeNone() else g.op("Mul", normed, weight)


@parse_args("v", "i")
def shift_right(g: Any, x: Any, n: int) -> Any:
    """Return the nodes of x >> n; ONNX shifts numbers without sign alone, and divides to zero."""
    cut, size = (g.op("Constant", value_t=torch.tensor(v)) for v in (-1 << n, 1 << n))
    return g.op("Div", g.op("BitwiseAnd", x, cut), size)
