"""A GGUF file, read back by llama.cpp's own reader, against the run it was made of.

What llama.cpp itself makes of it is in test_llama.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers

from common.chat_format import CHAT_TEMPLATE
from common.errors import UserError
from common.huggingface.json_tokenizer import BYTES as BYTE_OF
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.tokenizer import (
    GPT2_PATTERN,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
    special_ids_after,
)
from sample.export.run import export_run
from tests.common.huggingface.hostile import hostile_strings
from tests.prepare.test_chunks import PATTERNS, encodings
from tests.processes import run_python
from tests.sample.chats import BYTES, END, make_chat_run
from tests.sample.export.test_hf import GPT2, MODERN, RELU2, a_model, make_run
from tests.tiny import random_model

# llama.cpp's name, and our switches
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", MODERN | {"n_kv_head": 2}),
    "qwen3, untied, other heads": ("qwen3", MODERN | {"tied_head": False, "head_dim": 12}),
    "llama": ("llama", MODERN | {"qk_norm": False, "n_kv_head": 2, "rope_theta": 500.0}),
    "llama, untied": ("llama", MODERN | {"qk_norm": False, "tied_head": False}),
    "arcee": ("arcee", RELU2 | {"qk_norm": False, "pad_vocab": 64, "norm_eps": 1e-5}),
    "arcee, untied": ("arcee", RELU2 | {"qk_norm": False, "tied_head": False}),
    "gpt2": ("gpt2", GPT2 | {"n_inner": 48}),
    "gpt2, untied, no bias": ("gpt2", GPT2 | {"tied_head": False, "bias": False}),
}
SAME_ROWS = {
    "token_embd": "wte", "output_norm": "ln_f", "blk.1.attn_norm": "h.1.ln_1",
    "blk.1.ffn_norm": "h.1.ln_2", "blk.1.attn_output": "h.1.attn.c_proj",
    "blk.0.ffn_up": "h.0.mlp.c_fc", "blk.1.ffn_down": "h.1.mlp.c_proj",
}  # fmt: skip
N_VOCAB = BYTES.vocab_size
Q8_0 = 0.5 / 127 + 2**-11  # half a step, and the rounding of the scale; of the block's largest


def export(tmp_path: Path, name: str, dtype: str) -> Path:
    out = tmp_path / f"{name}-{dtype}.gguf"
    export_run(name, out, "gguf", dtype, tmp_path / "runs", "best")
    return out


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """Return the metadata and the tensors."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def numbers(tensor: gguf.ReaderTensor) -> npt.NDArray[np.float32]:
    return gguf.dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("case", CASES)
