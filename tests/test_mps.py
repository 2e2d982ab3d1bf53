"""Of each operator that training and generation call, PyTorch has a kernel for Macs' GPUs.

PyTorch's own table says so, which is in its package; no MPS device computes here. A Mac's GPU has
no float64 either.
"""

import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from common.device import Device
from common.inference.decoder import Decoder, generate
from common.inference.torch_backend import TorchBackend
from common.models.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.models.gpt import GPT
from tests.tiny import prepare_text, words
from tests.train.runs import make_trainer
from train.config import TrainConfig
from train.evaluate import evaluate
from train.loop import update

MODERN = ARCHITECTURES["modern"]
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": MODERN | {"mlp": "relu2", "ngrams": 3, "ngram_rows": 97},
    "modern": MODERN | {"n_kv_head": 1},
    "gpt2": ARCHITECTURES["gpt2"],
}
CPU = Device(torch.device("cpu"), torch.float32, "a test")


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operator, and the types of what it is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        self.operators.add(func.name().removeprefix("aten::"))
        self.dtypes |= {each.dtype for each in args if isinstance(each, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def on_mps() -> set[str]:
    """Return the operators that have a kernel for MPS, or are made of others."""
    path = importlib.resources.files("torchgen") / "packaged/ATen/native/native_functions.yaml"
    table = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
    functions = {function["func"].partition("(")[0]: function for function in table}

    def has_kernel(name: str) -> bool:
        function = functions[name]
        kernels = ",".join(function.get("dispatch", {"Composite": name}))
        delegate = function.get("structured_delegate")
        return "MPS" in kernels or "Composite" in kernels or bool(delegate and has_kernel(delegate))

    return {name for name in functions if has_kernel(name)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_each_operator_has_a_kernel(name: str, on_mps: set[str], tmp_path: Path) -> None:
    assert "mode" not in on_mps  # of which there is none
    data = prepare_text(words(1_000), tmp_path)
    tokenizer = data.tokenizer()
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes | NETWORKS[name]))
    config = TrainConfig(optimizer="muon", tokens_per_step=64, max_steps=4)
    trainer = make_trainer(model, data, config, CPU, batch_size=2)
    for table in model.wge:
        assert isinstance(table, torch.nn.Embedding)
        table.sparse = False  # as on a GPU
    with Called() as called:
        update(trainer, 0, lr=1e-3)
        few = trainer.source.eval_batches("val", 64, 2)
        lengths = np.ones(tokenizer.vocab_size, np.int64)
        evaluate(model, few, lengths, CPU, trainer.group, trainer.source.objective)
        with torch.inference_mode():
            decoder = Decoder(TorchBackend(model.eval()), tokenizer)
            list(generate(decoder, tokenizer.encode("the quern"), GenerateConfig(max_new_tokens=4)))
    assert len(called.operators) > 50
    assert called.operators <= on_mps
    assert torch.float64 not in called.dtypes
