"""The compiled backend: the same bits however a text is computed, in any shape, on any threads."""

import gc
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.inference.cpu.backend import MAX_TOKENS, ONE_THREAD_WEIGHTS, CpuBackend
from common.inference.cpu.gemm import erf, exp
from common.inference.row import Logits, Position
from common.models.config import ARCHITECTURES, ModelConfig
from common.models.gpt import GPT
from tests.common.inference.passes import counted
from tests.tiny import random_model

SHAPES: list[dict[str, Any]] = [
    {},
    {"n_embd": 36, "n_head": 3, "positions": "learned", "vocab_size": 65},
    {"n_embd": 1, "n_head": 1, "positions": "learned", "n_inner": 1, "vocab_size": 1},
    {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 1},  # sums of several parts
    {"n_embd": 128, "n_kv_head": 2, "ngrams": 3, "ngram_rows": 40},
    {
        "n_embd": 36,
        "n_head": 3,
        "ngrams": 4,
        "ngram_rows": 40,
        "ngram_dim": 7,
        "ngram_min_count": 2,
    },
    {"n_embd": 576, "n_head": 9, "n_inner": 1537, "mlp": "relu2", "norm_first": False},
    ARCHITECTURES["gpt2"] | {"n_embd": 64, "vocab_size": 257, "mlp": "gelu_erf"},
    {"n_embd": 20, "n_head": 3, "n_kv_head": 1, "head_dim": 24, "norm_eps": 0.1, "rope_theta": 7e5},
]
N = 40  # tokens; ROWS at a time leave none and some over


def ids_of(config: ModelConfig, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, n).tolist()  # type: ignore[no-any-return]


def positions(ids: list[int], first: int, last: int, n_recent: int, row: int) -> list[Position]:
    recent = [ids[: at + 1][: -n_recent - 1 : -1] for at in range(first, last)]
    return [
        Position(row, at, own + [0] * (n_recent - len(own)))
        for at, own in zip(range(first, last), recent, strict=True)
    ]


def assert_same(found: Logits, expected: Logits, first: int, last: int) -> None:
    assert np.array_equal(found.logits, expected.logits[first:last])
    assert np.array_equal(found.logsumexp, expected.logsumexp[first:last])


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("changed", SHAPES, ids=str)
def test_a_text_has_the_same_logits_to_the_last_bit_however_it_is_computed(
    changed: dict[str, Any], n_threads: int
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 100, "block_size": N, "n_layer": 2, "n_embd": 32}
    config = ModelConfig(**sizes | {"n_head": 4} | changed)
    model = random_model(config)
    backend = CpuBackend(model, n_threads=n_threads)
    ids, other = ids_of(config, N), ids_of(config, N, seed=1)
    ((_, expected),) = backend.make_cache(1).prefill([(0, ids)], N)
    cache = backend.make_cache(3)
    ((_, beside),) = cache.prefill([(2, other)], N)
    for first in (1, 2, 17, N - 1):
        cache.cached_ids[1] = []  # nothing is to be known of it already
        ((_, found),) = cache.prefill([(1, ids[:first])])
        assert_same(found, expected, first - 1, first)
        for at in range(first, N, 3):
            last = min(at + 3, N)
            mine = positions(ids, at, last, config.n_recent, row=1)
            theirs = positions(other, at, at + 1, config.n_recent, row=2)
            del cache.cached_ids[2][at:]
            found = cache.decode([*theirs, *mine])
            assert_same(Logits(*(x[1:] for x in found)), expected, at, last)
            assert_same(Logits(*(x[:1] for x in found)), beside, at, at + 1)
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(expected.logits, logits, atol=1e-4, rtol=1e-4)


def test_a_prompt_longer_than_a_pass_is_computed_in_several() -> None:
    config = ModelConfig(vocab_size=50, block_size=400, n_layer=2, n_head=4, n_embd=32)
    model = random_model(config)
    ids = ids_of(config, 400)
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0].numpy()
    for n_wanted in (1, 150, 400):
        parts = CpuBackend(model).make_cache(1).prefill([(0, ids)], n_wanted)
        found = np.concatenate([part.logits for _, part in parts])
        np.testing.assert_allclose(found, logits[400 - n_wanted :], atol=1e-4, rtol=1e-4)