def test_values_are_ours_bit_for_bit_where_llama_cpp_looks_for_them(
    case: str, tmp_path: Path
) -> None:
    kind, switches = CASES[case]
    model = a_model(**switches)
    c, state = model.config, model.state_dict()
    make_run(tmp_path / "runs", model, BYTES)
    fields, tensors = read(export(tmp_path, "x", "float32"))
    assert all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in tensors.values())
    expected = {f"{theirs}.weight": state[f"{ours}.weight"] for theirs, ours in SAME_ROWS.items()}
    attn = state["h.1.attn.c_attn.weight"]
    q_end, k_end = c.n_head * c.head_size, (c.n_head + c.kv_heads) * c.head_size
    if kind == "gpt2":
        expected |= {"position_embd.weight": state["wpe.weight"], "blk.1.attn_qkv.weight": attn}
        zero = torch.zeros(c.n_embd)
        expected["blk.1.ffn_down.bias"] = state.get("h.1.mlp.c_proj.bias", zero)
        expected["output_norm.bias"] = state.get("ln_f.bias", zero)
    else:
        q, k = attn[:q_end], attn[q_end:k_end]
        if kind != "qwen3":  # channels 0 and hs / 2 of a head turn together: there side by side
            half, hs = c.head_size // 2, c.head_size
            order = [h * hs + i // 2 + i % 2 * half for h in range(c.n_head) for i in range(hs)]
            q, k = q[order], k[order[: len(k)]]
        expected |= {"blk.1.attn_q.weight": q, "blk.1.attn_k.weight": k}
        expected["blk.1.attn_v.weight"] = attn[k_end:]
    if kind == "qwen3":
        expected["blk.1.attn_q_norm.weight"] = state["h.1.attn.q_norm.weight"]
    if kind in ("qwen3", "llama"):
        expected["blk.0.ffn_gate.weight"] = state["h.0.mlp.c_gate.weight"]
    if not c.tied_head:
        expected["output.weight"] = state["lm_head.weight"]
    assert ("output.weight" in tensors) == (not c.tied_head)
    for name, ours in expected.items():
        ours = ours[:N_VOCAB] if name in ("token_embd.weight", "output.weight") else ours
        np.testing.assert_array_equal(tensors[name].data, ours.numpy())
    n_there = sum(tensor.n_elements for tensor in tensors.values())
    n_zeros = (
        0 if c.bias or kind != "gpt2" else c.n_layer * (7 * c.n_embd + c.inner_size) + c.n_embd
    )
    n_padding = (c.padded_vocab_size - N_VOCAB) * c.n_embd
    assert n_there == model.n_parameters + n_zeros - n_padding
    for name, value in {
        "general.architecture": kind, "general.name": "x", "general.file_type": 0,
        f"{kind}.context_length": c.block_size, f"{kind}.block_count": 2,
        f"{kind}.embedding_length": 32,
        f"{kind}.attention.head_count": 4, f"{kind}.attention.head_count_kv": c.kv_heads,
        f"{kind}.feed_forward_length": c.inner_size, f"{kind}.attention.key_length": c.head_size,
        f"{kind}.rope.freq_base": c.rope_theta,
        f"{kind}.attention.layer_norm{'' if kind == 'gpt2' else '_rms'}_epsilon": c.eps,
    }.items():  # fmt: skip
        assert fields[name] == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float16", 2**-11), ("bfloat16", 2**-8), ("q8_0", Q8_0), ("q4_0", 1 / 8 + 2**-11)],
)
@pytest.mark.parametrize("case", ["qwen3, untied, other heads", "gpt2"])
def test_rounded_values_are_within_the_bound_of_their_block(
    case: str, dtype: str, most: float, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs", a_model(**CASES[case][1]), BYTES)
    _, exact = read(export(tmp_path, "x", "float32"))
    fields, tensors = read(export(tmp_path, "x", dtype))
    assert (
        fields["general.file_type"] == {"float16": 1, "bfloat16": 32, "q8_0": 7, "q4_0": 2}[dtype]
    )
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    whole = {"float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    ends = "Q8_0" if dtype == "q4_0" else whole
    assert kinds["blk.0.ffn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_up.weight"] == whole
    assert {kinds.get(name, ends) for name in ("token_embd.weight", "output.weight")} == {ends}
    if case == "gpt2":
        assert kinds["position_embd.weight"] == kinds["blk.0.ffn_up.bias"] == "F32"
    # rows that blocks of 32 do not divide: n_inner, and heads times head_dim
    odd = "blk.0.ffn_down.weight" if case == "gpt2" else "blk.0.attn_output.weight"
    assert tensors[odd].shape[0] == 48
    assert kinds[odd] == ("F16" if dtype in ("q8_0", "q4_0") else whole)
    for name, tensor in tensors.items():
        blocks = exact[name].data.reshape(-1, 32 if kinds[name].startswith("Q") else 1)
        bound = {"Q8_0": Q8_0, "F16": 2**-11, "F32": 0.0}.get(kinds[name], most)
        error = np.abs(numbers(tensor).reshape(blocks.shape) - blocks)
        assert (error <= bound * np.abs(blocks).max(axis=-1, keepdims=True) + 1e-7).all(), name


def tiny_model(tokenizer: Tokenizer) -> GPT:
    return random_model(
        ModelConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=2, **GPT2)
    )


def learned() -> BytePairTokenizer:
    """Return a vocabulary that was learned from hostile texts, with an id that is no token's."""
    ranks = encodings()[0]._mergeable_ranks
    special = special_ids_after(len(ranks) + 1)
    return BytePairTokenizer("bpe", GPT2_PATTERN, ranks, special)


def test_tokens_and_merges_alone_give_our_ids(tmp_path: Path) -> None:
    ours = learned()
    make_run(tmp_path / "runs", tiny_model(ours), ours)
    fields, _ = read(export(tmp_path, "x", "float32"))
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert len(set(tokens)) == len(tokens) == ours.vocab_size
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    model_there = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    theirs = HuggingFaceTokenizer(model_there)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    for text in hostile_strings(0, 2_000):
        assert theirs.encode(text).ids == ours.encode(text)
    special = {token: i for i, token in enumerate(tokens) if types[i] == gguf.TokenType.CONTROL}
    assert special == ours.special_tokens
    gap = len(ours.ranks)
    assert (tokens[gap], types[gap]) == (f"[PAD{gap}]", gguf.TokenType.UNUSED)
    assert types.count(gguf.TokenType.NORMAL) == len(ours.ranks)


def test_characters_are_merged_from_their_bytes_and_what_has_no_merge_gets_one(
    tmp_path: Path,
) -> None:
    for characters, merges in [
        (
            "\n a\u00fc\u4e2d\u4e2e\U00010400",
            [
                "\u00c3 \u00bc",
                "\u00e4 \u00b8",
                "\u00e4\u00b8 \u0143",
                "\u00e4\u00b8 \u00ae",
                "\u00f0 \u0132",
                "\u00f0\u0132 \u0132",
                "\u00f0\u0132\u0132 \u0122",
            ],
        ),
        ("ab", ["\u00ff \u00ff"]),
    ]:
        ours = CharTokenizer(tuple(characters))
        make_run(tmp_path / "runs", tiny_model(ours), ours, characters[-1])
        fields, _ = read(export(tmp_path, characters[-1], "float32"))
        assert fields["tokenizer.ggml.merges"] == merges
        found = [
            bytes(BYTE_OF[c] for c in t) for t in fields["tokenizer.ggml.tokens"][: len(characters)]
        ]
        assert found == [c.encode() for c in characters]


def test_a_chat_ends_where_a_message_does_and_ollama_writes_our_format(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    path = export(tmp_path, "talk", "float32")
    fields, _ = read(path)
    key = "tokenizer.ggml."
    found = {name: fields[f"{key}{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    eot = BYTES.eot_id
    assert found == {"bos": eot, "eos": END, "eot": END, "padding": eot}
    assert fields[f"{key}add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert path.with_suffix(".Modelfile").read_text("utf-8") == (
        'FROM ./talk-float32.gguf\nTEMPLATE """{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}'
        '<|end|>{{ end }}<|assistant|>"""\n'
        "PARAMETER num_ctx 128\nPARAMETER num_predict 128\nPARAMETER repeat_penalty 1.0\n"
        "PARAMETER temperature 0.8\nPARAMETER top_k 0\nPARAMETER top_p 0.95\n"
        "PARAMETER frequency_penalty 0.1\n"
        'PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|user|>"\n'
        'PARAMETER stop "<|assistant|>"\nPARAMETER stop "<|system|>"\nPARAMETER stop "<|end|>"\n'
    )
    make_run(tmp_path / "runs", a_model(**MODERN), BYTES)
    path = export(tmp_path, "x", "float32")
    fields, _ = read(path)
    assert fields[f"{key}eos_token_id"] == BYTES.eot_id
    assert "tokenizer.chat_template" not in fields
    modelfile = path.with_suffix(".Modelfile").read_text("utf-8")
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in modelfile
    assert 'PARAMETER stop "<|endoftext|>"\n' in modelfile


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        (RELU2 | {"ngrams": 3, "ngram_rows": 97}, "--ngrams is 3.*--preset tiny-portable"),
        (RELU2, "relu2, --qk-norm True: llama.cpp has no such.*relu2 with --no-qk-norm"),
        (GPT2 | {"mlp": "relu"}, "--mlp relu.*--architecture gpt2 as it is"),
        (GPT2 | {"positions": "sinusoidal"}, "--positions is sinusoidal"),
    ],
)
def test_a_network_that_llama_cpp_has_not_is_refused_by_the_names_of_switches(
    switches: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs", a_model(**switches), BYTES)
    with pytest.raises(UserError, match=said):
        export(tmp_path, "x", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_other_words_numbers_and_names_are_refused_in_a_sentence(tmp_path: Path) -> None:
    ours = learned()
    model = tiny_model(ours)
    make_run(tmp_path / "runs", model, replace(ours, pattern=PATTERNS["cl100k_base"]), "words")
    whole = replace(ours, ranks=ours.ranks | {b"xqzj": len(ours.ranks)})  # that no merges lead to
    make_run(tmp_path / "runs", model, whole, "tokens")
    make_run(tmp_path / "runs", model, ours, "good")
    with torch.no_grad():
        model.wte.weight[0, 0] = 1e5
    make_run(tmp_path / "runs", model, ours, "large")
    (tmp_path / "there.Modelfile").write_text("mine", encoding="utf-8")
    for run, out, dtype, said in [
        ("words", "a.gguf", "float32", "cuts texts into words as llama.cpp does not"),
        ("tokens", "a.gguf", "float32", "cuts texts into words as llama.cpp does not"),
        ("large", "a.gguf", "float16", "token_embd.weight: holds numbers beyond 65,504"),
        ("good", "a.bin", "float32", "end it in .gguf"),
        ("good", "there.gguf", "float32", "there.Modelfile: is there already"),
    ]:
        with pytest.raises(UserError, match=said):
            export_run(run, tmp_path / out, "gguf", dtype, tmp_path / "runs", "best")
    with pytest.raises(UserError, match="--to hf takes float32, bfloat16, float16"):
        export_run("good", tmp_path / "a", "hf", "q8_0", tmp_path / "runs", "best")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "there.Modelfile"]
    assert (tmp_path / "there.Modelfile").read_text(encoding="utf-8") == "mine"


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    arguments = ["export", "talk", "there/t.gguf", "--to", "gguf", "--dtype", "q8_0"]
    ended = run_python(["-m", "sample", *arguments], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("there/t.gguf: q8_0, of runs/talk/step-")
    assert ". Network: qwen3. " in ended.stderr
    assert ended.stderr.endswith("ollama create NAME -f there/t.Modelfile\n")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["t.Modelfile", "t.gguf"]
