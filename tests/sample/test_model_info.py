"""The card: what is in the run's files, and nothing that JSON cannot say."""

import json
from itertools import pairwise
from pathlib import Path

import torch

from common.checkpoint import load_checkpoint
from common.inference.config import GenerateConfig
from sample.model_info import MAX_POINTS, make_card, thinned
from sample.server.config import ServeConfig
from sample.server.requests import ServedModel
from sample.server.responses import json_bytes
from sample.text.template import TURNS
from tests.sample.conftest import ALPHABET, make_run


def card_of(run: Path) -> dict[str, object]:
    folder = run / "step-00000010"
    model = ServedModel(
        name="circle", fingerprint="x", created=0, tokenizer=ALPHABET, block_size=16,
        template=TURNS, defaults=GenerateConfig(top_k=7), limits=ServeConfig(),
    )  # fmt: skip
    card: dict[str, object] = json.loads(
        json_bytes(make_card(folder, load_checkpoint(folder, torch.device("cpu")), model))
    )
    return card


def test_the_card_says_what_the_run_says(tmp_path: Path) -> None:
    card = card_of(make_run(tmp_path, "circle"))
    assert (card["step"], card["tokens_read"], card["val_loss"]) == (10, 10_000, 1.25)
    assert (card["n_layer"], card["block_size"], card["vocab_size"]) == (1, 16, 15)
    assert card["curve"] == {"train": [], "val": [[10, 1.25], [20, 1.5]]}
    assert card["defaults"] == {"temperature": 0.8, "top_p": 0.95, "top_k": 7, "max_tokens": 200}
    assert card["template"] == "turns"


def test_a_diverged_run_has_a_card_without_what_is_no_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, "circle")
    lines = [{"step": 10, "loss": 2.0, "val_loss": float("nan")}, {"step": 20, "loss": 1e999}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    card = card_of(run)
    assert card["val_loss"] is None
    assert card["curve"] == {"train": [[10, 2.0]], "val": []}


def test_a_long_curve_is_thinned_evenly_and_keeps_its_end() -> None:
    line = [(step, 1.0 / step) for step in range(1, 100_001)]
    kept = thinned(line)
    assert MAX_POINTS // 2 < len(kept) <= MAX_POINTS
    assert kept[-1] == line[-1]
    assert len({later[0] - earlier[0] for earlier, later in pairwise(kept)}) == 1
    assert thinned(line[:3]) == line[:3]