def test_what_a_text_begins_with_is_not_computed_again_where_a_row_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ModelConfig(vocab_size=50, block_size=64, n_layer=2, n_head=4, n_embd=32)
    backend = CpuBackend(random_model(config))
    cache, ids = backend.make_cache(3), ids_of(config, 60)
    texts = [
        (0, ids[:30], 30),
        (0, ids[:40], 10),  # as the next turn of a chat
        (2, ids[:50], 10),  # copied from row 0
        (1, ids[:40], 1),  # the last one anew, for what follows it
        (0, [*ids[:20], 1 - min(ids[20], 1), 7], 2),  # parts from there
        (2, ids[:60], 10),
        (1, ids[5:10], 5),
    ]
    expected = [next(backend.make_cache(1).prefill([(0, text)]))[1] for _, text, _ in texts]
    n_computed = counted(backend, monkeypatch)
    for (row, text, n_new), anew in zip(texts, expected, strict=True):
        del n_computed[:]
        ((_, found),) = cache.prefill([(row, text)])
        assert sum(n_computed) == n_new
        assert_same(found, anew, 0, 1)


def test_prompts_prefilled_together_have_the_logits_of_each_alone_and_share_their_beginnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ModelConfig(vocab_size=50, block_size=200, n_layer=2, n_head=4, n_embd=32, ngrams=2)
    backend = CpuBackend(random_model(config))
    ids, other = ids_of(config, 200), ids_of(config, 200, seed=1)
    texts = [(3, ids[:90]), (0, ids[:100]), (5, other), (1, ids[:90]), (4, [7]), (2, ids[3:8])]
    expected = [next(backend.make_cache(1).prefill([(0, text)]))[1] for _, text in texts]
    n_computed = counted(backend, monkeypatch)
    cache = backend.make_cache(6)
    found = dict(cache.prefill(texts))
    for (row, _), alone in zip(texts, expected, strict=True):
        assert_same(found[row], alone, 0, 1)
    # those that begin alike wait, and then compute the 10 and the 1 that are left
    first = 90 + 200 + 1 + 5
    assert n_computed == [128, 128, first - 256, 10, 1]
    assert cache.cached_ids == [ids[:100], ids[:90], ids[3:8], ids[:90], [7], other]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_have_no_logsumexp(bad: float) -> None:
    config = ModelConfig(vocab_size=70, block_size=8, n_layer=1, n_head=2, n_embd=8)
    model = random_model(config)
    backend = CpuBackend(model)
    with torch.no_grad():
        backend.wte[3] = bad
        ((_, found),) = backend.make_cache(1).prefill([(0, [1, 2, 3])])
    assert not np.isfinite(found.logsumexp[0])


def test_exp_is_that_of_double_precision_within_two_units_of_the_last_place() -> None:
    x = np.linspace(-87, 88, 1_000_001).astype(np.float32)
    found = np.array([exp(value) for value in x[::50]])
    expected = np.exp(x[::50].astype(np.float64))
    assert np.abs(found / expected - 1).max() < 2 * np.finfo(np.float32).eps
    assert exp(np.float32(-1000)) == exp(np.float32(-87))
    assert np.isfinite(exp(np.float32(1000)))


def test_erf_is_that_of_the_standard_library_within_5e_7() -> None:
    x = np.linspace(-5, 5, 20_001).astype(np.float32)
    found, expected = np.array([erf(v) for v in x]), np.array([math.erf(v) for v in x])
    assert np.abs(found - expected).max() < 5e-7


def kernel_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kernels-")]


def test_the_threads_end_with_the_cache_and_signals_do_not_end_them() -> None:
    config = ModelConfig(vocab_size=50, block_size=64, n_layer=2, n_head=4, n_embd=32)
    backend, ids = CpuBackend(random_model(config), n_threads=3), ids_of(config, 60)
    n_before = len(kernel_threads())
    ((_, expected),) = backend.make_cache(1).prefill([(0, ids)])
    came: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        cache = backend.make_cache(1)
        assert len(kernel_threads()) == n_before + 2
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGUSR1)
            cache.cached_ids[0] = []
            ((_, found),) = cache.prefill([(0, ids)])
            assert_same(found, expected, 0, 1)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert came
    del cache
    gc.collect()
    assert len(kernel_threads()) == n_before


