r"""Chats as people keep them -> turns: exports of WhatsApp and Discord, and plain dialogues.

    [31/12/20, 23:59:59] Ana: Hello                WhatsApp, iOS
    31.12.20, 23:59 - Ana: Hello                   WhatsApp, Android; a date as in any country
    [31-Dec-20 11:59 PM] ana#1234\nHello           DiscordChatExporter, as text; its JSON, too
    User: Hello\nBot: Hi.                          --speakers User,Bot

--me is the assistant, all others are the user. In exports a conversation ends where PAUSE_HOURS
pass without a message; what --me wrote before anybody asked, and what nobody answered, is no part
of it. In a dialogue it ends at two blank lines or a line of ---, and where messages follow each
other without blank lines also at one, if the user goes on. Source: github.com/Tyrrrz/
DiscordChatExporter.
"""

import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from common.chat_format import Role
from common.errors import DataError
from prepare.archives.streams import Stream, stream_of
from prepare.chunks import Stats, UnreadableError
from prepare.config import ChatsConfig
from prepare.conversation import (
    ROLE_OF_NAME,
    ConversationError,
    Found,
    Message,
    skip_or_raise,
    take_turns,
)
from prepare.readers.encoding import utf8_blocks

PAUSE_HOURS = 8  # a night, or a working day
MAX_STAMP_BYTES = 200
Hours = tuple[float | None, ...]  # since long ago, by each order that a date may have

DATE = r"(\d{1,4}[./-] ?\w{1,3}[./-] ?\d{1,4})\.?[,\u060c]?"
TIME = r"([^\d\]\n]{0,8}\d{1,2}[:.]\d\d(?:[:.]\d\d)?[^\d\]\n-]{0,8}?)"
STAMP = re.compile(rf"(?:\[{DATE} {TIME}\] ?|{DATE} {TIME} [-\u2013] )(.*)", re.DOTALL)
NAMED = re.compile(r"([^:]{1,60}): ?(.*)", re.DOTALL)
DISCORD = re.compile(r"\s*={20,}\n(?:Guild|Server): ")
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
# a.m. and p.m.; in Chinese, Korean, Greek, Arabic
AM = re.compile("a\\W*m\\b|\u4e0a|\uc624\uc804|\u03c0\\W*\u03bc|\u0635", re.IGNORECASE)
PM = re.compile("p\\W*m\\b|\u4e0b|\uc624\ud6c4|\u03bc\\W*\u03bc|\u0645", re.IGNORECASE)
OWN_MARK = "\u200e"  # of direction, with which WhatsApp begins its own words
PLAIN = str.maketrans("\u202f\u00a0", "  ", OWN_MARK + "\u200f\u202a\u202c\ufeff")
# WhatsApp's own words in the place of a message or behind one, in any language
OMITTED = re.compile(r"<[^<>]*>|null|(?:This|You deleted this) message(?: was deleted)?\.?")
ATTACHED = re.compile(r"[^\n]+\.\w{2,4} \([^()\n]+\)(?:\n|\Z)")
EDITED = re.compile(r"\s*<(?:[^<> ]+ ){2,}[^<> ]+>\Z")
DISCORD_PART = re.compile(r"^\{(?:Attachments|Embed|Stickers|Reactions)\}$|^={20,}$", re.MULTILINE)
RULE = re.compile(r"(?:[-=*] ?){3,}")
SPEAKER = re.compile(r"^([^\W\d_][\w .-]{0,24}?) ?:(?: |$)", re.MULTILINE)


class Said(NamedTuple):
    """A message of an export."""

    where: str
    names: tuple[str, ...]  # by which --me may call who said it
    text: str
    hours: Hours


def log_conversations(
    name: str, head: bytes, stream: Stream, config: ChatsConfig, stats: Stats
) -> Generator[Found]:
    """Yield the conversations of a file that begins so; raise UnreadableError where none are."""
    text = head.decode("utf-8", "replace").translate(PLAIN)
    lines = _lines(stream_of(utf8_blocks(name, stream, config, stats)), stats)
    if is_export(head) or DISCORD.match(text):
        shape = "WhatsApp" if is_export(head) else "Discord"
        said = _stamped(name, lines, shape)
        yield from export_conversations(name, shape, said, config, stats)
    elif speakers := _speakers(text, config):
        yield from _dialogues(name, text, lines, speakers, config, stats)
    else:
        counts = Counter(SPEAKER.findall(text)).most_common(2)
        names = ",".join(speaker for speaker, n in counts if n > 1)
        what = f'try --speakers "{names}".' if "," in names else "name files of these."
        raise UnreadableError(
            f"{name}: no conversations recognised; read are JSON, CSV or parquet, an export of "
            f'WhatsApp or Discord, or text with "NAME: " before each message; {what}'
        )


