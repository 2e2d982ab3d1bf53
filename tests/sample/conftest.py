"""Runs whose every next character is known: what they write can be said beforehand."""

import json
from pathlib import Path

import pytest

from common.checkpoint import save_checkpoint
from common.files import write_json
from common.models.gpt import GPT
from common.run_dir import new_run, write_pointer
from common.tokenizer import CharTokenizer
from tests.tiny import successor_model

ALPHABET = CharTokenizer(tuple("\n abcdefgh"))
CIRCLE = "abcdefgh"


def round_and_round(*, forwards: bool) -> GPT:
    """Return a network that writes a to h in a circle; after a blank or a new document, an a."""
    order = CIRCLE if forwards else CIRCLE[::-1]
    after = dict(zip(order, order[1:] + order[0], strict=True))
    after |= {" ": "a", "\n": "a", "<|endoftext|>": "a"}
    return successor_model(ALPHABET, {last: {next_: 50.0} for last, next_ in after.items()})


def make_run(runs_dir: Path, name: str) -> Path:
    """Save a run: the best checkpoint, at step 10, goes forwards, the latest, at 30, backwards."""
    run = new_run(runs_dir, name)
    write_json(run / "config.json", {"format": 1})
    for step, forwards in ((10, True), (20, False), (30, False)):
        state = {"progress": {"step": step, "n_tokens": 1000 * step}}
        folder = save_checkpoint(run, step, round_and_round(forwards=forwards), {}, state, ALPHABET)
        if step == 10:
            write_pointer(run, "best", folder)
    lines = [{"step": 10, "val_loss": 1.25}, {"step": 20, "val_loss": 1.5}, {"step": 30}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    return run


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/old and, saved later, runs/circle; not to be changed."""
    folder = tmp_path_factory.mktemp("sample")
    make_run(folder / "runs", "old")
    make_run(folder / "runs", "circle")
    return folder
