"""The same generation by four programs from one run, exported to each: ratios to transformers.

llama.cpp is asked where llama-cpp-python is installed; it has no n-gram tables. All have as many
threads, begin with the same prompt, choose greedily, and must choose the same tokens in float32.

    python -m tests.bench sample
"""

import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from common.checkpoint import save_checkpoint
from common.files import write_json
from common.inference.cpu.backend import CpuBackend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from common.tokenizer import SPECIAL_TOKENS, CharTokenizer, Tokenizer
from sample.export.run import export_run
from tests.bench.table import compare

N_NEW = 128
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
GREEDY = GenerateConfig(max_new_tokens=N_NEW, temperature=0)
Generation = Callable[[], list[int]]  # the new tokens


def any_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a vocabulary of this size: generation only asks which ids stand for text."""
    return CharTokenizer(tuple(chr(0x10000 + i) for i in range(vocab_size - len(SPECIAL_TOKENS))))


def export_all(model: GPT, folder: Path) -> None:
    """Save a run, and export it to every program that takes its network."""
    c = model.config
    with torch.no_grad():  # no best id is a special token's, which others would choose
        model.head_weight[-len(SPECIAL_TOKENS) :] = 0
    run = new_run(folder / "runs", "x")
    write_json(run / "config.json", {"format": 1})
    progress = {"progress": {"step": 1, "n_tokens": 1}}
    save_checkpoint(run, 1, model, {}, progress, any_tokenizer(c.vocab_size))
    wanted = [("onnx", "onnx", "float32"), ("hf", "hf", "float32")]
    if not c.ngrams:
        wanted += [(f"{dtype}.gguf", "gguf", dtype) for dtype in ("float32", "q8_0")]
    for name, to, dtype in wanted:
        export_run("x", folder / name, to, dtype, folder / "runs", "best")
    # the head's weights are the embedding's, transposed: only once that is done they become bytes
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "onnx" / "whole.onnx")  # beside its data
    InferenceSession(str(folder / "onnx" / "model.onnx"), options)
    quantize_dynamic(folder / "onnx" / "whole.onnx", folder / "int8.onnx")


def ours(model: GPT, *, int8: bool) -> Generation:
    """Return our generation, without guesses, which say little of other text than this."""
    decoder = Decoder(CpuBackend(model, int8=int8), any_tokenizer(model.config.vocab_size))
    decoder.cache.max_batch_tokens = 1

    def generate() -> list[int]:
        decoder.admit(0, PROMPT, GREEDY)
        ids = [decoder.step()[0].idx for _ in range(N_NEW)]
        decoder.release(0)
        return ids

    return generate


def llama_cpp(path: Path) -> Generation:
    """Return llama.cpp's generation."""
    from llama_cpp import Llama

    n_threads = torch.get_num_threads()
    llama = Llama(
        str(path), n_ctx=len(PROMPT) + N_NEW, n_threads=n_threads, n_threads_batch=n_threads,
        verbose=False,
    )  # fmt: skip

    def generate() -> list[int]:
        llama.reset()
        return list(islice(llama.generate(PROMPT, temp=0), N_NEW))

    return generate


def onnxruntime(path: Path) -> Generation:
    """Return onnxruntime's generation."""
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(str(path), options)
    inputs = session.get_inputs()[1:]
    dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    sizes = {"batch_size": 1, "past_sequence_length": 0}

    def generate() -> list[int]:
        new, ids = PROMPT, []
        past: list[Any] = [
            np.zeros([sizes.get(n, n) for n in each.shape], dtypes[each.type]) for each in inputs
        ]
        for _ in range(N_NEW):
            feeds = {each.name: value for each, value in zip(inputs, past, strict=True)}
            logits, *past = session.run(None, {"input_ids": np.array([new])} | feeds)
            new = [int(logits[0, -1].argmax())]
            ids += new
        return ids

    return generate


def transformers(folder: Path, *, int8: bool = False) -> Generation:
    """Return the generation of transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    if int8:
        quantize: Any = torch.ao.quantization.quantize_dynamic
        model = quantize(model, {torch.nn.Linear})

    def generate() -> list[int]:
        out = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False,
            temperature=None, top_p=None, top_k=None, pad_token_id=0,
        )  # fmt: skip
        return [int(i) for i in out[0, len(PROMPT) :]]

    return generate


def side_by_side(name: str, model: GPT, folder: Path) -> None:
    """Print the table of a network that export_all wrote into ``folder``."""
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # that quantize_dynamic will be another's
    onnx, c, left_out = folder / "onnx" / "model.onnx", model.config, []
    found = {
        "ours, float32": ours(model, int8=False),
        "onnxruntime, float32": onnxruntime(onnx),
        "transformers, float32": transformers(folder / "hf"),
    }
    bytewise = {
        "ours, --quantize int8": ours(model, int8=True),
        "onnxruntime, quantize_dynamic": onnxruntime(folder / "int8.onnx"),
    }
    if c.ngrams:
        left_out.append("llama.cpp, which has no n-gram tables")
    elif find_spec("llama_cpp") is None:
        left_out.append("llama.cpp: llama-cpp-python is not installed")
    else:
        found = {"llama.cpp, float32": llama_cpp(folder / "float32.gguf")} | found
        bytewise["llama.cpp, q8_0"] = llama_cpp(folder / "q8_0.gguf")
    if c.norm == "layernorm":
        left_out.append(
            "transformers in 8 bits: the linear maps of its GPT-2 are no torch.nn.Linear"
        )
    else:
        bytewise["transformers, quantize_dynamic"] = transformers(folder / "hf", int8=True)
    tokens = {program: generate() for program, generate in found.items()}
    differing = [program for program, ids in tokens.items() if ids != tokens["ours, float32"]]
    compare(
        f"{name}, {model.n_parameters:,} parameters, {N_NEW} tokens greedily, "
        f"{torch.get_num_threads()} threads",
        "tokens/s",
        {program: speed(generate) for program, generate in (bytewise | found).items()},
    )
    said = [f"left out: {each}" for each in left_out]
    said.append(f"other tokens than ours in float32: {', '.join(differing) or 'none'}")
    sys.stdout.write("\n".join(said) + "\n")


def speed(generate: Generation) -> Callable[[], float]:
    """Return what measures tokens a second, the prompt included."""

    def tokens_per_second() -> float:
        start = time.perf_counter()
        n_tokens = len(generate())
        return n_tokens / (time.perf_counter() - start)

    return tokens_per_second