def test_a_child_does_not_keep_the_threads_of_its_parent() -> None:
    """Past bug: it held their pipes, and letting go of the cache took until the child had ended."""
    config = ModelConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=8)
    cache = CpuBackend(random_model(config), n_threads=3).make_cache(1)
    n_before = len(kernel_threads())
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)  # until the parent has let go
        del cache
        gc.collect()
        os._exit(7)
    del cache
    gc.collect()
    assert len(kernel_threads()) == n_before - 2
    os.close(write_end)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_more_rows_than_tokens_in_a_pass_go_on_together() -> None:
    config = ModelConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=8)
    backend, n_rows = CpuBackend(random_model(config)), MAX_TOKENS + 9
    together, alone = backend.make_cache(n_rows), backend.make_cache(1)
    found = together.decode([Position(row, 0, [row % 50]) for row in range(n_rows)])
    for row in (0, 49, n_rows - 1):
        alone.cached_ids[0] = []
        assert_same(alone.decode([Position(0, 0, [row % 50])]), found, row, row + 1)


IMPORTS = """
import logging, os, sys, torch
from common.inference.cpu.backend import CpuBackend
from common.models.config import ModelConfig
from common.inference.row import Position
from common.models.gpt import GPT
"""
DECODE_ONE = """
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
torch.manual_seed(0)
model = GPT(ModelConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=8))
cache = CpuBackend(model, n_threads=3).make_cache(1)
print(float(cache.decode([Position(0, 0, [7])]).logsumexp[0]))
"""


def test_a_process_ends_well_whether_its_cache_is_there_or_has_just_gone() -> None:
    """Each fork goes on to the end of the script, and so to that of its interpreter."""
    for_each = """
import gc
gc.freeze()  # or each child looks through all of torch for cycles as it ends
for last in 4 * ["", "del cache", "cache.me = cache"]:
    if (child := os.fork()) == 0:
        break
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"{last!r}: {status}")
else:
    sys.exit()
"""
    loaded = IMPORTS + DECODE_ONE.replace("n_threads=3", "n_threads=1")
    script = loaded + for_each + DECODE_ONE + "exec(last)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_what_is_compiled_is_kept_and_where_it_cannot_be_it_is_used_all_the_same(
    tmp_path: Path,
) -> None:
    def said(limit: str) -> list[str]:
        script = IMPORTS + DECODE_ONE
        command = ["bash", "-c", f"ulimit -f {limit} && exec {sys.executable} -c '{script}'"]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        made = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return made.stdout.splitlines()

    compiles = "Compiling for this processor, this once ..."
    *first, decoded = said("16")  # KB a file: as on a disk that is full
    assert first[0] == compiles
    assert first[1].startswith("Compiled, but it could not be kept for the next time: ")
    assert said("unlimited") == [compiles, decoded]
    assert said("unlimited") == [decoded]


def test_a_small_network_takes_one_thread_however_large_its_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    small: dict[str, Any] = {
        "vocab_size": 50,
        "block_size": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
    }
    tables = ModelConfig(**small | {"ngrams": 2, "ngram_rows": ONE_THREAD_WEIGHTS // 32})
    assert CpuBackend(GPT(tables)).n_threads == 1
    large = ModelConfig(**small | {"n_inner": ONE_THREAD_WEIGHTS // 64})
    assert CpuBackend(GPT(large)).n_threads == 4


def test_the_wanted_logits_of_several_rows_come_in_order_and_in_parts() -> None:
    config = ModelConfig(vocab_size=50, block_size=200, n_layer=2, n_head=4, n_embd=32)
    backend = CpuBackend(random_model(config))
    texts = [(1, ids_of(config, 150)), (0, ids_of(config, 20, seed=1))]
    found: dict[int, list[Logits]] = {0: [], 1: []}
    for row, logits in backend.make_cache(2).prefill(texts, 20):
        found[row].append(logits)
    for row, ids in texts:
        whole = [logits for _, logits in backend.make_cache(1).prefill([(0, ids)], 20)]
        mine, alone = (np.concatenate([part.logits for part in x]) for x in (found[row], whole))
        assert np.array_equal(mine, alone)
