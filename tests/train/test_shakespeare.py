"""The setting that nanoGPT's README gives for a CPU, to its result.

Source: github.com/karpathy/nanoGPT, README, "I only have a macbook": 4 layers, 4 heads, 128
channels, a context of 64, 12 rows, 2000 steps; a validation loss of 1.88.
"""

import math
from pathlib import Path

import pytest

from common.dataset import open_data
from tests.processes import REPOSITORY, start_python
from tests.train.runs import metrics

SOURCE = REPOSITORY.parent / "shared" / "data" / "tinyshakespeare.txt"
TIMEOUT_S = 1800
PREPARE = ["-m", "prepare", "text", str(SOURCE), "--tokenizer", "char"]
PRETRAIN = [
    "-m", "train", "pretrain", "--n-layer", "4", "--n-head", "4", "--n-embd", "128",
    "--block-size", "64", "--tokens-per-step", "768", "--max-steps", "2000",
    "--learning-rate", "1e-3", "--eval-interval", "500",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.exists(), reason=f"{SOURCE} is not on this machine")
def test_shakespeare_is_learned_as_well_as_by_nanogpt(tmp_path: Path) -> None:
    for command in (PREPARE, PRETRAIN):
        with start_python(command, tmp_path) as process:
            _, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, said
    last = metrics(tmp_path / "runs" / "quern")[-1]
    assert last["step"] == 2000
    assert last["val_loss"] <= 1.88
    # every token of val is ASCII here, one byte: nats a token over ln 2 are bits a byte
    val = open_data(tmp_path / "data").meta["splits"]["val"]
    assert val["tokens"] == val["bytes"] + 1  # the end-of-text id, which has none
    expected = last["val_loss"] / math.log(2) * (val["tokens"] - 1) / (val["bytes"] - 1)
    assert last["val_bpb"] == pytest.approx(expected)
