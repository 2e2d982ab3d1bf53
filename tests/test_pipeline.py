"""The three stages chained as a person chains them: an archive goes in, text comes out."""

import json
import lzma
import random
import subprocess
from pathlib import Path

from tests.processes import run_python

WORDS = [
    "the",
    "mill",
    "grinds",
    "old",
    "grain",
    "into",
    "fine",
    "flour",
    "while",
    "one",
    "person",
    "turns",
    "its",
    "handle",
]


def run(*arguments: str, cwd: Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a stage in a folder, as ``python -m``; fail with what it said."""
    done = run_python(["-m", *arguments], cwd, typed=stdin)
    assert done.returncode == 0, done.stderr
    return done


def test_an_archive_goes_in_and_a_conversation_comes_out(tmp_path: Path) -> None:
    rng = random.Random(1)
    text = "\n".join(" ".join(rng.choices(WORDS, k=9)) + "." for _ in range(3_000))
    (tmp_path / "story.txt.xz").write_bytes(lzma.compress(text.encode()))

    table = run("prepare", "text", "story.txt.xz", "--vocab-size", "300", cwd=tmp_path).stdout
    assert f"{len(text):,}" in table.replace("\n", " ")
    run("prepare", "verify", cwd=tmp_path)

    # words are drawn evenly, so a model that knows them is at ln(14) a word, 0.66 bits a byte
    said = run(
        "train", "pretrain", "--max-steps", "150", "--n-layer", "1", "--n-head", "2", "--n-embd",
        "64", "--block-size", "32", "--tokens-per-step", "512", "--eval-interval", "75",
        "--learning-rate", "5e-3", cwd=tmp_path,
    ).stderr  # fmt: skip
    assert "model" in said
    lines = (tmp_path / "runs/quern/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["val_bpb"] < 1.2

    chat = run("sample", "chat", cwd=tmp_path, stdin="the mill\n\nold grain\none person\n")
    for prompt in ("the mill", "old grain", "one person"):
        line = next(line for line in chat.stdout.splitlines() if line.startswith(prompt))
        known = [word.strip(".") in WORDS for word in line.split()]
        assert sum(known) > 0.8 * len(known)
    assert "base model" in chat.stderr

    story = run("sample", "generate", "--prompt", "the mill", "--seed", "7", cwd=tmp_path)
    again = run("sample", "generate", "--prompt", "the mill", "--seed", "7", cwd=tmp_path)
    assert story.stdout.startswith("the mill")
    assert story.stdout == again.stdout