def is_export(head: bytes) -> bool:
    """Return whether a file begins as an export of WhatsApp does."""
    first = head.lstrip().partition(b"\n")[0][:MAX_STAMP_BYTES]
    return STAMP.match(first.decode("utf-8", "replace").translate(PLAIN)) is not None


def is_discord(record: Any) -> bool:
    """Return whether it is what DiscordChatExporter writes as JSON."""
    return isinstance(record, dict) and {"guild", "channel", "messages"} <= record.keys()


def _lines(stream: Stream, stats: Stats) -> Iterator[str]:
    for raw in stream:
        line = raw.decode("utf-8", "replace")
        stats.n_bad_bytes += "\ufffd" in line and line.encode() != raw
        yield line.rstrip("\r\n")


def _stamped(name: str, lines: Iterable[str], shape: str) -> Iterator[Said]:
    """Yield the messages; lines without a stamp go on from the one before."""
    said: Said | None = None
    texts: list[str] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.translate(PLAIN)
        stamp = STAMP.match(line)
        if not stamp:
            texts.append(line)
            continue
        if said:
            yield said._replace(text="\n".join(texts))
        author, text = stamp[5].removesuffix(" (pinned)"), ""
        if shape == "WhatsApp":  # else its own words, or those for what is attached
            named = None if f": {OWN_MARK}" in raw else NAMED.match(stamp[5])
            author, text = (named[1].strip("~ "), named[2]) if named else ("", "")
        hours = _hours(stamp[1] or stamp[3], stamp[2] or stamp[4])
        names = (author, author.partition("#")[0])
        said = Said(f"{name}, line {number:,}", names, "", hours) if author else None
        texts = [text]
    if said:
        yield said._replace(text="\n".join(texts))


def discord_messages(record: dict[str, Any], where: str) -> Iterator[Said]:
    """Yield the messages of DiscordChatExporter's JSON; raise ConversationError for another."""
    for number, message in enumerate(record["messages"], start=1):
        place = f"{where}, message {number:,}"
        try:
            author = message["author"]
            names = author["name"], author.get("nickname") or author["name"]
            time = datetime.fromisoformat(message["timestamp"]).timestamp() / 3600
            if message["type"] in ("Default", "Reply"):
                tag = f"{names[0]}#{author.get('discriminator')}"
                yield Said(place, (*names, tag), str(message["content"]), (time,))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            detail = f"it lacks what Discord's messages have ({error!r})."
            raise ConversationError(place, "no message", detail) from error


def _hours(date: str, time: str) -> Hours:
    """Return the hours of a time, by day-month-year and by month-day-year; None: no such month.

    Months of 31 days: only what lies between two messages counts.
    """
    parts = [MONTHS.index(p) + 1 if p in MONTHS else p for p in re.findall(r"\w+", date.lower())]
    try:
        first, second, third, hour, minute, *_ = map(int, [*parts, *re.findall(r"\d+", time)])
    except ValueError:
        return None, None
    if PM.search(time):
        hour = hour % 12 + 12
    elif AM.search(time):
        hour %= 12
    dates = ((third, second, first), (third, first, second))
    return tuple(
        ((year * 12 + month) * 31 + day) * 24 + hour + minute / 60 if month <= 12 else None
        for year, month, day in (dates if first <= 31 else [(first, second, third)] * 2)
    )


def _pause(before: Said, after: Said) -> float:
    """Return the hours between, by the order of the date by which they are fewest."""
    pairs = zip(before.hours, after.hours, strict=True)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return min((b - a for a, b in both if b >= a), default=0)


