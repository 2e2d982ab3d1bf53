"""An exported graph against our own network, run by onnxruntime as any other would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import quantize_dynamic
from tokenizers import Tokenizer as TheirTokenizer

from common.errors import ConfigError
from common.inference.backend import make_backend
from common.inference.decoder import Decoder, generate
from common.models.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.models.ngram import NO_TAG, tag_ngrams
from sample.export.run import export_run
from sample.text.prompt import CHAT, Message, encode
from tests.common.huggingface.hostile import hostile_strings
from tests.processes import REPOSITORY, run_python
from tests.sample.chats import BYTES, END, make_chat_run
from tests.sample.export.test_hf import make_run
from tests.tiny import random_model

MODERN, GPT2 = ARCHITECTURES["modern"], ARCHITECTURES["gpt2"]
SIZES: dict[str, Any] = {"block_size": 256, "n_layer": 1, "n_head": 4, "n_embd": 32}
TINY = MODERN | {
    "mlp": "relu2",
    "ngrams": 3,
    "ngram_rows": 97,
    "ngram_dim": 7,
    "ngram_min_count": 2,
}
POST_NORM = GPT2 | {
    "norm_first": False, "positions": "sinusoidal", "mlp": "relu", "head_bias": True,
    "n_kv_head": 1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {"tiny": TINY, "gpt2": GPT2}
MORE_CASES: dict[str, dict[str, Any]] = {
    "two layers": TINY | {"n_layer": 2},
    "modern": MODERN | {"n_kv_head": 2, "head_dim": 12},
    "modern, untied": MODERN | {"tied_head": False, "pad_vocab": 64, "rope_theta": 1e6},
    "llama": MODERN | {"qk_norm": False, "norm_eps": 1e-5},
    "arcee": TINY | {"ngrams": 0, "qk_norm": False},
    "post-norm": POST_NORM,
    "longer n-grams": GPT2
    | {"ngrams": 5, "ngram_dim": 7, "mlp": "gelu_erf", "bias": False, "pad_vocab": 64},
}
Arrays = dict[str, npt.NDArray[Any]]


class Graph:
    """What a user of the folder writes: a session, and the cache from one call to the next."""

    def __init__(self, folder: Path) -> None:
        options = SessionOptions()
        options.intra_op_num_threads = 1
        self.session = InferenceSession(str(folder / "model.onnx"), options)

    def empty(self, n_rows: int) -> Arrays:
        sizes = {"batch_size": n_rows, "past_sequence_length": 0}
        dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        return {
            each.name: np.zeros([sizes.get(n, n) for n in each.shape], dtypes[each.type])
            for each in self.session.get_inputs()
            if each.name != "input_ids"
        }

    def run(self, idx: Any, past: Arrays) -> tuple[torch.Tensor, Arrays]:
        out = self.session.run(None, {"input_ids": np.asarray(idx, np.int64)} | past)
        names = [
            each.name.replace("present", "past_key_values") for each in self.session.get_outputs()
        ]
        found = dict(zip(names, out, strict=True))
        return torch.from_numpy(found.pop("logits")), found


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)]
)
def test_onnxruntime_computes_the_same(case: str, tmp_path: Path) -> None:
    shape = ModelConfig(vocab_size=BYTES.vocab_size, **SIZES | (CASES | MORE_CASES)[case])
    model, out = random_model(shape), tmp_path / "out"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.3)  # else attention is all on one token
    idx = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    if shape.ngram_min_count:  # so that the text has n-grams that are in the tables
        for buffer in model.wge.buffers():
            buffer.fill_(NO_TAG)
        tag_ngrams(model.wge, idx.flatten().numpy(), 1)
    make_run(tmp_path / "runs", model, BYTES)
    export_run("x", out, "onnx", "float32", tmp_path / "runs", "best")
    onnx.checker.check_model(out / "model.onnx", full_check=True)
    graph = Graph(out)
    with torch.inference_mode():
        ours = model(idx)
    assert ours.std() > 0.3  # nothing is near zero by itself
    theirs, _ = graph.run(idx, graph.empty(2))  # a prompt whole
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    past = graph.empty(2)
    for begin, end in [(0, 7), *((i, i + 1) for i in range(7, 40))]:  # and a token at a time
        theirs, past = graph.run(idx[:, begin:end], past)
        torch.testing.assert_close(theirs, ours[:, begin:end], atol=1e-4, rtol=0)
    config, prompt = GenerateConfig(max_new_tokens=200, temperature=0), idx[0, :8].tolist()
    tokens = [token.idx for token in generate(Decoder(make_backend(model), BYTES), prompt, config)]
    greedy: list[int] = []
    new, past = prompt, graph.empty(1)
    while len(greedy) < 200:
        logits, past = graph.run([new], past)
        new = [int(logits[0, -1, :256].argmax())]  # the special tokens behind never stand for text
        greedy += new
    assert tokens == greedy


def test_linear_maps_are_quantized_as_they_are_written(tmp_path: Path) -> None:
    shape = ModelConfig(vocab_size=BYTES.vocab_size, **SIZES | TINY | {"n_layer": 2})
    make_run(tmp_path / "runs", random_model(shape), BYTES)
    export_run("x", tmp_path / "out", "onnx", "float32", tmp_path / "runs", "best")
    quantize_dynamic(tmp_path / "out" / "model.onnx", tmp_path / "int8.onnx")
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    # four a layer, and the n-grams': weights that are turned in the graph are left out
    assert [node.op_type for node in nodes].count("MatMulInteger") == 2 * 4 + 1


@pytest.mark.parametrize("positions", ["rope", "sinusoidal", "learned"])
@pytest.mark.parametrize("block_size", [1, 20_000])
def test_contexts_are_of_any_length(block_size: int, positions: str, tmp_path: Path) -> None:
    sizes = SIZES | {"block_size": block_size, "positions": positions}
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **GPT2 | sizes))
    make_run(tmp_path / "runs", model, BYTES)
    export_run("x", tmp_path / "out", "onnx", "float32", tmp_path / "runs", "best")
    # past bug: tables of positions were in it, once and again
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 100_000
    graph, idx = Graph(tmp_path / "out"), torch.tensor([[7]])
    with torch.inference_mode():
        ours = model(idx)
    theirs, past = graph.run(idx, graph.empty(1))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    if block_size > 1:
        with torch.inference_mode():
            ours = model(torch.tensor([[7, 3]]))[:, 1:]
        theirs, _ = graph.run([[3]], past)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_a_run_that_answers_is_run_from_its_folder_alone(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    out = tmp_path / "out"
    export_run("talk", out, "onnx", "float32", tmp_path / "runs", "best")
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert str(REPOSITORY).encode() not in (out / "model.onnx").read_bytes()  # of code traced
    tokenizer = TheirTokenizer.from_file(str(out / "tokenizer.json"))
    prompt = tokenizer.encode("<|user|>Hello<|end|><|assistant|>").ids
    assert prompt == encode([Message("user", "Hello")], CHAT, BYTES)
    answer: list[int] = []
    graph, new = Graph(out), prompt
    past = graph.empty(1)
    ends = json.loads((out / "generation_config.json").read_bytes())["eos_token_id"]
    while not answer or answer[-1] not in ends:
        logits, past = graph.run([new], past)
        new = [int(logits[0, -1].argmax())]
        answer += new
    assert answer == [*b"Good day.", END]
    tokenizer.encode_special_tokens = True  # as in Quern no text is encoded into them
    for text in hostile_strings(0, 200):
        assert tokenizer.encode(text).ids == BYTES.encode(text)
    assert {path.name for path in out.iterdir()} == {
        "model.onnx", "model.onnx_data", "config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip


@pytest.mark.slow
def test_the_command_says_one_line(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    ended = run_python(["-m", "sample", "export", "talk", "out", "--to", "onnx"], tmp_path)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    (said,) = ended.stderr.splitlines()  # and no word of PyTorch's exporter
    assert said.startswith("out: float32, of runs/talk/step-")
    assert said.endswith(". The graph is model.onnx, its weights model.onnx_data.")


def test_other_numbers_than_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype is float16, but --to onnx takes float32"):
        export_run("x", tmp_path / "out", "onnx", "float16", tmp_path / "runs", "best")
