"""Exports of WhatsApp and Discord, and plain dialogues, by samples of each."""

import json
from pathlib import Path

import pytest

from common.errors import DataError
from tests.prepare.chats import Turn, prepare_chats, said_in

# Each stamp of a message at five to midnight of December 31st, and one ten minutes later.
LRM, NARROW = "\u200e", "\u202f"
EASTERN = {ord("0") + i: 0x660 + i for i in range(10)}  # Arabic digits
STAMPS = {
    "iOS, Germany": ("[31.12.20, 23:55:01] ", "[01.01.21, 00:05:02] "),
    "iOS, United States": (f"[12/31/20, 11:55:01{NARROW}PM] ", f"[1/1/21, 12:05:02{NARROW}AM] "),
    "iOS, Korea": (
        "[2020. 12. 31. \uc624\ud6c4 11:55:01] ",
        "[2021. 1. 1. \uc624\uc804 12:05:02] ",
    ),
    "iOS, China": ("[2020/12/31 \u4e0b\u534811:55:01] ", "[2021/1/1 \u4e0a\u534812:05:02] "),
    "Android, Italy": ("31/12/20, 23:55 - ", "01/01/21, 00:05 - "),
    "Android, United States": (f"12/31/20, 11:55{NARROW}PM - ", f"1/1/21, 12:05{NARROW}AM - "),
    "Android, Spain": ("31/12/20 11:55 p. m. - ", "1/1/21 12:05 a. m. - "),
    "Android, France": ("31/12/2020 \u00e0 23:55 - ", "01/01/2021 \u00e0 00:05 - "),
    "Android, Sweden": ("2020-12-31 23:55 - ", "2021-01-01 00:05 - "),
    "Android, Finland": ("31.12.2020 klo 23.55 - ", "1.1.2021 klo 0.05 - "),
    "Android, Egypt": (
        "31\u200f/12\u200f/2020, 11:55 \u0645 - ".translate(EASTERN),
        "1\u200f/1\u200f/2021, 12:05 \u0635 - ".translate(EASTERN),
    ),
}  # fmt: skip


@pytest.mark.parametrize("country", STAMPS)
def test_whatsapps_exports_are_read_with_dates_of_any_country(country: str, tmp_path: Path) -> None:
    before, after = STAMPS[country]
    text = (
        f"{before}Messages and calls are end-to-end encrypted.\n"
        f"{before}Ana: Hello: you\nand more\n{after}Ben Q.: Hi <|end|>\n{after}Ben Q.: there\n"
    )
    (tmp_path / "chat.txt").write_text(text, encoding="utf-8")
    data = prepare_chats([tmp_path / "chat.txt"], tmp_path / "out", me="Ben Q.", val_fraction=0)
    assert said_in(data) == [[("user", "Hello: you\nand more"), ("ASSISTANT", "Hi <|end|>\nthere")]]
    assert data.meta["chats"]["shapes"] == {"WhatsApp": 1}


def exported(*lines: tuple[str, str, str]) -> str:
    return "".join(f"{stamp} - {name}: {text}\n" for stamp, name, text in lines)


def test_what_is_no_message_is_left_out_and_a_pause_ends_a_conversation(tmp_path: Path) -> None:
    text = (
        exported(
            ("1/5/21, 9:00", "Ben", "Nobody asked"),
            ("1/5/21, 9:01", "Ana", "<Media omitted>"),
            ("1/5/21, 9:01", "Ana", "IMG-1.jpg (file attached)\nLook"),
            ("1/5/21, 9:02", "Ben", "Nice <This message was edited>"),
        )
        + "1/5/21, 9:03 - Ana added Cleo\n1/5/21, 9:03 - Ben: This message was deleted\n"
        + f"1/5/21, 9:03 - Ana: {LRM}sticker omitted\n"
        + exported(
            ("1/5/21, 16:59", "Cleo", "Lunch?"),
            ("1/5/21, 17:00", "Ana", "Or tea?"),
            ("2/5/21, 0:59", "Ben", "Tea"),
            ("2/5/21, 9:01", "Ana", "Up?"),
            ("2/5/21, 9:02", "Ben", "Yes"),
            ("2/5/21, 9:03", "Ana", "Nobody answers"),
        )
    )
    (tmp_path / "chat.txt").write_text(text, encoding="utf-8")
    data = prepare_chats([tmp_path / "chat.txt"], tmp_path / "out", me="Ben", val_fraction=0)
    assert said_in(data) == [
        [
            *[("user", "Look"), ("ASSISTANT", "Nice"), ("user", "Lunch?\nOr tea?")],
            ("ASSISTANT", "Tea"),
        ],
        [("user", "Up?"), ("ASSISTANT", "Yes")],
    ]
    assert data.meta["chats"]["n_unanswered"] == 2
    for me, found in [(None, "no --me"), ("ben", "no message of 'ben'")]:
        with pytest.raises(DataError, match=f"{found}.*There are 'Ben', 'Ana', 'Cleo'"):
            prepare_chats([tmp_path / "chat.txt"], tmp_path / "out", me=me)


