"""The embedded default conversations: questions about the library, and small talk.

    Entry (library.py) x wordings -> "What does os.path.join do?" "os.path.join: Join two or ..."
    chatterbot-corpus, own lines  -> "Hello", "Who are you?"
    both, shuffled                -> {"messages": [...]} of one to three questions

An answer begins with the whole name, so that what follows it is known from its last few ids.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from common.errors import DataError
from common.files import atomic_write
from prepare.library import Entry, library
from prepare.small_talk import UNKNOWN, small_talk, wordings

Exchange = tuple[str, str]  # question, answer

N_WORDINGS, N_CALLS, N_WHERE, N_WHICH, N_UNKNOWN = 8, 3, 2, 2, 3_000
NO_COMPARISON = "I cannot compare. Ask me about one of them."
MAX_SIGNATURE = 80  # characters
MAX_MEANT = 5  # things of the same short name
# Characters of a first sentence that says something, and of an answer to a small network's taste.
MIN_SENTENCE, MAX_SENTENCE, MAX_SUMMARY = 10, 200, 160
# Words that docstrings begin with, and that are no verbs.
NO_VERBS = {"A", "An", "Called", "Decorator", "Equivalent", "Error", "For", "If", "In", "Just"}
NO_VERBS |= {"Like", "Number", "Same", "The", "True", "Whether", "With"}


def summary(text: str) -> str:
    """Return the first sentence of a docstring, with the second where both are short; or ""."""
    paragraph = text.partition("\n\n")[0]
    if "->" in paragraph:  # dict() -> new empty dictionary
        paragraph = paragraph.partition("\n")[0]
    sentences = re.split(r"(?<=[^.][.!?])\s+(?=[A-Z'\"(*])", paragraph)
    if len(sentences[0]) > MAX_SENTENCE:
        sentences = re.split(r"(?<=[^.].[.;])\s", sentences[0], maxsplit=1)
    if not MIN_SENTENCE <= len(sentences[0]) <= MAX_SENTENCE or "\n" in sentences[0]:
        return ""
    found = " ".join(sentences[:2])
    if len(sentences) == 1 or len(found) > MAX_SUMMARY or "\n" in found:
        found = sentences[0]
    return found if found[-1] in ".!?" else found.rstrip(":;,") + "."


def asked_about() -> dict[str, tuple[Entry, str]]:
    """Return name -> (entry, what is answered) of what there are questions about."""
    classes = set(wordings()["classes"].split())
    summaries = {
        entry.name: (entry, summary(entry.text))
        for entry in library()
        if entry.kind != "method" or entry.name.rpartition(".")[0] in classes
    }
    return {
        name: (entry, text)
        for name, (entry, text) in summaries.items()
        if text and entry.module != "ast" and "eprecated" not in text
    }


def exchanges() -> Iterator[Exchange]:
    """Yield questions about the library with their answers, for each thing several."""
    found, asked = asked_about(), wordings()
    homes = defaultdict[str, list[str]](list)  # of each end of a name, the names that have it
    for name in found:
        for end in _ends(name):
            homes[end].append(name)
    n_verbs = Counter(text.partition(" ")[0] for entry, text in found.values() if _is_call(entry))
    for name, (entry, text) in found.items():
        draw = random.Random(name)
        ends = [end for end in _ends(name) if len(homes[end]) == 1 and len(end) > 2]
        names, answer = [name] * 3 + ends, f"{name}: {text}"
        does = asked["does_module"] if entry.kind == "module" else asked["does"]
        own = asked["does_class"] if entry.kind == "class" else []
        for wording in [*draw.sample(does, N_WORDINGS - len(own)), *own]:
            yield varied(wording, draw, name=draw.choice(names), kind=entry.kind), answer
        if _is_call(entry):
            for wording in draw.sample(asked["call"], N_CALLS * (len(entry.signature) > 2)):
                yield varied(wording, draw, name=draw.choice(names)), name + _short(entry.signature)
            verb, _, rest = text.rstrip(".").partition(" ")
            if n_verbs[verb] > 4 and verb.istitle() and verb[-1] != "s" and verb not in NO_VERBS:
                phrase = " ".join(rest.split()[: draw.randrange(3, 11)]).rstrip(".,;:")
                both = {"does": f"{verb.lower()} {phrase}", "doing": f"{_doing(verb)} {phrase}"}
                for wording in draw.sample(asked["which"], N_WHICH):
                    yield varied(wording, draw, **both), answer
    for end, names in homes.items():
        if end not in found and len(end) > 2 and len(names) <= MAX_MEANT:
            yield from _where(end, [found[name][0] for name in names], asked)


def _where(end: str, entries: list[Entry], asked: dict[str, Any]) -> Iterator[Exchange]:
    """Yield questions about the last part of some names: where it is, and which is meant."""
    draw, modules = random.Random(end), {entry.module for entry in entries}
    if all(entry.kind in ("class", "function") for entry in entries):
        for wording in draw.sample(asked["where"], N_WHERE):
            yield varied(wording, draw, name=end), f"{end} is in {' and '.join(sorted(modules))}."
    if len(entries) > 1:
        *names, last = (entry.name for entry in entries)
        for wording in draw.sample(asked["does"], N_WORDINGS // 2):
            yield (
                varied(wording, draw, name=end, kind="function"),
                f"Do you mean {', '.join(names)} or {last}?",
            )


def _ends(name: str) -> list[str]:
    """Return the last part of a name of several, and the last two of one of more."""
    parts = name.split(".")
    return [".".join(parts[-n:]) for n in (1, 2) if n < len(parts)]


def _doing(verb: str) -> str:
    """Return a verb as it is of another: gets, copies, searches."""
    verb = verb.lower()
    if verb[-1] == "y" and verb[-2] not in "aeo":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("sh", "ch", "x", "o")) else "s")


def _short(signature: str) -> str:
    """Return a signature, the end of a long one left out."""
    if len(signature) <= MAX_SIGNATURE:
        return signature
    return signature[: signature.rfind(", ", 0, MAX_SIGNATURE)] + ", ...)"


def _is_call(entry: Entry) -> bool:
    return entry.kind in ("function", "method")


def varied(wording: str, draw: random.Random, **values: str) -> str:
    """Return a question as people type it: sometimes in lower case, or without its mark."""
    question = wording.format(**values)
    if draw.random() < 0.3:
        question = question[0].lower() + question[1:]
    if draw.random() < 0.3:
        question = question.rstrip("?.")
    return question


def unknown_names(n: int) -> Iterator[Exchange]:
    """Yield questions about names that nothing has, and words, with the honest answer."""
    draw, asked, found = random.Random("unknown"), wordings(), asked_about()
    syllables, packages = asked["syllables"].split(), asked["packages"].split()
    modules = [entry.name for entry, _ in found.values() if entry.kind == "module"]
    known = sorted({part.lower() for name in found for part in name.split(".")})
    text = " ".join(text for _, text in found.values())
    words = sorted(set(re.findall(r"\b[a-z]{4,}\b", text)).difference(known))
    for _ in range(n):
        short = draw.choice(known)
        made = "".join(draw.sample(syllables, draw.choice((2, 3))))
        name = draw.choice((
            made, f"{draw.choice(syllables)}.{made}", f"{draw.choice(modules)}.{made}",
            f"{draw.choice(modules)}.{short[:4]}{draw.choice(syllables)}",
            f"{draw.choice(packages)}.{draw.choice((made, short))}",
            draw.choice(words), draw.choice(words), f"a {draw.choice(words)}",
        ))  # fmt: skip
        if name not in found:
            yield varied(draw.choice(asked["does"]), draw, name=name, kind="function"), UNKNOWN
    for _ in range(n // 20):
        name, other = draw.sample([*found, *words[::4]], 2)
        wording = draw.choice(asked["compare"])
        yield varied(wording, draw, name=name, other=other), NO_COMPARISON


def conversations() -> list[list[dict[str, str]]]:
    """Return all of them, in the order of a fixed seed."""
    draw = random.Random("conversations")
    pool = [*exchanges(), *unknown_names(N_UNKNOWN), *small_talk()]
    draw.shuffle(pool)
    found = []
    while pool:
        n = draw.choices((1, 2, 3), (6, 3, 1))[0]
        found.append(
            [
                {"role": role, "content": content}
                for exchange in pool[-n:]
                for role, content in zip(("user", "assistant"), exchange, strict=True)
            ]
        )
        del pool[-n:]
    return found


def write_conversations(path: Path) -> tuple[int, int]:
    """Write JSON lines of them; return the numbers of conversations and of questions."""
    found = conversations()
    compressor = zstandard.ZstdCompressor(level=10, write_checksum=True)
    try:
        with (
            atomic_write(path) as file,
            compressor.stream_writer(file, closefd=False) as lines,
        ):
            for messages in found:
                line = json.dumps({"messages": messages}, ensure_ascii=False)
                lines.write(line.encode() + b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
    return len(found), sum(len(messages) // 2 for messages in found)
