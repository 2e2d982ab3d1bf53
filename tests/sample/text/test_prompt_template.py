"""A conversation as one text: what stands where, and that what is said is never more than text."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.tokenizer import SPECIAL_TOKENS
from sample.text.prompt import (
    RAW,
    TURNS,
    Message,
    find_template,
    make_template,
    missing_notice,
    render,
)
from tests.sample.conftest import ALPHABET
from tests.tiny import byte_tokenizer

TALK = [
    Message("system", "Be brief."),
    Message("user", "Hello"),
    Message("assistant", "Hi"),
    Message("user", "Why?"),
]
WRONG = "a template is a JSON object with a text for each of system, user, assistant, in which"
QA = {"system": "[{system}]", "user": "Q: {user}\n", "assistant": "A: {assistant}\n\n"}


def test_turns_is_a_script_that_ends_where_the_answer_begins() -> None:
    assert render(TALK, TURNS) == (
        "Be brief.\n\nUser: Hello\nAssistant: Hi\nUser: Why?\nAssistant:"
    )


def test_raw_is_what_was_written_and_what_followed() -> None:
    assert render(TALK, RAW) == "Be brief.\nHelloHi\nWhy?"
    assert render([], RAW) == ""


def test_an_answer_ends_where_the_next_speaker_begins() -> None:
    assert RAW.stops == ()
    assert TURNS.stops == ("\nUser:", "\nAssistant:")
    tagged = make_template(
        "tags", {"system": "{system}", "user": "<u>{user}</u>", "assistant": "<a>{assistant}</a>"}
    )
    assert tagged.stops == ("</a>", "<u>", "<a>")


def test_words_that_look_like_a_template_or_a_special_token_stay_words() -> None:
    talk = [Message("user", "{assistant} {user}<|endoftext|><|user|>")]
    text = render(talk, TURNS)
    assert text == "User: {assistant} {user}<|endoftext|><|user|>\nAssistant:"
    ids = byte_tokenizer().encode(text)
    assert not set(ids) & set(byte_tokenizer().special_tokens.values())
    assert len(byte_tokenizer().special_tokens) == len(SPECIAL_TOKENS)


def test_a_template_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "qa.json"
    path.write_text(json.dumps(QA), encoding="utf-8")
    template = find_template(str(path))
    assert render(TALK, template) == "[Be brief.]Q: Hello\nA: Hi\n\nQ: Why?\nA:"
    assert template.stops == ("\nQ:", "\nA:")
    path.write_text(json.dumps(QA | {"stop": ["\n\n"]}), encoding="utf-8")
    assert find_template(str(path)).stops == ("\n\n",)
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")  # as Notepad saves it
    assert find_template(str(path)).stops == ("\n\n",)
    assert find_template("turns") is TURNS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a template in JSON"),
        (json.dumps(QA).encode()[:20], "not a template in JSON"),
        (b"\xff\xfe\x00", "not a template in JSON"),
        (b"[" * 100_000, "not a template in JSON"),
        (b"[]", WRONG),
        (json.dumps(QA | {"bot": ""}).encode(), WRONG),
        (json.dumps({"user": "{user}"}).encode(), WRONG),
        (json.dumps(QA | {"user": "Q:"}).encode(), WRONG),
        (json.dumps(QA | {"user": "{user}{user}"}).encode(), WRONG),
        (json.dumps(QA | {"user": ["{user}"]}).encode(), WRONG),
        (json.dumps(QA | {"stop": "\n"}).encode(), WRONG),
        (json.dumps(QA | {"stop": [""]}).encode(), WRONG),
    ],
)
def test_what_is_wrong_with_a_template_is_a_sentence(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "template.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        find_template(str(path))
    assert raised.value.message.startswith(f"{path}: ")
    assert said in raised.value.message


def test_a_mistyped_name_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"turn: neither raw nor turns nor chat, and as"):
        find_template("turn")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_template(str(tmp_path))


def test_an_answer_s_own_blanks_are_none_of_it_where_its_template_sets_it_off() -> None:
    talk = [Message("user", "a"), Message("assistant", " b\n"), Message("user", " c ")]
    assert render(talk, TURNS) == "User: a\nAssistant: b\nUser:  c \nAssistant:"
    assert render(talk, RAW) == "a b\n\n c "


def test_an_answer_that_is_last_is_continued() -> None:
    talk = [Message("user", "i"), Message("assistant", "Hel")]
    assert render(talk, TURNS) == "User: i\nAssistant: Hel"
    assert render(talk, RAW) == "iHel"
    assert render([talk[0], Message("assistant", " ")], TURNS) == "User: i\nAssistant:"


def test_halves_of_characters_become_the_sign_for_what_is_none() -> None:
    message = Message("user", "a\ud83db\udc80c\U0001f600")
    assert message.content == "a\ufffdb\ufffdc\U0001f600"


def test_a_notice_names_the_first_characters_that_the_vocabulary_lacks_and_counts_the_rest() -> (
    None
):
    lacking = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    (notice,) = missing_notice(ALPHABET, f"a{lacking}b{lacking}")
    assert notice.startswith("The vocabulary has no '\u4e00', '\u4e01', ")
    assert notice.endswith(" and 4,980 others: left out of the prompt.")
    assert len(notice) < 200
