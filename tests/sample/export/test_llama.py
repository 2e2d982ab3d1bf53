"""llama.cpp runs what is exported as GGUF as we do: tokens, logits, greedy text, bits a byte.

What it does otherwise, of llama-cpp-python 0.3.36: it knows letters and digits up to Unicode 15,
tiktoken 0.14 up to 16; its GELU is read from a table in float16, its products with matrices in
float16 and in blocks round the other side too.
"""

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.dataset import open_data
from common.huggingface.tokenizer_json import DIGITS_PATTERN
from common.models.gpt import GPT
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, Tokenizer, special_ids_after
from sample.text.prompt import CHAT, Message, encode
from tests.common.huggingface.hostile import hostile_strings
from tests.common.huggingface.test_tokenizer_json import SHARED, vocabulary
from tests.processes import start_python
from tests.sample.chats import BYTES, END, make_chat_run
from tests.sample.export.test_gguf import CASES, export, learned, tiny_model
from tests.sample.export.test_hf import a_model, make_run, some_ids

pytestmark = pytest.mark.llama


@contextmanager
def loaded(path: Path, **options: Any) -> Iterator[Any]:
    """Load a file with llama.cpp: one thread, keys and values in float32, logits of all ids."""
    import llama_cpp

    exact: dict[str, Any] = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    exact |= {"n_ctx": 128, "logits_all": True, "n_threads": 1, "verbose": False}
    with closing(llama_cpp.Llama(str(path), **exact | options)) as model:
        yield model


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    model.reset()
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)]))  # (T, V)


