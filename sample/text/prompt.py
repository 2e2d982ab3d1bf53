"""A conversation -> the ids that the network sees, which go on as the answer.

    [Message("user", "Hello")] --render, TURNS--> "User: Hello\\nAssistant:" --build_prompt--> ids
                               --encode, CHAT---> <|user|> 72 101 ... <|end|> <|assistant|>

A template says what stands before and after the words of each speaker, nothing more. What a message
contains is never a part of the template, and is encoded as ordinary text: without special ids.

chat    special ids around what was said (common/chat_format.py). The default of a network that was
        trained on conversations, and for no other
raw     what was written and what followed, as one text. The default of a base model: it has read
        texts of any kind and seldom a conversation, and what it does best is to go on with a text
        (the true continuations of 504 held-out texts cost one of a million parameters 1 % fewer
        bits so)
turns   a script of two speakers, which ends an answer where the next one begins
FILE    as JSON, {"system": "{system} ", "user": "Q: {user} ", "assistant": "A: {assistant} "}

A turn is what the person wrote and its answer. Of the turns as many of the last are seen as the
context holds, behind the system text, if there is one. The answer has room for max_new_tokens, but
at most half of the context: beyond that it slides (common/inference/decoder.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from common.chat_format import END_OF_MESSAGE, ROLES, Role, end_id, role_id
from common.errors import ConfigError
from common.tokenizer import Tokenizer

MAX_NAMED = 20  # characters in a notice


@dataclass(frozen=True)
class Message:
    """What one speaker said; ``stopped`` marks an answer that the person cut short."""

    role: Role
    content: str
    stopped: bool = False

    def __post_init__(self) -> None:
        # U+FFFD for halves of characters, which a file or a terminal can bring
        whole = self.content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        object.__setattr__(self, "content", whole)


@dataclass(frozen=True)
class Template:
    """What stands before and after each role's words, and the texts at which an answer ends.

    Of one that ``is_chat`` those are the names of special ids, which no text is encoded into.
    """

    name: str
    affixes: Mapping[Role, tuple[str, str]]
    stops: tuple[str, ...] = ()
    is_chat: bool = False

    @property
    def generation_prompt(self) -> str:
        """What the answer is to follow."""
        # vocabularies keep a blank with the word after it: seldom was one read after a lone blank
        return self.affixes["assistant"][0].rstrip(" ")

    @property
    def strips_answers(self) -> bool:
        """Whether blanks around an answer are none of it: in a text that is continued they are."""
        return bool(self.generation_prompt)

    def detokenizer_options(self, *, continues: bool = False) -> dict[str, Any]:
        """Return what it asks of a Detokenizer; one that is continued may go on with blanks."""
        strips = self.strips_answers
        starts = {"strip_start": strips and not continues, "strip_end": strips}
        return {"template_stops": self.stops, **starts}


def render_messages(messages: Sequence[Message], template: Template) -> str:
    """Return messages as they stand in the text of a conversation."""
    text = ""
    for message in messages:
        prefix, suffix = template.affixes[message.role]
        text += prefix + _content(message, template) + suffix
    return text


def _content(message: Message, template: Template) -> str:
    strips = template.is_chat or (message.role == "assistant" and template.strips_answers)
    return message.content.strip() if strips else message.content


def render(messages: Sequence[Message], template: Template) -> str:
    """Return the text whose continuation is the answer, or the rest of one that is last."""
    end = template.generation_prompt
    if messages and messages[-1].role == "assistant":
        if content := _content(messages[-1], template):
            end = template.affixes["assistant"][0] + content
        messages = messages[:-1]
    return render_messages(messages, template) + end


def encode_messages(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer
) -> list[int]:
    """Return the ids of messages as they stand in a conversation."""
    if not template.is_chat:
        return tokenizer.encode(render_messages(messages, template))
    ids: list[int] = []
    for message in messages:
        content = tokenizer.encode(_content(message, template))
        ids += [role_id(tokenizer, message.role), *content, end_id(tokenizer)]
    return ids


def encode(messages: Sequence[Message], template: Template, tokenizer: Tokenizer) -> list[int]:
    """Return the ids whose continuation is the answer, or the rest of one that is last."""
    if not template.is_chat:
        return tokenizer.encode(render(messages, template))
    ids = encode_messages(messages, template, tokenizer)
    if messages and messages[-1].role == "assistant":
        return ids[:-1]
    return [*ids, role_id(tokenizer, "assistant")]


def make_template(
    name: str, pieces: Mapping[Role, str], stops: Sequence[str] | None = None
) -> Template:
    """Return the template that writes each role as ``pieces`` says, its words at {role}.

    Without ``stops`` an answer ends at what stands after it and at a speaker who begins: with
    "User: {user}\\n" and "Assistant: {assistant}\\n" at "\\nUser:" and "\\nAssistant:".
    """
    affixes: dict[Role, tuple[str, str]] = {}
    for role in ROLES:
        prefix, _, suffix = pieces[role].partition(f"{{{role}}}")
        affixes[role] = prefix, suffix
    if stops is None:
        suffix = affixes["assistant"][1]
        line = "\n" if suffix.endswith("\n") else ""
        speakers = [affixes[role][0].strip() for role in ("user", "assistant")]
        found = [suffix.strip(), *(line + speaker for speaker in speakers if speaker)]
        stops = list(dict.fromkeys(stop for stop in found if stop))
    return Template(name, affixes, tuple(stops))


RAW = make_template("raw", {"system": "{system}\n", "user": "{user}", "assistant": "{assistant}\n"})
TURNS = make_template(
    "turns",
    {"system": "{system}\n\n", "user": "User: {user}\n", "assistant": "Assistant: {assistant}\n"},
)
CHAT = Template("chat", {role: (f"<|{role}|>", END_OF_MESSAGE) for role in ROLES}, is_chat=True)
TEMPLATES = {template.name: template for template in (RAW, TURNS, CHAT)}


def find_template(name: str | None, *, is_chat: bool = False) -> Template:
    """Return the template of that name, or in that JSON file; None: the network's own.

    Raise ConfigError if it is none, or not for a network that is or is not for chats.
    """
    if name is None:
        return CHAT if is_chat else RAW
    if name == CHAT.name and not is_chat:
        raise ConfigError(
            "--template chat: this is a base model, which never read that format. Leave the option "
            "out, or teach it conversations first: python -m train finetune --help"
        )
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        found = json.loads(Path(name).read_bytes())  # which may begin with a mark
    except OSError as error:
        known = " nor ".join(TEMPLATES)
        sentence = f"neither {known}, and as a file it cannot be read ({error.strerror})."
        raise ConfigError(f"--template {name}: {sentence}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not a template in JSON ({error}).") from error
    pieces = found if isinstance(found, dict) else {}
    stops = pieces.pop("stop", None)
    if (
        pieces.keys() != set(ROLES)
        or not all(isinstance(text, str) for text in pieces.values())
        or not all(text.count(f"{{{role}}}") == 1 for role, text in pieces.items())
        or not isinstance(stops, list | None)
        or not all(isinstance(stop, str) and stop for stop in stops or ())
    ):
        raise ConfigError(
            f"{name}: a template is a JSON object with a text for each of {', '.join(ROLES)}, in "
            "which the role in braces, such as {user}, stands once, where the words go, and, if "
            'wanted, "stop": a list of texts, none of them empty.'
        )
    return make_template(name, pieces, stops)


@dataclass(frozen=True, kw_only=True)
class TruncatedPrompt:
    """A conversation as the model sees it, and what had no room."""

    ids: list[int]
    n_turns: int  # of the conversation, the last one included
    n_dropped: int  # of them, the oldest, left out
    n_cut: int  # the first tokens of the last turn, left out
    system_dropped: bool

    def notices(self, *, dropped: bool = True) -> list[str]:
        """Return a sentence for each kind of text that had no room; of turns if ``dropped``."""
        oldest = "oldest turn" if self.n_dropped == 1 else f"oldest {self.n_dropped:,} turns"
        first = "first token" if self.n_cut == 1 else f"first {self.n_cut:,} tokens"
        left_out = {
            f"The {oldest}": dropped and self.n_dropped,
            "The system text": self.system_dropped,
            f"The {first} of the last turn": self.n_cut,
        }
        return [f"{what} had no room in the context." for what, was in left_out.items() if was]


def build_prompt(
    messages: Sequence[Message],
    *,
    template: Template,
    tokenizer: Tokenizer,
    block_size: int,
    max_new_tokens: int,
) -> TruncatedPrompt:
    """Return the ids of ``messages`` and of the beginning of the answer, at most as many as fit.

    Whole turns are left out, the oldest first. The last one stays: where it is too long, a system
    text that takes more than half of the room goes, and then the beginning of the turn's words.
    """
    room = block_size - min(max_new_tokens, block_size // 2)
    system, turns = split_turns(messages)
    *earlier, last = turns or [[]]
    head = encode_messages(system, template, tokenizer)
    prompt = encode(last, template, tokenizer)
    n_prompt = len(prompt)
    system_dropped = len(head) + n_prompt > room and len(head) > room // 2
    if system_dropped:
        head = []
    free = room - len(head)
    if n_prompt > free:
        speaker = _speaker(prompt[: n_prompt - free + 1], last, template, tokenizer)
        if len(speaker) > free // 2:  # who speaks stays if it can
            speaker = []
        prompt = speaker + prompt[n_prompt - (free - len(speaker)) :]
    n_cut = n_prompt - len(prompt)
    n_kept = 0
    for turn in reversed(earlier):  # the newest first: those long out of reach are not encoded
        ids = encode_messages(turn, template, tokenizer)
        if len(head) + len(ids) + len(prompt) > room:
            break
        prompt = ids + prompt
        n_kept += 1
    return TruncatedPrompt(
        ids=head + prompt,
        n_turns=len(turns),
        n_dropped=len(earlier) - n_kept,
        n_cut=n_cut,
        system_dropped=system_dropped,
    )


def _speaker(
    cut: list[int], turn: list[Message], template: Template, tokenizer: Tokenizer
) -> list[int]:
    """Return the ids that say whose words go on where the ids ``cut`` of a turn are left out."""
    if not template.is_chat:
        return tokenizer.encode(template.affixes[turn[0].role][0].rstrip(" ")) if turn else []
    roles = {role_id(tokenizer, role) for role in ROLES}
    return [idx for idx in cut if idx in roles][-1:]


def split_turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Return the system messages at the beginning, and the turns: a user's message begins each."""
    system = list(takewhile(lambda message: message.role == "system", messages))
    turns: list[list[Message]] = []
    for message in messages[len(system) :]:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def missing_notice(tokenizer: Tokenizer, text: str, of: str = "the prompt") -> list[str]:
    """Return a notice that names the first characters the vocabulary lacks, if there are any."""
    missing = tokenizer.missing(text)
    named = ", ".join(map(repr, missing[:MAX_NAMED]))
    more = f" and {len(missing) - MAX_NAMED:,} others" if len(missing) > MAX_NAMED else ""
    return [f"The vocabulary has no {named}{more}: left out of {of}."] if missing else []
