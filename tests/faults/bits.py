"""Each bit of a checkpoint, and of a data folder, flipped in turn: detected, or of no effect."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.checkpoint import load_checkpoint, verify_checkpoint
from common.dataset import open_data, verify_data
from common.errors import UserError
from common.models.config import ModelConfig
from common.run_dir import new_run, read_json
from tests.common.saved import ABC, save
from tests.faults.calls import Row
from tests.faults.jobs import CPU
from tests.prepare.making import prepare
from tests.tiny import random_model

SMALL = ModelConfig(vocab_size=ABC.vocab_size, block_size=4, n_layer=1, n_head=1, n_embd=4)


def flip_each(what: str, folder: Path, read: Callable[[Path], Any], every: int) -> Row:
    """Flip bits in all files of ``folder``; ``read`` raises UserError or returns what it did."""
    expected = read(folder)
    n, n_detected, wrong = 0, 0, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for bit in range(n % every, 8 * len(whole), every):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            n += 1
            try:
                if read(folder) != expected:
                    wrong.append(f"{path.name}, bit {bit}: not detected")
            except UserError:
                n_detected += 1
            except Exception as error:
                wrong.append(f"{path.name}, bit {bit}: {type(error).__name__}: {error}")
        path.write_bytes(whole)
    return Row(what, n, f"{n_detected:,} detected, {n - n_detected - len(wrong):,} change nothing",
               wrong)  # fmt: skip


def of_checkpoint(place: Path, every: int) -> Iterator[Row]:
    """Flip the bits of a checkpoint of a network of two hundred weights."""
    folder = save(new_run(place, "bits"), 10, random_model(SMALL))

    def read(folder: Path) -> Any:
        verify_checkpoint(folder)
        loaded = load_checkpoint(folder, CPU)
        weights = {name: tensor.tolist() for name, tensor in loaded.model.state_dict().items()}
        return weights, loaded.state, loaded.tokenizer, read_json(folder / "manifest.json")

    yield flip_each("a bit of a checkpoint", folder, read, every)


def of_data(place: Path, every: int) -> Iterator[Row]:
    """Flip the bits of a data folder of six documents."""
    source = place / "six.jsonl"
    texts = [{"text": text} for text in ("ab", "cab", "bb a", "c", "ba", "abc")]
    source.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    prepare([source], place / "bits-data", split_rule="hash", val_fraction=0.2)
    names = open_data(place / "bits-data").meta.keys() - {"meta_sha256"}

    def read(folder: Path) -> Any:
        data = open_data(folder)
        verify_data(data)
        return [data.meta.get(name) for name in names]

    yield flip_each("a bit of a data set", place / "bits-data", read, every)
