"""Preference optimisation against values by hand and plain torch; whole runs of it."""

import copy
import math
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.chat_format import end_id, role_id
from common.checkpoint import load_checkpoint, newest_valid
from common.dataset import DataFolder, open_data
from common.errors import CheckpointError, DataError
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.loss import IGNORED
from tests.processes import run_python
from tests.tiny import random_model
from tests.train.chats import prepare_chats, two_answers
from tests.train.runs import assert_same_outcome, metrics, pretrain
from tests.train.stops import StopAfter
from tests.train.test_resume import RESUME, signal_after
from train.batches.sources import make_source
from train.config import TrainConfig
from train.evaluate import answer_line
from train.finetune import finetune_options
from train.optim.lora import add_lora, unmerged
from train.preference import REFERENCE_NAME, Preference, answer_logps, is_pair, preference_loss
from train.pretrain import Changes, resume_run
from train.signals import StopRequest

pytestmark = pytest.mark.usefixtures("quick_plan")

PROMPT, CHOSEN, REJECTED = [3, 4, 5], [6, 7], [8, 9, 1, 2]
OTHER = ([2, 9], [1, 5, 7], [4])  # prompt, chosen, rejected


def one_row(*pairs: tuple[list[int], list[int], list[int]], size: int = 16) -> Tensor:
    """Return (1, 2, 3, T) of pairs, end to end."""
    rows = torch.zeros(1, 2, 3, size, dtype=torch.int64)
    rows[:, :, 1] = IGNORED
    at = 0
    for prompt, *answers in pairs:
        for side, answer in enumerate(answers):
            ids = torch.tensor(prompt + answer)
            end = at + len(ids) - 1
            rows[0, side, 0, at:end] = ids[:-1]
            rows[0, side, 1, end - len(answer) : end] = torch.tensor(answer)
            rows[0, side, 2, at:] = at
        at += len(prompt) + max(map(len, answers)) - 1
    rows[:, :, 2, at:] = at
    return rows


def plain_logp(model: GPT, prompt: list[int], answer: list[int]) -> Tensor:
    """Return log p(answer | prompt), token by token, of the conversation alone."""
    logps = model(torch.tensor([prompt + answer])).log_softmax(dim=-1)[0]
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.stack([logps[at, idx] for at, idx in zip(places, answer, strict=True)]).sum()


def plain_loss(model: GPT, reference: GPT, pair: Any, beta: float) -> Tensor:
    """Return equation 7 as it stands in the paper."""
    prompt, *answers = pair
    with torch.no_grad():
        q = [plain_logp(reference, prompt, answer) for answer in answers]
    p = [plain_logp(model, prompt, answer) for answer in answers]
    ratios = [mine - before for mine, before in zip(p, q, strict=True)]
    return -torch.log(1 / (1 + torch.exp(-(beta * ratios[0] - beta * ratios[1]))))


def test_the_loss_is_what_one_works_out_by_hand() -> None:
    logps = torch.tensor([[-1.0, -4.0, -2.0], [-3.0, -2.0, -5.0]])
    before = torch.tensor([[-2.0, -2.0, -2.0], [-2.0, -3.0, -5.0]])
    # gains 1 and -1, -2 and 1, none: margins of 2, -3 and 0, times beta
    loss, margin = preference_loss(logps, before, beta=0.5)
    assert margin.tolist() == [1.0, -1.5, 0.0]
    by_hand = [0.31326169, 1.70141328, math.log(2)]  # ln(1 + e^-1), ln(1 + e^1.5)
    assert loss.tolist() == pytest.approx(by_hand, rel=1e-6)


@pytest.fixture
def networks(tiny_config: ModelConfig) -> tuple[GPT, GPT]:
    """Return a network in float64 and another as its reference."""
    return random_model(tiny_config).double(), random_model(tiny_config, seed=1).double()


def test_packed_pairs_have_loss_and_gradient_of_the_formula_on_each_alone(
    networks: tuple[GPT, GPT],
) -> None:
    model, reference = networks
    pairs = [(PROMPT, CHOSEN, REJECTED), OTHER]
    rows = one_row(*pairs)
    assert is_pair(rows).nonzero().tolist() == [[0, 0], [0, 6]]
    loss, sums = Preference(reference, beta=0.3)(model, model, rows)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plain = sum(plain_loss(model, reference, pair, 0.3) for pair in pairs) / len(pairs)
    assert isinstance(plain, Tensor)
    plain.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, plain, rtol=1e-10, atol=1e-12)
    assert int(sums["n"]) == 2
    nats = [-plain_logp(model, prompt, chosen).item() for prompt, chosen, _ in pairs]
    assert float(sums["nats"]) == pytest.approx(sum(nats))
    assert not any(p.grad is not None for p in reference.parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-10, msg=name)


