"""Evaluation over fixed windows: the same number for the same weights, every time.

Loss is in nats a token; bits per byte weighs it by how much text a token stands for, so that runs
with different vocabularies compare.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.chat_format import end_id, role_id
from common.dataset import DataFolder, Ids
from common.device import Device
from common.inference.decoder import Decoder, generate
from common.inference.torch_backend import TorchBackend
from common.models.config import GenerateConfig
from common.models.gpt import GPT
from common.models.loss import IGNORED
from common.tokenizer import Tokenizer
from train.data import cut_windows, model_inputs
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import is_sharded

PROMPT_TOKENS, SAMPLE_TOKENS = 16, 64  # shown at each evaluation: a line or three
N_ASKED = 3  # of conversations the first questions of val
# How much of train is scored, evenly spread: enough to compare with val, and quick.
TRAIN_TOKENS = 1 << 16
# Tokens of one evaluation batch. On a CPU more fall out of its caches: of 4k to 64k tokens, 4k took
# a third of the time (0.8 M parameters, two cores).
BATCH_TOKENS = {"cpu": 1 << 12}


@dataclass(frozen=True)
class Score:
    """Result over one split: mean loss in nats a token, and in bits a byte of text.

    Of pairs the loss of a pair, bits a byte of the answers to prefer, and what preference.py says.
    """

    loss: float
    bpb: float
    n_tokens: int  # or pairs
    margin: float | None = None
    accuracy: float | None = None  # share of pairs whose margin is positive


def scores_record(train: Score, val: Score) -> dict[str, float]:
    """Return the part of a line of metrics.jsonl that is about an evaluation."""
    found = {
        f"{split}_{name}": getattr(score, name)
        for name in ("loss", "bpb", "margin", "accuracy")
        for split, score in (("train", train), ("val", val))
    }
    return {name: value for name, value in found.items() if value is not None}


# The mean loss of rows and, as sums over what it is the mean of, their number ``n`` and more. It is
# given a network and its forward pass: the same, or that compiled, or for several processes.
Objective = Callable[[GPT, Callable[..., Tensor], Tensor], tuple[Tensor, dict[str, Tensor]]]


def next_token(
    model: GPT, forward: Callable[..., Tensor], rows: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss of rows in nats a token; an Objective."""
    x, y, *starts = model_inputs(rows)  # each (B, T)
    return forward(x, y, *starts), {"n": (y != IGNORED).sum()}


