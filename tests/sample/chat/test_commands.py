"""The commands of a chat: laws of taking back, sentences on all that cannot be done, and Tab."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from common.errors import CheckpointError, ConfigError, DataError
from common.inference.backend import make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig
from sample.chat.session import Chat
from sample.chat.terminal import COMMANDS, SETTINGS, completer, run_line
from sample.chat.transcript import Transcript, load_conversation
from sample.text.prompt import Message
from tests.sample.conftest import ALPHABET, round_and_round

LIKELIEST = GenerateConfig(max_new_tokens=4, temperature=0)


class Told:
    """A chat, and what it said since it was asked last."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        decoder = Decoder(make_backend(round_and_round(forwards=True)), ALPHABET, n_rows=1)
        self.chat = Chat(decoder, LIKELIEST, notify=self.notices.append)

    def ask(self, *texts: str) -> None:
        for text in texts:
            "".join(self.chat.reply(text))

    def do(self, line: str) -> str:
        """Do a command; return what it said, and then the answer it made, by lines."""
        self.notices.clear()
        try:
            answer = run_line(self.chat, line)
        except (ConfigError, DataError) as error:
            return error.message
        return "\n".join([*self.notices, *(["".join(answer)] if answer is not None else [])])


@pytest.fixture
def told() -> Told:
    return Told()


def test_undo_after_a_turn_is_the_conversation_before(told: Told) -> None:
    told.ask("a", "b")
    before = list(told.chat.messages)
    told.ask("c")
    assert told.do("/undo") == "Taken back: 'c' and its answer."
    assert told.chat.messages == before
    told.do("/undo")
    told.do("/undo")
    assert told.chat.messages == []
    assert told.do("/undo") == "There is no turn yet."


def test_retry_answers_the_last_prompt_again_and_replaces_the_turn(told: Told) -> None:
    told.ask("a", "b")
    before = list(told.chat.messages)
    said = told.do("/retry")
    assert said.endswith("\nbcdef")
    assert said.startswith("At temperature 0 the answer is the same again")
    assert told.chat.messages == before
    told.do("/reset")
    assert told.do("/retry") == "There is no turn yet."


def test_retry_uses_another_seed(told: Told) -> None:
    told.chat.config = replace(LIKELIEST, temperature=1000.0, top_p=1.0, max_new_tokens=12)
    told.ask("a")
    first = told.chat.messages[-1]
    assert told.do("/retry") != "a" + first.content


def test_reset_forgets_the_turns_and_keeps_the_system_text(told: Told) -> None:
    told.do("/system ab")
    told.ask("c")
    assert told.do("/reset") == "A new conversation; the system text and the settings stay."
    assert told.chat.messages == [Message("system", "ab")]


def test_the_system_text_is_set_shown_and_taken_away(told: Told) -> None:
    assert told.do("/system") == "The conversation begins with its first turn."
    told.ask("c")
    assert told.do("/system ab  cd").startswith("The conversation begins with 'ab  cd';")
    assert told.chat.messages[0] == Message("system", "ab  cd")
    assert "'ab  cd'" in told.do("/system")
    told.do("/system ef")
    assert [m.role for m in told.chat.messages] == ["system", "user", "assistant"]
    assert told.do('/system ""') == "The conversation begins with its first turn."
    assert [m.role for m in told.chat.messages] == ["user", "assistant"]


@pytest.mark.parametrize("system", ["", "ab"])
def test_load_of_what_was_saved_is_the_same_conversation(
    told: Told, tmp_path: Path, system: str
) -> None:
    if system:
        told.do(f"/system {system}")
    told.ask("a", "\u00fc\U0001f600 \u2028b\\")
    told.chat.messages[-1] = replace(told.chat.messages[-1], stopped=True)
    saved = list(told.chat.messages)
    path = tmp_path / "with blanks.jsonl"
    n_messages = 4 + bool(system)
    assert told.do(f"/save {path}") == f"{path}: {n_messages} messages saved."
    told.do("/reset")
    told.ask("c")
    told.do(f"/load {path}")
    assert told.chat.messages == saved
    told.ask("d")  # and it goes on from there, into the same file
    assert told.do("/save") == f"{path}: {n_messages + 2} messages saved."


