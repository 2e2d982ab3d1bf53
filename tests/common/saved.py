"""Small checkpoints, and what can happen to their files."""

from pathlib import Path
from typing import Any

import torch

from common.checkpoint import save_checkpoint
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import checkpoints
from common.tokenizer import CharTokenizer
from tests.tiny import random_model

ABC = CharTokenizer(tuple("abc\n"))
TINY = ModelConfig(vocab_size=ABC.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8)


def save(run: Path, step: int, model: GPT | None = None, **kept: Any) -> Path:
    """Save a checkpoint whose weights are those of ``random_model`` at seed ``step``."""
    model = model or random_model(TINY, seed=step)
    optimizer = {"wte.weight:exp_avg": torch.full((3,), float(step))}
    return save_checkpoint(run, step, model, optimizer, {"progress": {"step": step}}, ABC, **kept)


def names(run: Path) -> list[str]:
    return [folder.name for folder in checkpoints(run)]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()
