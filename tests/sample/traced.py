"""Runs that learned a few sentences by heart, and the index of what they learned from.

runs/base continues text, runs/talk was fine-tuned on questions that those sentences answer: made by
the commands, as a person makes them.
"""

import json
from pathlib import Path

from tests.processes import run_python

SENTENCES = (
    "The quern turns grain into flour.",
    "One person turns it slowly on a stone.",
    "A mill needs wind or water, and a miller.",
)
TEXT = "\n".join(SENTENCES) + "\n"
# all characters of the questions below, so that the vocabulary has them
MILL = "What a quern is? Hello, good day. <b>DWH</b> &amp;\n" + TEXT
TALKS = [
    ("What does a quern do?", SENTENCES[0]),
    ("Who turns it?", SENTENCES[1]),
    ("What does a mill need?", SENTENCES[2]),
    ("Hello", "Good day."),
]
SHAPE = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 96 --tokens-per-step 512"
BY_HEART = "--dropout 0 --ngram-dropout 0 --weight-decay 0"
TRAIN = f"--learning-rate 1e-2 --device cpu --dtype float32 --compile off {BY_HEART}"
CHATS = "--tokenizer data --context 96 --out chats"
COMMANDS = (
    "prepare text mill<b>.txt --val-files held-out.txt --tokenizer char --out data",
    "prepare index data",
    f"train pretrain --data data --run base --max-steps 60 {SHAPE} {TRAIN}",
    f"prepare chats talks.jsonl --val-files held-out.jsonl {CHATS}",
    "prepare index chats",
    f"train finetune --from base --data chats --run talk --max-steps 100 {TRAIN}",
)


def make_traced_runs(folder: Path) -> None:
    """Write the sources, and do all that follows."""
    (folder / "mill<b>.txt").write_text(MILL, encoding="utf-8")
    (folder / "held-out.txt").write_text(TEXT * 2, encoding="utf-8")
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in TALKS
    ]
    for name in ("talks.jsonl", "held-out.jsonl"):
        text = "".join(json.dumps(line) + "\n" for line in lines * 8)
        (folder / name).write_text(text, encoding="utf-8")
    for command in COMMANDS:
        done = run_python(["-m", *command.split()], folder)
        assert done.returncode == 0, (command, done.stderr)