@pytest.fixture(scope="module")
def pairs(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return prepare_chats(two_answers(60), tmp_path_factory.mktemp("pairs"), "pairs", data.path)


def test_rows_hold_every_pair_once_an_epoch_side_by_side(pairs: DataFolder) -> None:
    tokenizer = pairs.tokenizer()
    source, found = make_source(pairs, TrainConfig(tokens_per_step=32), 32), []
    for step in range(int(source.tokens_per_epoch) // 32):
        batch = source.batch(step)
        places = is_pair(batch.rows).nonzero().tolist()
        assert batch.n_learned == len(places)
        for number, at in places:
            texts = []
            for x, y, starts in batch.rows[number]:
                own = (starts == at) & (y != IGNORED)  # of a side: its answer and the end
                assert y[own][-1] == end_id(tokenizer)
                first = int(own.nonzero()[0])
                question = x[at:first].tolist()
                assert question[0] == role_id(tokenizer, "user")
                assert x[first] == role_id(tokenizer, "assistant")
                texts += [tokenizer.decode_bytes(ids) for ids in (question, y[own].tolist())]
            found.append(texts)
    bounds, ids = pairs.document_bounds("train"), pairs.tokens("train")
    documents = [tokenizer.decode_bytes(ids[a:b].tolist()) for a, b in pairwise(bounds)]
    assert sorted(b"".join(texts) for texts in found) == sorted(documents)
    assert {(answer, worse) for _, answer, _, worse in found} == {(b"grain", b"stone")}


SHAPE: dict[str, Any] = {"n_embd": 32, "block_size": 32, "dropout": 0.0, "ngram_dropout": 0.0}
COMMON = SHAPE | {
    "tokens_per_step": 512, "batch_size": 4, "save_interval": 5, "log_interval": 1,
    "eval_tokens": 100_000, "weight_decay": 0.1,
}  # fmt: skip
FINETUNE = COMMON | {"max_steps": 60, "eval_interval": 20}
RATES = {"learning_rate": 5e-4, "matrix_lr": 6e-3, "table_lr": 1e-3}
PREFERENCE = COMMON | RATES | {"max_steps": 4, "eval_interval": 2}


@pytest.fixture(scope="module")
def tuned(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a network that answers one way as often as the other."""
    folder = tmp_path_factory.mktemp("tuned")
    both = [
        {"prompt": pair["prompt"], "completion": pair[side]}
        for pair in two_answers(120, seed=1)
        for side in ("chosen", "rejected")
    ]
    chats = prepare_chats(both, folder, "chats", data.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.setup.autotune.MEASURE_S", 0.0)
        base = newest_valid(
            pretrain(data.path, folder, "base", **COMMON, max_steps=2, seed=1), "best"
        )
        run = pretrain(chats.path, folder, "tuned", init_from=base, **FINETUNE)
        return newest_valid(run, "best")


def logps(weights: Path, pairs: DataFolder) -> Tensor:
    """Return the log-probabilities of the answers in val, (2, n), by a checkpoint."""
    model = load_checkpoint(weights, torch.device("cpu")).model.eval()
    rows = torch.cat(
        [make() for make in make_source(pairs, TrainConfig(), 32).eval_batches("val", 10**6, 4)]
    )
    with torch.no_grad():
        return answer_logps(model, rows)[:, is_pair(rows)]


def test_the_margin_grows_until_the_chosen_answers_are_given(
    pairs: DataFolder, tuned: Path, tmp_path: Path
) -> None:
    run = pretrain(pairs.path, tmp_path, init_from=tuned, **PREFERENCE)
    lines = metrics(run)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # p is still q
    first, last = (line for line in lines if "val_loss" in line)
    for split in ("train", "val"):
        assert 0 < first[f"{split}_margin"] < last[f"{split}_margin"]
        assert last[f"{split}_loss"] < first[f"{split}_loss"] < math.log(2)
        assert last[f"{split}_accuracy"] == 1.0
    weights = newest_valid(run, "latest")
    before, after = logps(tuned, pairs), logps(weights, pairs)
    loss, margin = preference_loss(after, before, beta=0.1)
    assert float(loss.mean()) == pytest.approx(last["val_loss"], abs=1e-5)
    assert float(margin.mean()) == pytest.approx(last["val_margin"], abs=1e-5)
    network, tokenizer = load_checkpoint(weights, torch.device("cpu")).model, pairs.tokenizer()
    for pair in two_answers(12, seed=2):
        asked = [role_id(tokenizer, "user"), *tokenizer.encode(pair["prompt"]), end_id(tokenizer)]
        line = answer_line(network, tokenizer, [*asked, role_id(tokenizer, "assistant")])
        assert line.endswith("and answered:  'grain'")


@pytest.mark.parametrize("lora", [0, 2])
def test_stopped_and_resumed_it_has_the_same_bits_though_the_run_it_began_from_is_gone(
    pairs: DataFolder, tuned: Path, tmp_path: Path, lora: int
) -> None:
    base = tmp_path / "base" / tuned.name
    shutil.copytree(tuned, base)
    settings = PREFERENCE | {"dropout": 0.1, "lora": lora, "optimizer": "adamw"}
    unstopped = pretrain(pairs.path, tmp_path, "unstopped", init_from=base, **settings)
    stop = StopAfter(7)
    run = pretrain(pairs.path, tmp_path, "stopped", stop, init_from=base, **settings)
    assert 0 < metrics(run)[-1]["step"] < 10
    shutil.rmtree(base)
    assert resume_run(run, "cpu", StopRequest()) is None
    assert_same_outcome(run, unstopped)
    kept = run / REFERENCE_NAME
    assert kept.exists() == (not lora)
    if not lora:  # it never learns
        assert kept.read_bytes() == (tuned / "model.safetensors").read_bytes()
        weights = kept.read_bytes()
        kept.unlink()
        with pytest.raises(CheckpointError, match="Without the weights that a run began with"):
            resume_run(run, "cpu", StopRequest(), Changes(max_steps=12))
        kept.write_bytes(weights[:-4] + b"1234")
        with pytest.raises(CheckpointError, match="its content changed, by its SHA-256"):
            resume_run(run, "cpu", StopRequest(), Changes(max_steps=13))


def test_with_adapters_the_reference_is_the_network_without_them(networks: Any) -> None:
    model, base = networks[0], copy.deepcopy(networks[0])
    add_lora(model, 2, alpha=4.0, seed=0)
    for name, parameter in unmerged(model).items():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    model.config = replace(model.config, dropout=0.5)
    rows = one_row((PROMPT, CHOSEN, REJECTED), OTHER)
    found = Preference(None, beta=0.1).reference_logps(model.train(), rows)
    torch.testing.assert_close(found, Preference(base, 0.1).reference_logps(model, rows))
    assert model.training
    assert not torch.allclose(found, answer_logps(model.eval(), rows))


def test_data_that_is_for_another_command_is_said_to_be(
    pairs: DataFolder, tuned: Path, tmp_path: Path
) -> None:
    chats = open_data(tuned.parent.parent.parent / "chats")
    for command, data, words in [
        ("finetune", pairs, "preference pairs: python -m train preference"),
        ("preference", chats, "no pairs: python -m train finetune"),
    ]:
        with pytest.raises(DataError, match=words):
            finetune_options(command, tuned, data, {})
    with pytest.raises(DataError, match="train preference --from RUN"):
        pretrain(pairs.path, tmp_path, **SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["finetune --lora 2", "preference"])
def test_killed_again_and_again_it_is_the_run_that_nothing_stopped(
    pairs: DataFolder, tuned: Path, tmp_path: Path, command: str
) -> None:
    data = pairs.path if command == "preference" else tuned.parents[2] / "chats"
    more = (
        "--run tiny --device cpu --max-steps 90 --eval-interval 30 --save-interval 6 --patience 0 "
        "--dropout 0.1 --tokens-per-step 256 --learning-rate 1e-3"
    )
    where = f"--from {tuned.parent.name} --data {data}"
    start = ["-m", "train", *command.split(), *where.split(), *more.split()]
    for folder in ("unstopped", "killed"):
        shutil.copytree(tuned.parent, tmp_path / folder / "runs" / tuned.parent.name)
    ended = run_python(start, tmp_path / "unstopped")
    assert ended.returncode == 0, ended.stderr
    for arguments, step in ((start, 12), (RESUME, 40), (RESUME, 66)):
        killed = signal_after(arguments, tmp_path / "killed", step, signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
    ended = run_python(RESUME, tmp_path / "killed")
    assert ended.returncode == 0, ended.stderr
    assert_same_outcome(*(tmp_path / name / "runs" / "tiny" for name in ("killed", "unstopped")))
