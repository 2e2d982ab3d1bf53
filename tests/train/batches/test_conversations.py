"""Conversations in rows: each once an epoch, whole, learned where its mask says so."""

import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.chat_format import CHAT_TEMPLATE
from common.dataset import DataFolder
from common.device import Device
from common.errors import DataError
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.loss import IGNORED
from tests.tiny import random_model
from tests.train.chats import echoes, ids_and_mask, write_chats
from train.batches.conversations import best_fit
from train.batches.sources import ConversationSource, make_source
from train.config import TrainConfig
from train.evaluate import answer_line, evaluate, sample_lines, token_lengths
from train.loop import update
from train.optim.optimizers import make_optimizer
from train.setup.checks import check_sizes
from train.trainer import Trainer

T = 32
TRAIN, VAL = echoes(90, seed=0), echoes(30, seed=1)
CONFIG = TrainConfig(tokens_per_step=5 * T, batch_size=5, warmup_steps=0, max_steps=100)
Found = Counter[tuple[tuple[int, ...], tuple[int, ...]]]


@pytest.fixture(scope="module")
def chats(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    folder = tmp_path_factory.mktemp("chats") / "chats"
    return write_chats(folder, data.tokenizer(), {"train": TRAIN, "val": VAL})


@pytest.fixture(scope="module")
def shape(chats: DataFolder) -> ModelConfig:
    return ModelConfig(
        vocab_size=chats.tokenizer().vocab_size, block_size=T, n_layer=1, n_head=2, n_embd=16,
        ngrams=2, ngram_rows=64,
    )  # fmt: skip


def make(data: DataFolder, config: TrainConfig = CONFIG, **more: Any) -> ConversationSource:
    source = make_source(data, config, T, **more)
    assert isinstance(source, ConversationSource)
    return source


def conversations(rows: Tensor) -> Found:
    """Count what stands in rows (B, 3, T): the ids and targets of each conversation."""
    found = Found()
    for x, y, starts in rows:
        for start in starts.unique():
            at = starts == start
            if (y[at] != IGNORED).any():  # no padding
                assert at.nonzero().flatten().tolist() == [*range(start, start + at.sum())]
                found[tuple(x[at].tolist()), tuple(y[at].tolist())] += 1
    return found


def by_hand(talks: Any, data: DataFolder) -> Found:
    found = Found()
    for talk in talks:
        ids, mask = ids_and_mask(talk, data.tokenizer())
        y = [i if m else IGNORED for i, m in zip(ids[1:-1], mask[1:-1], strict=True)]
        found[tuple(ids[:-2]), tuple(y)] += 1
    return found


def test_each_conversation_is_learned_once_an_epoch_whole_and_as_its_mask_says(
    chats: DataFolder,
) -> None:
    source, n_rows = make(chats), 5
    n_epoch = round(source.tokens_per_epoch) // T
    drawn = torch.cat([source.batch(step).rows for step in range(3 * n_epoch // n_rows + 1)])
    epochs = [drawn[i * n_epoch : (i + 1) * n_epoch] for i in range(3)]
    for epoch in epochs:
        assert conversations(epoch) == by_hand(TRAIN, chats)
    assert not any(torch.equal(a, b) for a, b in pairwise(epochs))  # each in an order of its own


def test_which_conversations_a_step_has_is_a_function_of_seed_and_step(chats: DataFolder) -> None:
    source = make(chats)
    going_back = [source.batch(step).rows for step in (40, 3, 40, 0)]
    assert torch.equal(going_back[0], make(chats).batch(40).rows)
    assert torch.equal(going_back[1], make(chats).batch(3).rows)
    assert torch.equal(going_back[0], going_back[2])
    other = make(chats, replace(CONFIG, seed=1)).batch(0).rows
    assert not torch.equal(going_back[3], other)


# What any later version must draw too, or resumed runs would change their course.
def test_conversations_are_those_of_the_past(chats: DataFolder) -> None:
    rows = make(chats).batch(7).rows
    assert rows[:, 0].sum(dim=1).tolist() == GOLDEN


GOLDEN = [499, 525, 459, 529, 459]


def test_rows_are_filled_as_well_as_can_be() -> None:
    assert best_fit(np.array([9, 8, 7, 5, 4, 3, 2, 1]), 10).tolist() == [0, 1, 2, 3, 3, 2, 1, 3]
    lengths = np.sort(np.random.default_rng(0).integers(5, 60, 2_000))[::-1]
    rows = np.bincount(best_fit(lengths, 128), weights=lengths)
    assert rows.max() <= 128
    assert lengths.sum() / (128 * len(rows)) > 0.98


def test_one_that_is_longer_than_the_context_is_a_sentence(chats: DataFolder) -> None:
    longest = max(len(ids_and_mask(talk, chats.tokenizer())[0]) for talk in TRAIN) - 2
    make_source(chats, CONFIG, longest)
    with pytest.raises(
        DataError,
        match=f"takes {longest} tokens, .* holds {longest - 1}[.]",
    ):
        make_source(chats, CONFIG, longest - 1)


@pytest.mark.parametrize("mix", [0.1, 0.3, 0.5])
def test_a_share_of_the_rows_is_of_the_base_and_all_of_it_is_learned(
    chats: DataFolder, data: DataFolder, mix: float
) -> None:
    source, base_text = make(chats, replace(CONFIG, mix=mix), base=data), data.tokens("train")
    n_steps, n_base, talks = 60, 0, list[Tensor]()
    for step in range(n_steps):
        batch = source.batch(step)
        assert batch.rows.shape == (5, 3, T)
        assert batch.n_learned == int((batch.rows[:, 1] != IGNORED).sum())
        of_base = (batch.rows[:, 1] != IGNORED).all(dim=1)
        n_base += int(of_base.sum())
        talks += [*batch.rows[~of_base]]
        for x, y, starts in batch.rows[of_base]:
            assert x[1:].tolist() == y[:-1].tolist()
            assert not starts.any()
            assert x.numpy().astype(base_text.dtype).tobytes() in base_text.tobytes()
    assert n_base == int(5 * n_steps * mix)
    n_epoch = round(source.tokens_per_epoch * (1 - mix)) // T
    assert conversations(torch.stack(talks[:n_epoch])) == by_hand(TRAIN, chats)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_loss_is_the_mean_over_all_that_is_learned_whatever_the_rows_at_a_time(
    chats: DataFolder, data: DataFolder, shape: ModelConfig, cpu: Device, batch_size: int
) -> None:
    model = random_model(shape).train()
    config = replace(CONFIG, batch_size=batch_size, mix=0.5)
    source = make(chats, config, base=data)
    optimizer = make_optimizer(model, config)
    trainer = Trainer(model, optimizer, source, config, cpu, batch_size=batch_size)
    x, y, starts = source.batch(0).rows.unbind(1)
    n_learned = (y != IGNORED).sum(dim=1)
    assert n_learned.max() > 2 * n_learned.min()  # a mean of means would be another
    plain = random_model(shape)
    expected = F.cross_entropy(plain(x, starts=starts).flatten(0, 1), y.flatten())
    expected.backward()  # type: ignore[no-untyped-call]
    norm = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    result = update(trainer, 0, 1e-2)
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("n_rows", [1, 4])
def test_an_evaluation_is_of_the_assistants_words_alone(
    chats: DataFolder, shape: ModelConfig, cpu: Device, n_rows: int
) -> None:
    model, tokenizer = random_model(shape), chats.tokenizer()
    lengths = token_lengths(tokenizer)
    nats, n_tokens, n_bytes = 0.0, 0, 0
    for talk in VAL:
        ids, mask = ids_and_mask(talk, tokenizer)
        with torch.inference_mode():
            logp = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
        learned = [(i, ids[i]) for i in range(len(ids)) if mask[i]]
        nats -= sum(float(logp[i - 1, idx]) for i, idx in learned)
        n_tokens += len(learned)
        n_bytes += sum(int(lengths[idx]) for _, idx in learned)
    batches = make(chats).eval_batches("val", 1 << 20, n_rows)
    score = evaluate(model, batches, lengths, cpu)
    assert score.n_tokens == n_tokens
    assert score.loss == pytest.approx(nats / n_tokens, rel=1e-5)
    assert score.bpb == pytest.approx(nats / n_bytes / np.log(2), rel=1e-5)
    assert len(make(chats).eval_batches("val", 3 * T, 1)) == 3  # of more, some are looked at


def test_answers_end_where_the_network_ends_them(
    chats: DataFolder, shape: ModelConfig, cpu: Device
) -> None:
    torch.manual_seed(0)
    model, config = GPT(shape), replace(CONFIG, learning_rate=2e-2)
    source = make(chats)
    trainer = Trainer(model, make_optimizer(model, config), source, config, cpu, batch_size=5)
    ids, _ = ids_and_mask([("user", "the"), ("assistant", "x")], chats.tokenizer())
    asked = "  it was asked:  'the'\n  and answered:  "
    assert answer_line(model, chats.tokenizer(), ids).startswith(asked)
    for step in range(150):
        update(trainer, step, 2e-2)
    assert answer_line(model, chats.tokenizer(), ids) == asked + "'the'"


def test_another_data_set_in_their_place_changes_nothing_of_a_run(
    data: DataFolder, shape: ModelConfig, tmp_path: Path
) -> None:
    tokenizer, model = data.tokenizer(), random_model(shape)
    talks = echoes(5, seed=0)
    chats = write_chats(tmp_path / "chats", tokenizer, {"train": talks, "val": talks})
    check_sizes(chats, T)  # as a run begins
    before = sample_lines(model, tokenizer, chats, 0)
    asked = [f"asked:  {said[0][1]!r}" in before for said in talks]
    assert asked == [True] * 3 + [False] * 2
    shutil.rmtree(chats.path)
    assert sample_lines(model, tokenizer, chats, 0) == before
    assert chats.chat_template == CHAT_TEMPLATE


def test_a_mask_that_is_written_over_is_a_sentence(data: DataFolder, tmp_path: Path) -> None:
    talks = echoes(5, seed=0)
    chats = write_chats(tmp_path / "chats", data.tokenizer(), {"train": talks, "val": talks})
    make(chats)
    chats.check_files()
    path = chats.path / "train.mask"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match=r"train\.mask: was written over while it was read"):
        chats.check_files()
