"""What /source shows in a terminal, also of names and texts that mean harm."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.files import write_json
from common.inference.backend import make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig
from common.tracing import Passage, Tracer
from prepare.output.index import write_index
from sample.chat.session import Chat
from sample.chat.sources import describe_sources
from sample.chat.terminal import run_line
from sample.text.prompt import Message
from sample.text.sources import Sources, SourceSpan, TrainingText
from sample.text.terminal_text import MARK, MARK_END, notify
from tests.sample.conftest import ALPHABET, CIRCLE, make_run, round_and_round
from tests.sample.fake_tracer import FakeTracer
from tests.terminal import Terminal
from tests.tiny import prepare_text


def plain(notices: list[str]) -> list[str]:
    return [notice.replace(MARK, "[").replace(MARK_END, "]") for notice in notices]


def said(tracer: Tracer | None, *lines: str) -> list[str]:
    """Return what a chat with the network that writes a to h in a circle said."""
    notices: list[str] = []
    decoder = Decoder(make_backend(round_and_round(forwards=True)), ALPHABET, n_rows=1)
    text = TrainingText(ALPHABET, tracer)
    config = GenerateConfig(max_new_tokens=12, temperature=0)
    chat = Chat(decoder, config, notify=notices.append, training_text=text)
    for line in lines:
        answer = run_line(chat, line)
        "".join(answer or ())
    return plain(notices)


def test_the_parts_of_an_answer_are_numbered_and_their_documents_named() -> None:
    tracer = FakeTracer.make(
        ALPHABET,
        ("docs.tar.xz/alphabet.txt", 1200, "hh bcdefgha h\n"),
        ("other.txt", None, "hh bcdefghag"),
        ("third.txt", 1, "gg efghabcde"),
    )
    assert said(tracer, "a", "/source") == [
        "[bcd][2][efghabcde][1]",
        "\n12 of 12 tokens (100%) stand word for word in the training text, in 2 pieces.",
        "\n[1] 9 tokens, once in the training text:",
        "- third.txt, line 1: gg [efghabcde]",
        "\n[2] 8 tokens, 2 times in the training text:",
        "- docs.tar.xz/alphabet.txt, line 1,200: hh [bcdefgha] h ",
        "- other.txt: hh [bcdefgha]g",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run that writes a to h in a circle, and indexed data of its ids."""
    folder = tmp_path_factory.mktemp("traced")
    data = prepare_text("hh bcdefghab hh\n\n" * 20, folder)  # its vocabulary is ALPHABET
    write_index(data, lambda name, size: lambda n_bytes: None)
    settings = {"format": 1, "data": {"path": str(data.path), "sha256": data.sha256}}
    write_json(make_run(folder / "runs", "circle") / "config.json", settings)
    return folder


@pytest.mark.parametrize("variables", [{}, pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.slow)])
def test_in_a_terminal_they_are_underlined_or_in_brackets(
    place: Path, variables: dict[str, Any]
) -> None:
    arguments = ["-m", "sample", "chat", "--temperature", "0", "--max-new-tokens", "12"]
    with Terminal(arguments, place, XDG_STATE_HOME=str(place), **variables) as terminal:
        terminal.see_prompt()
        terminal.enter("/source")
        terminal.see("There is no turn yet.")
        terminal.enter("a")
        terminal.enter("/source")
        terminal.see(
            "9 of 12 tokens (75%) stand word for word", "source.txt: hh ", "put together anew."
        )
        rows = [terminal.screen.buffer[y] for y in range(40)]
        underlined = ["".join(row[x].data for x in range(80) if row[x].underscore) for row in rows]
        found = [text for text in underlined if text]
        if variables:
            assert found == []
            terminal.see("[bcdefghab][1]cde", "hh [bcdefghab] hh")
        else:
            assert found == ["bcdefghab"] * 2
            terminal.see("bcdefghab[1]cde", "hh bcdefghab hh")
        terminal.enter("/help")
        terminal.see("/source ")


def test_of_no_turn_and_without_an_index_a_sentence() -> None:
    with pytest.raises(ConfigError, match="There is no turn yet"):
        said(None, "/source")
    with pytest.raises(ConfigError, match="Make one: python -m prepare index DATA"):
        said(None, "a", "/source")
    tracer = FakeTracer.make(ALPHABET, ("a.txt", None, CIRCLE[:7]))
    assert said(tracer, "a", "/source") == [
        "bcdefghabcde",
        "\n0 of 12 tokens (0%) stand word for word in the training text; the other 12 were put "
        "together anew.",
    ]


def test_what_was_left_out_is_said_and_of_an_empty_answer_that_it_is() -> None:
    text = TrainingText(ALPHABET, None, ["data: no index.", "chats: gone."])
    decoder = Decoder(make_backend(round_and_round(forwards=True)), ALPHABET, n_rows=1)
    notices: list[str] = []
    chat = Chat(decoder, GenerateConfig(), notify=notices.append, training_text=text)
    chat.messages = [Message("user", "a"), Message("assistant", "abcdefgh")]
    with pytest.raises(ConfigError, match=r"^data: no index\.\nchats: gone\.$"):
        run_line(chat, "/source")
    tracer = FakeTracer.make(ALPHABET, ("a.txt", None, "hh abcdefgh"))
    chat.training_text = replace(text, tracer=tracer, notices=["chats: gone."])
    run_line(chat, "/source")
    assert notices[-1] == "chats: gone."
    chat.messages[-1] = Message("assistant", "")
    with pytest.raises(ConfigError, match="The last answer is empty"):
        run_line(chat, "/source")


def test_of_a_short_answer_it_is_not_said_that_it_was_put_together_anew() -> None:
    said = "\n".join(describe_sources("It is.", Sources(7, 0, [])))
    assert "; pieces of fewer than 8 are not looked for." in said
    assert "anew" not in said


def test_names_and_passages_show_nothing_but_themselves() -> None:
    evil = "\x1b[2J\x9b\u202eexe.txt\n\u2066" + MARK_END
    span = SourceSpan(0, 8, 8, 3, [Passage(evil, 1, "x" * 10_000 + evil, evil * 99, evil)])
    for notice in describe_sources(evil + "\r" + MARK, Sources(8, 8, [span])):
        lines = notice.removeprefix("\n").replace(MARK, "").replace(MARK_END, "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", lines)
        assert len(notice) < 1000
        assert notice.count(MARK) == notice.count(MARK_END) <= 1
    assert notice.startswith("- \\x1b[2J\\x9b\\u202eexe.txt \\u2066\ufffd, line 1: ... xxx")


def test_where_nothing_can_be_underlined_marks_are_brackets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    notify(f"{MARK}a{MARK_END} {MARK}b\nc{MARK_END}")
    assert capsys.readouterr().err == "[a] [b\nc]\n"


@pytest.mark.parametrize("notice", [MARK_END + "a" + MARK, MARK + "a", MARK + MARK])
def test_marks_that_are_not_in_pairs_mark_nothing(
    capsys: pytest.CaptureFixture[str], notice: str
) -> None:
    notify(notice)
    assert capsys.readouterr().err == notice + "\n"