def test_save_never_replaces_a_file_that_is_not_the_conversation_s(
    told: Told, tmp_path: Path
) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years", encoding="utf-8")
    assert told.do(f"/save {thesis}").endswith("not this conversation's: name another file.")
    assert thesis.read_text(encoding="utf-8") == "years"
    assert told.do(f"/load {thesis}").startswith(f"{thesis}, line 1: must be a JSON object")
    assert told.do(f"/save {thesis}").endswith("name another file.")


def test_save_after_reset_does_not_replace_the_conversation_before(
    told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "one.json"
    told.ask("a")
    told.do(f"/save {path}")
    told.do("/reset")
    told.ask("b")
    assert told.do("/save") == "/save needs the name of a file."
    assert told.do(f"/save {path}").endswith("name another file.")
    told.do(f"/load {path}")
    assert told.chat.messages[0] == Message("user", "a")


def test_save_writes_over_no_file_and_through_no_link_that_is_in_the_way(
    told: Told, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years", encoding="utf-8")
    (tmp_path / "one.json.tmp").symlink_to(precious)
    told.ask("a")
    assert "is in the way" in told.do(f"/save {tmp_path / 'one.json'}")
    assert precious.read_text(encoding="utf-8") == "years"
    assert not (tmp_path / "one.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"role": "user", "content": ', "line 1: must be a JSON object"),
        (b"\xff\x00", "line 1: must be a JSON object"),
        (b"[" * 100_000, "line 1: must be a JSON object"),
        (b'{\n "format": 1,\n "messages": []}', "line 1: must be a JSON"),  # an older /save's
        (b'{"command": "/undo"}', "line 1: must be a JSON object with a role"),
        (b"[]", "line 1: must be a JSON object with a role"),
        (b'{"role": "bot", "content": ""}', "line 1: must be"),
        (b'{"role": [], "content": ""}', "line 1: must be"),
        (b'{"role": "user", "content": ""}\n{"role": "user"}', "line 2: must be a JSON object"),
        (b'{"role": "user", "content": "a"}', "by turns of user and"),
    ],
)
def test_what_is_wrong_with_a_saved_conversation_is_said_and_changes_nothing(
    told: Told, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    told.ask("a")
    before = list(told.chat.messages)
    assert said in told.do(f"/load {path}")
    assert told.chat.messages == before


def test_halves_of_characters_in_a_file_do_no_harm(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(
        '{"role": "user", "content": "\\ud800"}\n{"role": "assistant", "content": ""}\n',
        encoding="utf-8",
    )
    told.do(f"/load {path}")
    told.ask("\udcff")
    assert told.do("/save").endswith("4 messages saved.")


def test_files_that_cannot_be_used_are_sentences(told: Told, tmp_path: Path) -> None:
    assert told.do("/save") == "/save needs the name of a file."
    assert told.do("/load") == "/load needs the name of a file."
    assert "No such file" in told.do(f"/save {tmp_path}/none/talk.json")
    assert "No such file" in told.do(f"/load {tmp_path}/none")
    assert "it is no file" in told.do(f"/load {tmp_path}")
    assert "it is no file" in told.do("/load /dev/zero")
    for odd in ("\0", "x" * 5000, "~nobody-at-all/x"):
        assert told.do(f"/save {odd}")
        assert told.do(f"/load {odd}")
    assert list(tmp_path.iterdir()) == []


def test_set_changes_a_setting_within_the_range_it_was_declared_with(told: Told) -> None:
    assert told.do("/set temperature 0.7") == "temperature 0.7"
    assert told.chat.config == replace(LIKELIEST, temperature=0.7)
    assert told.do("/set max_new_tokens   9") == "max-new-tokens 9"
    assert told.chat.config.max_new_tokens == 9
    before = told.chat.config
    assert told.do("/set temperature -1") == "--temperature is -1.0: it must be at least 0."
    assert told.do("/set temperature nan") == "--temperature is nan: it must be a finite number."
    assert told.do("/set top-k 1.5") == "/set top-k 1.5: top-k must be a whole number."
    assert told.do("/set top-k") == "/set top-k: top-k must be a whole number."
    assert told.do("/set temprature 1").startswith("temprature: no such setting. There are max-new")
    assert told.chat.config == before


def test_set_alone_lists_every_setting(told: Told) -> None:
    lines = told.do("/set").splitlines()
    assert [line.split()[0] for line in lines] == list(SETTINGS)
    assert len(lines) == len(fields(GenerateConfig))
    assert lines[list(SETTINGS).index("temperature")].startswith("temperature 0: ")


def test_an_unknown_command_is_a_sentence(told: Told) -> None:
    for name in ("rety", ""):
        assert told.do(f"/{name}") == (
            f"/{name}: no such command; /help lists them. To send it, begin with //."
        )
    assert told.do(" ").startswith("Type something")


def test_quit_ends_the_input_and_help_lists_every_command(told: Told) -> None:
    with pytest.raises(EOFError):
        told.do("/quit")
    for name in COMMANDS:
        assert f"\n/{name} " in "\n" + told.do("/help")


def test_two_slashes_begin_a_text(told: Told) -> None:
    assert told.do("//bc") == "/bcdefg"
    assert told.do("bc /").startswith("bc /")


@given(st.text(st.sampled_from("/ setlodhnxp\t\n0.\x00\ud800"), max_size=20))
@settings(deadline=None)  # time is no part of it
def test_no_command_line_is_more_than_a_sentence(line: str) -> None:
    told = Told()
    name = (line.split() or [""])[0]
    if name != "quit" and not name.startswith("save"):  # which does as it is told
        assert told.do("/" + line)
    tab("/" + line)


def tab(text: str) -> list[str]:
    """Return what Tab makes of a text."""
    document, event = Document(text), CompleteEvent()
    found = completer().get_completions(document, event)
    return [text[: len(text) + each.start_position] + each.text for each in found]


def test_tab_completes_commands_and_settings() -> None:
    settings = [f"/set {name} " for name in SETTINGS]
    assert tab("/se") == ["/set ", *settings]
    assert tab("/sy") == ["/system "]
    assert tab("/set te") == ["/set temperature "]
    assert tab("/set ") == ["/set ", *settings]
    for text in ("/reset x", "no command", "//set", "/set te\nb"):
        assert tab(text) == []


def test_tab_completes_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("talk 1.json", "talk 2.json", ".hidden"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert tab("/save talk") == ["/save talk 1.json", "/save talk 2.json"]
    assert tab("/load talk 1") == ["/load talk 1.json"]
    assert tab(f"/load {tmp_path}/ta")[0] == f"/load {tmp_path}/talk 1.json"
    assert tab("/load none/x") == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tab("/load ~/.h") == ["/load ~/.hidden"]


def test_an_answer_again_that_cannot_be_given_leaves_the_one_that_there_was(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.ask("a", "b")
    before = list(told.chat.messages)
    for end in ("never begun", "failed"):
        answer = run_line(told.chat, "/retry")
        if end == "failed":
            monkeypatch.setattr(told.chat.decoder, "step", diverged)
            assert answer is not None
            with pytest.raises(CheckpointError):
                "".join(answer)
        assert told.chat.messages == before


def diverged() -> None:
    raise CheckpointError("The network's logits are not finite numbers.")


def test_a_transcript_follows_the_conversation_and_can_be_loaded(
    told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "talk.jsonl"
    transcript = Transcript(path, told.chat.notify)
    for line in ("a", "b", "/undo", "c", "/retry", "/system \udcff b", "d", "/reset", "e"):
        if line.startswith("/"):
            told.do(line)
        else:
            told.ask(line)
        transcript.update(told.chat.messages)
        assert load_conversation(path) == told.chat.messages
    contents = [json.loads(line).get("content") for line in path.read_text("utf-8").splitlines()]
    assert [each for each in contents if each in ("a", "b", "c", "d", "e")] == list("abcacde")
    transcript._file.close()  # which otherwise stays open until the chat ends


def test_a_transcript_goes_on_behind_a_line_cut_off(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b'{"role": "us')
    transcript = Transcript(path, told.chat.notify)
    told.ask("a")
    transcript.update(told.chat.messages)
    transcript._file.close()
    first, *others = path.read_text(encoding="utf-8").splitlines()
    assert first == '{"role": "us'
    assert json.loads(others[0]) == {"kept": 0}
    assert [json.loads(line)["role"] for line in others[1:]] == ["user", "assistant"]