def export_conversations(
    name: str, shape: str, messages: Iterable[Said], config: ChatsConfig, stats: Stats
) -> Generator[Found]:
    """Yield the conversations between --me and others; raise DataError where --me is not there."""
    names = Counter[str]()
    has_me = False
    held: list[Said] = []
    for said in messages:
        names[said.names[0]] += 1
        has_me = has_me or config.me in said.names
        if held and _pause(held[-1], said) > PAUSE_HOURS:
            yield from _answered(held, shape, config.me, stats)
            held = []
        held.append(said)
    yield from _answered(held, shape, config.me, stats)
    if not has_me:
        there = ", ".join(repr(speaker) for speaker, _ in names.most_common(5)) or "nobody"
        found = "no --me" if config.me is None else f"no message of {config.me!r}"
        raise ConversationError(
            name,
            found,
            f"it is an export of {shape}, and --me says who of them is the assistant. "
            f"There are {there}.",
        )


def _answered(held: list[Said], shape: str, me: str | None, stats: Stats) -> Iterator[Found]:
    """Yield the part of a conversation that is questions and answers, if there is any."""
    said = []
    for each in held:
        text = DISCORD_PART.split(each.text, maxsplit=1)[0]
        if shape == "WhatsApp":
            text = EDITED.sub("", ATTACHED.sub("", text, count=1))
        text = text.strip()
        if text and not OMITTED.fullmatch(text):
            role: Role = "assistant" if me in each.names else "user"
            said.append((each.where, Message(role, text)))
    roles = [message.role for _, message in said]
    first = roles.index("user") if "user" in roles else len(roles)
    last = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    last = max(first, last)
    stats.chats["n_unanswered"] += len(said) - (last - first)
    if last > first:
        where = said[first][0]
        yield where, shape, take_turns([message for _, message in said[first:last]], where), None


def _speakers(text: str, config: ChatsConfig) -> dict[str, Role]:
    """Return the role of each who speaks in a dialogue that begins so; none where it is none."""
    if config.speakers is not None:
        names = [name.strip() for name in config.speakers.split(",")]
        if config.me is not None and config.me not in names:
            raise DataError(f"--me {config.me}: none of --speakers {config.speakers}.")
        me = config.me or names[-1]
        roles: dict[str, Role] = {n: "assistant" if n == me else "user" for n in names}
        return {n: "system" if n.lower() == "system" else role for n, role in roles.items()}
    known: dict[Role, str] = {}  # of each role the first name
    for spoken in SPEAKER.findall(text):
        if role := ROLE_OF_NAME.get(spoken.lower()):
            known.setdefault(role, spoken)
    begins = SPEAKER.match(text.lstrip())
    is_one = begins and begins[1] in known.values() and {"user", "assistant"} <= known.keys()
    return {spoken: role for role, spoken in known.items()} if is_one else {}


def _dialogues(
    name: str,
    head: str,
    lines: Iterator[str],
    speakers: dict[str, Role],
    config: ChatsConfig,
    stats: Stats,
) -> Iterator[Found]:
    """Yield the conversations of a text in which the name of who speaks stands before it."""
    names = "|".join(re.escape(speaker) for speaker in sorted(speakers, key=len, reverse=True))
    begins = re.compile(rf"\s*({names}) ?:(?:\s+(.*)|)\Z")
    if not re.search(rf"^\s*({names}) ?:", head, re.MULTILINE):
        raise UnreadableError(
            f"{name}: no dialogue of {', '.join(speakers)}: none of its first lines begins with "
            'one of these names and ":".'
        )
    is_tight = re.search(rf"^({names}) ?:.*\S.*\n({names}) ?:", head, re.MULTILINE) is not None
    held: list[Message] = []
    where, n_blank = "", 0
    for number, line in enumerate(chain(lines, ["---"]), start=1):
        spoken = begins.match(line)
        role = speakers[spoken[1]] if spoken else None
        is_rule = RULE.fullmatch(line.strip()) is not None
        goes_on = role == "assistant" or n_blank < (1 if is_tight else 2)
        if held and (is_rule or (spoken and not goes_on)):
            try:
                yield where, "dialogue", take_turns(held, where), None
            except ConversationError as error:
                skip_or_raise(where, error, error.reason, config, stats)
            held = []
        if not line.strip() or is_rule:
            n_blank += not is_rule
            continue
        if role and spoken:
            where = where if held else f"{name}, line {number:,}"
            held.append(Message(role, spoken[2] or ""))
        elif held:  # a line more of the same message
            text = held[-1].text + "\n" * (1 + n_blank) + line
            held[-1] = Message(held[-1].role, text)
        else:
            stats.chats["n_unspoken"] += 1
        n_blank = 0