def rows_at_once(device: Device, block_size: int) -> int:
    """Return how many rows of ``block_size`` tokens an evaluation batch has at most."""
    return max(1, BATCH_TOKENS.get(device.torch_device.type, 1 << 15) // block_size)


def window_batches(
    ids: Ids, block_size: int, max_tokens: int, n_rows: int
) -> list[Callable[[], Tensor]]:
    """Return what cuts each batch of fixed windows of ``ids``."""
    batches = eval_batches(ids, block_size, max_tokens, n_rows)
    return [partial(cut_windows, ids, *batch) for batch in batches]


def eval_batches(
    ids: Ids, block_size: int, max_tokens: int, n_rows: int
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """Return (starts, length) of the windows in each batch: at most ``n_rows``, of equal length.

    End to end over ``ids``, the shorter last window included, where there are at most
    ``max_tokens`` to predict; else spread evenly over it.
    """
    n_targets = len(ids) - 1
    starts, rest = np.arange(0, n_targets - block_size + 1, block_size), n_targets % block_size
    if n_targets > max_tokens:
        spread = np.linspace(0, n_targets - block_size, max(1, max_tokens // block_size))
        starts, rest = spread.astype(np.int64), 0
    batches = [(starts[i : i + n_rows], block_size) for i in range(0, len(starts), n_rows)]
    return batches + ([(np.array([n_targets - rest]), rest)] if rest else [])


def evaluate(
    model: GPT,
    batches: Sequence[Callable[[], Tensor]],
    token_bytes: npt.NDArray[np.int64],
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    objective: Objective = next_token,
) -> Score:
    """Return the loss over batches, of what is learned of them; token_bytes (V,) are ids' lengths.

    Each rank scores its share of the batches; all return the loss over all of them.
    """
    lengths = torch.from_numpy(token_bytes)
    on_cpu = device.torch_device.type == "cpu"  # there in float32, as it generates
    totals = dict.fromkeys(("n", "loss", "nats", "n_bytes", "margin", "accuracy"), 0.0)
    model.eval()
    # gathered weights that were made in inference mode could not be trained with later
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        for first in range(0, len(batches), group.world_size):
            # sharded, all ranks are needed for each pass: without a batch left, one makes another's
            own = first + group.rank
            counts = own < len(batches)
            rows = batches[own if counts else first]()
            with nullcontext() if on_cpu else device.autocast():
                loss, tensors = objective(model, model, rows.to(device.torch_device))
            sums = {name: float(value) for name, value in tensors.items()}
            sums["loss"] = float(loss) * sums["n"]
            sums.setdefault("nats", sums["loss"])
            targets = model_inputs(rows[:, 0] if rows.dim() == 4 else rows)[1]  # of the chosen
            sums["n_bytes"] = int(lengths[targets[targets != IGNORED]].sum())
            if counts:
                totals = {name: total + sums.get(name, 0.0) for name, total in totals.items()}
    if is_sharded(model):  # else what was gathered last stays so until a backward pass
        cast(Any, model).reshard()
    model.train()
    n, loss_sum, nats, n_bytes, margin, n_right = group.all_reduce(*totals.values())
    bpb = nats / math.log(2) / max(1, n_bytes)
    if objective is next_token:
        return Score(loss_sum / n, bpb, int(n))
    return Score(loss_sum / n, bpb, int(n), margin / n, n_right / n)


def token_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return (V,) the bytes of text that each id stands for."""
    return np.array([len(token) for token in tokenizer.token_bytes], np.int64)


def sample_lines(model: GPT, tokenizer: Tokenizer, data: DataFolder, seed: int) -> str:
    """Return what the model makes of the beginning of val: the same for the same weights."""
    ids = data.tokens("val")
    if not data.has_masks:
        return sample_line(model, tokenizer, ids, seed)
    # by their ids, which stay open; a conversation has one more than the context at most
    head = ids[: N_ASKED * 2 * (model.config.block_size + 2)]
    ends = np.flatnonzero(head == tokenizer.eot_id)[:N_ASKED]
    asked = [part.tolist() for part in np.split(head, ends + 1)[: len(ends)]]
    return "\n".join(answer_line(model, tokenizer, conversation) for conversation in asked)


def answer_line(model: GPT, tokenizer: Tokenizer, conversation: list[int]) -> str:
    """Return the likeliest answer to what stands before the first one of a conversation."""
    prompt = conversation[: conversation.index(role_id(tokenizer, "assistant")) + 1]
    end, config = end_id(tokenizer), GenerateConfig(max_new_tokens=SAMPLE_TOKENS, temperature=0)
    model.eval()
    decoder = Decoder(TorchBackend(model), tokenizer, ends=[end])
    ids = [token.idx for token in generate(decoder, prompt, config)]
    model.train()
    answer = [*takewhile(lambda idx: idx != end, ids)]
    texts = (tokenizer.decode_bytes(part).decode("utf-8", "replace") for part in (prompt, answer))
    return "  it was asked:  {!r}\n  and answered:  {!r}".format(*texts) + " ..." * (end not in ids)


def sample_line(model: GPT, tokenizer: Tokenizer, ids: Ids | list[int], seed: int) -> str:
    """Return what the model writes after the first of ``ids``: the same for the same weights."""
    prompt = [int(idx) for idx in ids[:PROMPT_TOKENS]]
    config = GenerateConfig(max_new_tokens=SAMPLE_TOKENS, seed=seed)
    model.eval()
    # of PyTorch's operators: a few tokens are not worth being compiled for
    tokens = generate(Decoder(TorchBackend(model), tokenizer), prompt, config)
    written = tokenizer.decode_bytes(token.idx for token in tokens)  # end-of-text adds no bytes
    model.train()
    begin = tokenizer.decode_bytes(prompt).decode("utf-8", "replace")
    return f"  it was given:  {begin!r}\n  and continued: {written.decode('utf-8', 'replace')!r}"