def round_matrices(model: GPT, dtype: str) -> None:
    """Round what is rounded in the file."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name != "wpe.weight":
            parameter.copy_(parameter.to(getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_a_hundred_greedy_tokens_are_ours(case: str, dtype: str, tmp_path: Path) -> None:
    model = a_model(**CASES[case][1] | {"block_size": 128})
    make_run(tmp_path / "runs", model, BYTES)
    idx = some_ids(1, 20)
    most = 1e-5 if dtype == "float32" else 5e-3
    if case.startswith("gpt2"):
        most = max(most, 2e-3)
    with loaded(export(tmp_path, "x", dtype)) as theirs, torch.inference_mode():
        round_matrices(model, dtype)
        assert model(idx).std() > 0.3  # nothing is near zero by itself
        found = logits(theirs, idx[0].tolist())
        torch.testing.assert_close(found, model(idx)[0], atol=most, rtol=0)
        ours = idx
        for _ in range(100):
            ours = torch.cat((ours, model(ours)[:, -1].argmax(-1, keepdim=True)), dim=1)
        ids = idx[0].tolist()
        for _ in range(100):
            ids.append(int(found[-1].argmax()))
            theirs.eval(ids[-1:])
            found = torch.from_numpy(np.array(theirs.scores[theirs.n_tokens - 1 : theirs.n_tokens]))
    assert ids == ours[0].tolist()


def different(ours: Tokenizer, texts: list[str], tmp_path: Path) -> list[str]:
    """Return those of ``texts`` that llama.cpp has other ids for."""
    make_run(tmp_path / "runs", tiny_model(ours), ours)
    with loaded(export(tmp_path, "x", "float32"), vocab_only=True) as theirs:
        return [
            text
            for text in texts
            if theirs.tokenize(text.encode(), add_bos=True, special=False) != ours.encode(text)
        ]


@pytest.mark.parametrize("kind", ["char", "learned", "gpt2", "SmolLM2's words"])
def test_hostile_strings_and_real_texts_have_the_same_ids(kind: str, tmp_path: Path) -> None:
    ours = vocabulary(kind)[0] if kind in ("char", "gpt2") else learned()
    if kind == "SmolLM2's words":
        ours = replace(learned(), pattern=DIGITS_PATTERN)
    texts = hostile_strings(0, 20_000)
    for path in (SHARED / "data").rglob("*"):
        if path.suffix in (".txt", ".jsonl"):
            texts += path.read_text("utf-8", errors="replace").splitlines(keepends=True)
    found = different(ours, texts, tmp_path)
    # one has a digit of Unicode 16: with GPT-2's words the same ids all the same
    assert len(found) == (kind == "SmolLM2's words")
    assert all("\U00010d41" in text for text in found)


def test_other_words_are_seen_only_around_what_unicode_16_added(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    firsts = [*range(128), *range(0xC2, 0xF5)]  # bytes with which characters begin
    for before in b"a1! ":  # merges over each border that a kind of character might have
        for first in firsts:
            ranks.setdefault(bytes([before, first]), len(ranks))
    ours = BytePairTokenizer("x", GPT2_PATTERN, ranks, special_ids_after(len(ranks)))
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}1{c}!{c} {c}" for c in characters]
    found = different(ours, texts, tmp_path)
    assert len(found) == 4_382  # letters and digits of 2024, in 26 ranges
    assert {text[1] for text in found} >= {"\u1c89", "\ua7cb", "\U00010d40", "\U00013460"}


def test_it_answers_as_in_the_chat(tmp_path: Path) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    said = [("system", " Be brief.\n"), ("user", "h\u00e9  llo"), ("assistant", ""), ("user", "b")]
    with loaded(export(tmp_path, "talk", "float32")) as theirs:
        assert theirs.token_eos() == END
        for name, i in BYTES.special_tokens.items():
            assert theirs.tokenize(name.encode(), add_bos=True, special=True) == [i]
        messages = [{"role": role, "content": text} for role, text in said]
        theirs.create_chat_completion(messages, max_tokens=1)
        prompt = encode([Message(role, text) for role, text in said], CHAT, BYTES)  # type: ignore[arg-type]
        assert theirs.input_ids[: len(prompt)].tolist() == prompt
        messages = [{"role": "user", "content": "Hello"}]
        answer = theirs.create_chat_completion(messages, temperature=0.0)["choices"][0]
    assert answer["message"]["content"] == "Good day."
    assert answer["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a network that read Python's library for a minute or two."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "library").mkdir()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        shutil.copy(path, folder / "library")
    shape = ["--preset", "tiny", "--architecture", "modern", "--n-layer", "3", "--ngrams", "0"]
    for command in (
        ["prepare", "text", "library", "--tokenizer", "bpe", "--vocab-size", "2048"],
        ["train", "pretrain", "--run", "x", *shape, "--max-steps", "300"],
    ):
        with start_python(["-m", *command], folder) as process:
            _, stderr = process.communicate(timeout=900)
        assert process.returncode == 0, stderr
    return folder


def bits_a_byte(path: Path, trained: Path) -> float:
    """Return the loss that llama.cpp has on the first 60 windows of val."""
    tokenizer = open_data(trained / "data").tokenizer()
    ids = np.fromfile(trained / "data" / "val.bin", dtype="<u2")[: 60 * 128].reshape(60, 128)
    nats, n_bytes = 0.0, 0
    with loaded(path, n_batch=128) as model:
        for row in ids.tolist():
            scores = logits(model, row)[:-1].log_softmax(-1)
            nats -= float(scores[torch.arange(127), torch.tensor(row[1:])].sum())
            n_bytes += len(tokenizer.decode_bytes(row[1:]))
    return nats / log(2) / n_bytes


def test_blocks_of_8_and_4_bits_lose_little_of_a_trained_network(trained: Path) -> None:
    exact = bits_a_byte(export(trained, "x", "float32"), trained)
    assert exact < 2.4  # it did learn: bytes by their frequency take 4.7
    for dtype, most in [("float16", 1e-4), ("bfloat16", 1e-3), ("q8_0", 5e-3), ("q4_0", 4e-2)]:
        path = export(trained, "x", dtype)
        assert abs(bits_a_byte(path, trained) / exact - 1) < most, dtype
