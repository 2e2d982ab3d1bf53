"""The estimate of memory against values worked out by hand."""

from dataclasses import replace

import pytest
import torch

from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.loss import CHUNK_LOGITS_ELSEWHERE, CHUNK_ROWS, chunk_rows
from train.setup.memory import activation_bytes, max_batch_size, training_bytes

SMALL = ModelConfig(
    n_layer=1, n_head=1, n_embd=2, n_inner=1, vocab_size=3, block_size=5, positions="learned"
)


def test_what_a_small_network_takes_worked_out_by_hand() -> None:
    """One layer of 2 channels: 4 x 4 x parameters; 35 floats a token, and 3 times its logits."""
    model = GPT(SMALL)
    expected = 16 * model.n_parameters + 4 * 10 * (16 * 2 + 3) + 4 * 3 * 10 * 3
    assert training_bytes(model, 2, "cpu") == expected


@pytest.mark.parametrize(("kind", "n_chunk"), [("cpu", CHUNK_ROWS), ("cuda", (1 << 28) // 50_257)])
def test_logits_are_counted_as_far_as_the_loss_has_them_at_once(kind: str, n_chunk: int) -> None:
    config = replace(SMALL, vocab_size=50_257, block_size=1_024)
    in_blocks = 4 * 64 * 1_024 * (16 * 2 + 3)
    assert activation_bytes(config, 64, kind) == in_blocks + 4 * 3 * n_chunk * 50_257


def test_as_many_rows_as_fill_a_quarter_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, cpu: Device
) -> None:
    gpu = Device(torch.device("cuda"), torch.bfloat16, "a test")
    free = 1 << 30
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 2 * free))
    config = replace(SMALL, vocab_size=50_257, block_size=64)
    assert chunk_rows(50_257, "cuda") * 50_257 <= CHUNK_LOGITS_ELSEWHERE
    n = max_batch_size(config, gpu)
    assert n > 1
    assert activation_bytes(config, n, "cuda") <= free / 4 < activation_bytes(config, n + 1, "cuda")
    free = 1
    assert max_batch_size(config, gpu) == 1
    assert max_batch_size(config, cpu) == 1_024 // 64
