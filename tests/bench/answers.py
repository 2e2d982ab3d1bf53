"""Does the embedded default answer? Its whole chain, then questions in wordings it never saw.

    corpus --> data --> index --> pretrain --> chats --> finetune --> questions, counted by overlap

An answer is right where at least half of the content words of what the library says of that
thing stand in it, those of its name apart, and nothing else that the library says fits it better.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from common.chat_format import END_OF_MESSAGE, Role
from common.models.config import GenerateConfig
from prepare.questions import asked_about
from sample.loaded_model import LoadedModel, generate_config, load_model
from sample.text.prompt import CHAT, Message, build_prompt

# None of them is among those that are learned (prepare/questions.yml).
HELD_OUT = (
    "Could you tell me what {} does?", "What is the purpose of {}?", "How does {} work?",
    "please explain what {} is for", "What's {} good for?", "So what does {} do",
    "i want to know what {} does", "What would {} do for me?",
)  # fmt: skip
# Out of a person's head, before any model was asked.
BY_HAND = {
    "What does os.path.join do?": "os.path.join", "what does len do": "len",
    "What is collections.Counter?": "collections.Counter", "How does random.shuffle work?":
    "random.shuffle", "what is deque for": "collections.deque", "Explain functools.reduce":
    "functools.reduce", "what does input do?": "input", "What does shutil.copytree do?":
    "shutil.copytree", "tell me about itertools.chain": "itertools.chain",
    "What's in the module random?": "random",
}  # fmt: skip
STOP_WORDS = set(
    "a an the of to in is are be and or for from with that this it its by on at as if not when "  # noqa: SIM905
    "which into given use used using one all any can has have will other than".split()
)
# As make chat has it for the default conversations.
MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text("utf-8")
LEARNED_BY_HEART = re.findall(r"^BY_HEART := (.*)", MAKEFILE, re.MULTILINE)
N_ROWS = 32
TURNS: tuple[Role, ...] = ("user", "assistant")


@dataclass(frozen=True)
class Score:
    """Shares of the answers to questions."""

    right: float  # of those about the library in wordings held out
    by_hand: float
    ended: float  # by themselves, of all


def words(text: str) -> set[str]:
    """Return the distinct content words of a text."""
    return set(re.findall(r"[a-z0-9_]+", text.lower())) - STOP_WORDS


def is_right(answer: str, name: str, references: dict[str, set[str]]) -> bool:
    """Tell whether an answer about ``name`` is; references are the words of what is said of all."""
    said, own = words(answer), references[name]
    asked = own - words(name) or own
    # of the words of both texts, the share that they have in common
    fit = {
        key: 2 * len(other & said) / (len(other) + len(said)) for key, other in references.items()
    }
    return 2 * len(asked & said) >= len(asked) and fit[name] >= max(fit.values())


def ask(
    model: LoadedModel, conversations: Sequence[Sequence[str]], temperature: float = 0.0
) -> list[tuple[str, bool]]:
    """Return each conversation's answer and whether it ended by itself; its user speaks first.

    With the settings that sample chat has by default, but for the ``temperature``.
    """
    decoder = model.decoder(N_ROWS)
    end, found = model.tokenizer.special_tokens[END_OF_MESSAGE], dict[int, tuple[str, bool]]()
    waiting, rows = list(enumerate(conversations))[::-1], dict[int, tuple[int, list[int]]]()
    while waiting or rows:
        for row in set(range(N_ROWS)) - rows.keys():
            if waiting:
                number, said = waiting.pop()
                roles = cycle(TURNS)
                messages = [Message(next(roles), text) for text in said]
                own = {"temperature": temperature, "seed": number}
                config = generate_config(model.info, CHAT, own)
                prompt = build_prompt(
                    messages, template=CHAT, tokenizer=model.tokenizer,
                    block_size=decoder.block_size, max_new_tokens=config.max_new_tokens,
                )  # fmt: skip
                decoder.admit(row, prompt.ids, config)
                rows[row] = number, []
        for row, token in decoder.step().items():
            number, ids = rows[row]
            if model.tokenizer.token_bytes[token.idx] and len(ids) < config.max_new_tokens:
                ids.append(token.idx)
                continue
            text = model.tokenizer.decode_bytes(ids).decode("utf-8", "replace")
            found[number] = text, token.idx == end
            decoder.release(row)
            del rows[row]
    return [found[number] for number in range(len(conversations))]


def score(model: LoadedModel, n_questions: int = 500, temperature: float = 0.0) -> Score:
    """Ask a model that many questions in wordings held out, and those out of a person's head."""
    texts = {name: text for name, (_, text) in asked_about().items()}
    references = {name: words(f"{name} {text}") for name, text in texts.items()}
    draw = random.Random(5)
    names = [draw.choice(sorted(texts)) for _ in range(n_questions)]
    answers = ask(model, [[draw.choice(HELD_OUT).format(name)] for name in names], temperature)
    right = [
        is_right(said, name, references) for (said, _), name in zip(answers, names, strict=True)
    ]
    by_hand = ask(model, [[question] for question in BY_HAND], temperature)
    known = [
        is_right(said, name, references)
        for (said, _), name in zip(by_hand, BY_HAND.values(), strict=True)
    ]
    ended = [ends for _, ends in answers + by_hand]
    return Score(*(sum(each) / len(each) for each in (right, known, ended)))


def commands(pretraining: Sequence[str], finetuning: Sequence[str]) -> Iterator[str]:
    """Yield those that make corpus, data, base, chats and base-chat, as make chat does."""
    yield "prepare corpus corpus --chats questions.jsonl.zst"
    yield "prepare text corpus --vocab-size 8192 --out data"
    yield "train pretrain --data data --run base " + " ".join(pretraining)
    yield "prepare chats questions.jsonl.zst --tokenizer runs/base --out chats"
    yield "train finetune --from base --data chats --run base-chat " + " ".join(finetuning)


def run(command: str, folder: Path) -> None:
    """Run a command of ours in ``folder``; what it says goes to stderr."""
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-m", *command.split()]
    subprocess.run(words, cwd=folder, check=True, stdout=sys.stderr, env=os.environ | path)


def val_losses(run: Path) -> Iterator[float]:
    """Yield the val losses of a run, in nats a token."""
    for line in (run / "metrics.jsonl").read_text("utf-8").splitlines():
        if "val_loss" in (record := json.loads(line)):
            yield record["val_loss"]


def main(runs_dir: Path | None = None) -> None:
    """Print the figures of the chain, made anew in seven minutes, or of the run in ``runs_dir``."""
    with tempfile.TemporaryDirectory() as temporary:
        if runs_dir is None:
            lengths = ["--minutes", "3"], ["--minutes", "3.5", *LEARNED_BY_HEART]
            for command in commands(*lengths):
                run(command, Path(temporary))
            runs_dir = Path(temporary) / "runs"
        model = load_model(None, runs_dir, "latest", "cpu", "none")
        for temperature in (0.0, GenerateConfig().temperature):
            found = score(model, temperature=temperature)
            sys.stdout.write(
                f"temperature {temperature:g}: {found.right:.1%} right of wordings held out, "
                f"{found.by_hand:.0%} out of a person's head; {found.ended:.1%} ended\n"
            )
        for said in ("Hello", "Who are you?", "What is the capital of Italy?", *BY_HAND):
            sys.stdout.write(f"> {said}\n{ask(model, [[said]])[0][0]}\n")
