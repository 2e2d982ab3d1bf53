"""Small talk: what people say besides questions about the library, with honest answers.

own lines, chatterbot-corpus (greetings, jokes ...) -> what is said, what is answered
chatterbot-corpus (trivia, history ...)             -> questions, "I do not know that."
"""

import random
import re
from collections.abc import Iterator
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

UNKNOWN = "I do not know that. I have only read the documentation of Python on this machine."
N_REPEATS = 3  # of what the package says, so that it is learned
# What of the package is said of things that this model does not claim of itself.
ANSWERED = ("computers", "food", "greetings", "humor")
# What it asks, and this model cannot know.
NOT_ANSWERED = (
    "gossip", "history", "literature", "money", "movies", "politics", "science", "sports", "trivia",
)  # fmt: skip
MAX_ANSWER, MAX_JOKES = 160, 5
# Of other programs, of feelings and bodies, or at somebody's cost.
LEFT_OUT = re.compile(
    r"robot|human|\bi (love|feel|like|want|hear|could)\b|tipsy|burger|murder|eskimo|buddhist|guy|"
    r"die\b|balls|dyslexic|face|fool|nasa|the sky's up|kindly|the rest of the day|electricity|"
    r"hardware or software|depends on",
    re.IGNORECASE,
)


def wordings() -> dict[str, Any]:
    """Return what questions.yml holds, by its keys."""
    import yaml  # as chatterbot-corpus reads its files; it comes with datasets

    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("questions.yml").read_bytes())
    return content


def small_talk() -> Iterator[tuple[str, str]]:
    """Yield what is said and what is answered, as often as it takes to be learned."""
    draw, own = random.Random("small talk"), wordings()
    seen = []
    for group in own["small_talk"]:
        for said in group["said"].split("|"):
            bare, mark = said.rstrip("?."), "?" if said.endswith("?") else "."
            seen.append(bare.lower())
            for each in (bare, bare, bare, bare + mark, bare + mark, bare + "!") * 2:
                yield each, group["answer"]
                yield each.lower(), group["answer"]
            yield bare.upper(), group["answer"]
    for group in own["unknown"]:
        for asked, word in product(group["asked"].split("|"), group["words"]):
            yield draw.choice((asked, asked.lower(), asked.rstrip("?."))).format(word), UNKNOWN
    for said, answer in _package(ANSWERED):
        most = MAX_JOKES if "joke" in said else 1
        key = said.rstrip("?!.").lower()
        if seen.count(key) < most and len(answer) <= MAX_ANSWER and not LEFT_OUT.search(answer):
            seen.append(key)
            for _ in range(N_REPEATS):
                yield draw.choice((said, said.rstrip("?."))), answer
    for said, _ in _package(NOT_ANSWERED):
        if re.match("(who|what|where|when|why|how|which) ", said, re.IGNORECASE):
            yield draw.choice((said, said.rstrip("?"))), UNKNOWN


def _package(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the first two lines of each conversation in these files of chatterbot-corpus."""
    import yaml

    folder = resources.files("chatterbot_corpus") / "data" / "english"
    for name in names:
        content: Any = yaml.safe_load((folder / f"{name}.yml").read_text("utf-8"))
        for lines in content["conversations"]:
            said, answer = (" ".join(str(line).split()) for line in lines[:2])
            said = said.capitalize() if said.isupper() else said
            yield said[0].upper() + said[1:], answer[0].upper() + answer[1:]