DISCORD_TEXT = """\
==============================================================
Guild: Mill
Channel: general / grain
==============================================================

[31-Dec-20 11:55 PM] ana#1234
Hello
[not a date] you

{Attachments}
https://cdn.discordapp.com/a.png

[01-Jan-21 12:05 AM] ben#0001 (pinned)
Hi

[1/1/2021 9:05 AM] ana#1234
Alone

==============================================================
Exported 3 message(s)
==============================================================
"""


def test_discords_exports_are_read_as_text_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(DISCORD_TEXT, encoding="utf-8")
    said = [
        ("Default", "2020-12-31T23:55:00+00:00", "Hello\n[not a date] you", "ana"),
        ("GuildMemberJoin", "2020-12-31T23:56:00+00:00", "Joined the server.", "cleo"),
        ("Reply", "2021-01-01T00:05:00.123+00:00", "Hi", "ben"),
        ("Default", "2021-01-01T09:05:00+00:00", "Alone", "ana"),
    ]
    messages = [
        {
            "id": "1", "type": kind, "timestamp": time, "content": content,
            "author": {"name": name, "nickname": name.title(), "discriminator": "0001"},
        }
        for kind, time, content, name in said
    ]  # fmt: skip
    record = {"guild": {"id": "0"}, "channel": {"id": "1"}, "messages": messages}
    (tmp_path / "a.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    expected = [[("user", "Hello\n[not a date] you"), ("ASSISTANT", "Hi")]]
    for name, me in [("a.txt", "ben"), ("a.txt", "ben#0001"), ("a.json", "Ben"), ("a.json", "ben")]:
        data = prepare_chats([tmp_path / name], tmp_path / "out", me=me, val_fraction=0)
        assert said_in(data) == expected
        assert data.meta["chats"]["shapes"] == {"Discord": 1}
        assert data.meta["chats"]["n_unanswered"] == 1


TWO: list[list[Turn]] = [
    [("user", "Hello"), ("ASSISTANT", "Hi.\n\n  Second paragraph."), ("user", "Bye"),
     ("ASSISTANT", "Bye!")],
    [("user", "New: one"), ("ASSISTANT", "Yes")],
]  # fmt: skip
TIGHT = (
    "User: Hello\nBot: Hi.\n\n  Second paragraph.\nUser: Bye\nBot: Bye!\n\nUser: New: one\nBot: Yes"
)
DIALOGUES = {
    "a blank line ends it, where messages follow each other": (TIGHT, "User,Bot", None, TWO),
    "known names": (TIGHT.replace("Bot:", "Assistant :"), None, None, TWO),
    "two blank lines end it, where blank lines stand between messages": (
        TIGHT.replace("\nBot", "\n\nBot").replace("\nUser: Bye", "\n\nUser: Bye")
        .replace("\n\nUser: New", "\n\n\nUser: New"), "User,Bot", None, TWO,
    ),
    "a rule ends it": (
        TIGHT.replace("\nBot", "\n\nBot").replace("User: New", "---\nUser: New"), "User,Bot", None,
        TWO,
    ),
    "--me": (TIGHT.replace("User", "Z").replace("Bot", "A b"), "A b,Z", "A b", TWO),
    "three": (
        "System: Be\nAna: a\nCleo: b\nBot:\nc\n", "System,Ana,Cleo,Bot", None,
        [[("system", "Be"), ("user", "a\nb"), ("ASSISTANT", "c")]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIALOGUES)
def test_dialogues_are_read_by_the_names_before_the_messages(case: str, tmp_path: Path) -> None:
    text, speakers, me, expected = DIALOGUES[case]
    (tmp_path / "a.txt").write_text(text.replace("\n", "\r\n"), encoding="utf-16")
    data = prepare_chats(
        [tmp_path / "a.txt"], tmp_path / "out", speakers=speakers, me=me, val_fraction=0
    )
    assert said_in(data) == expected


def test_a_dialogue_that_cannot_be_learned_from_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Title\nUser: a\nBot: b\n---\nBot: c\n\n\nUser: d\n---\nUser: e\nBot: f\n")
    with pytest.raises(DataError, match=r"line 5: assistant first"):
        prepare_chats([path], tmp_path / "out", speakers="User,Bot")
    data = prepare_chats(
        [path], tmp_path / "out", speakers="User,Bot", on_error="skip", val_fraction=0
    )
    assert said_in(data) == [[("user", t), ("ASSISTANT", chr(ord(t) + 1))] for t in "ae"]
    assert data.meta["reasons"] == {"assistant first": 1, "missing turn": 1}
    assert data.meta["chats"]["n_unspoken"] == 1
    path.write_text("Ana: a\nBen: b\nAna: c\nBen: d\n")
    with pytest.raises(DataError, match='try --speakers "Ana,Ben"'):
        prepare_chats([path], tmp_path / "out2")
    with pytest.raises(DataError, match="no dialogue of User, Bot"):
        prepare_chats([path], tmp_path / "out2", speakers="User,Bot")
    with pytest.raises(DataError, match="--me Cleo: none of --speakers"):
        prepare_chats([path], tmp_path / "out2", speakers="Ana,Ben", me="Cleo")
