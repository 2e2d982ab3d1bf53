"""The chat as a person meets it: in a terminal of 80 columns, and as a program in a pipe."""

import json
import signal
import stat
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit

import pytest

from tests.processes import run_python, start_python
from tests.sample.conftest import make_run
from tests.terminal import ALT_ENTER, BACKSPACE, CTRL_C, CTRL_D, CTRL_R, ENTER, TAB, UP, Terminal

CHAT = ["-m", "sample", "chat", "--temperature", "0", "--max-new-tokens", "4"]


def in_terminal(place: Path, folder: Path, *options: str, width: int = 80) -> Terminal:
    """Return a chat with the run of ``place``, whose history is kept in ``folder``."""
    arguments = [*CHAT, "--runs-dir", str(place / "runs"), *options]
    return Terminal(arguments, folder, width=width, XDG_STATE_HOME=str(folder / "state"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    make_run(folder / "runs", "circle")
    return folder


def test_a_session_and_the_next_one(place: Path, tmp_path: Path) -> None:
    with in_terminal(place, tmp_path) as terminal:
        terminal.see("val loss 1.2500", "This is a base model", "/help lists the commands")
        terminal.see_prompt()
        terminal.keys("cx" + BACKSPACE + ENTER)  # a typing error, mended
        terminal.see("\ncdefg\n")
        terminal.see_prompt()
        terminal.keys("a" + ALT_ENTER + "b\\" + ENTER + "c" + ENTER)  # three lines, two ways
        terminal.see("\na\nb\ncdefg\n")
        terminal.keys("/sta" + TAB)
        terminal.see_prompt("/stats ")
        terminal.keys(ENTER)
        terminal.see("4 tokens in ")
        terminal.see_prompt()
        terminal.keys("gone" + CTRL_C)
        terminal.see("> gone\n\n>")
        terminal.see_prompt()
        terminal.keys("/set te" + TAB)
        terminal.see_prompt("/set temperature ")
        terminal.keys("9" + ENTER)
        terminal.see("temperature 9.0")
        terminal.keys("/set temperature 0" + ENTER + "d" + ENTER)
        terminal.see("\ndefgh\n")
        terminal.keys("/save talk.jsonl" + ENTER)
        terminal.see("\ntalk.jsonl: 6 messages saved.")
        terminal.keys("/quit" + ENTER)
        assert terminal.wait() == 0
    history = tmp_path / "state" / "quern" / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with in_terminal(place, tmp_path) as terminal:
        terminal.see_prompt()
        terminal.recall()
        terminal.see_prompt("/quit")
        terminal.keys(UP)
        terminal.see_prompt("/save talk.jsonl")
        terminal.keys(CTRL_C)
        terminal.see_prompt()
        terminal.keys("/load ta" + TAB)
        terminal.see_prompt("/load talk.jsonl")
        terminal.keys(ENTER)
        terminal.see("6 messages; the conversation goes on from there.")
        terminal.see_prompt()
        terminal.keys(CTRL_R + "gs of" + BACKSPACE * 5 + "stats" + ENTER + ENTER)
        terminal.see("> /stats\n")  # found in the history of the session before
        terminal.keys("/undo" + ENTER)
        terminal.see("Taken back: 'd' and its answer.")
        terminal.see_prompt()
        terminal.keys(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text


def test_ctrl_c_stops_an_answer_and_sigterm_the_chat_and_both_keep_what_was_written(
    place: Path, tmp_path: Path
) -> None:
    options = ("--max-new-tokens", "100000000", "--transcript", "talk.jsonl")
    with in_terminal(place, tmp_path, *options) as terminal:
        terminal.see_prompt()
        terminal.keys("a" + ENTER)
        terminal.see("abcdefgh" * 10)
        terminal.keys(CTRL_C + CTRL_C)
        terminal.see("Stopped. What was written stays in the conversation; /undo takes it back.")
        terminal.see_prompt()
        terminal.keys("/reset" + ENTER + "/set max-new-tokens 3" + ENTER + "c" + ENTER)
        terminal.see("\ncdef\n")
        terminal.keys("/set max-new-tokens 100000000" + ENTER + "h" + ENTER)
        terminal.see("habcdefg" * 10)
        terminal.keys(CTRL_C)  # is heard the second time, too
        terminal.see_prompt()
        terminal.keys("b" + ENTER)
        terminal.see("\nbcdefgha")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == 143
        assert "Traceback" not in terminal.text
    lines = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    stopped = [record.get("stopped", False) for record in records]
    assert stopped == [False, True, False, False, False, False, True, False, True]
    assert records[1]["content"].startswith("bcdefgha")
    assert records[2] == {"kept": 0}
    assert records[-1]["content"].startswith("cdefgha")


def test_a_narrow_window_one_that_changes_and_one_that_is_closed(
    place: Path, tmp_path: Path
) -> None:
    with in_terminal(place, tmp_path, width=40) as terminal:
        terminal.see_prompt()
        typed = "abcdefgh" * 8
        terminal.keys(typed)
        terminal.see("> " + typed[:38] + "\n  " + typed[38:])
        terminal.resize(60)
        terminal.see("> " + typed[:58] + "\n  " + typed[58:])
        terminal.keys(ENTER)
        terminal.see("\n" + typed[:60] + "\n" + typed[60:] + "abcd\n")
        terminal.see_prompt()
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == 143
        assert "Traceback" not in terminal.text
        assert "Unhandled" not in terminal.text


def test_whatever_is_typed_there_is_no_traceback_also_without_a_history(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").touch()
    with in_terminal(place, tmp_path) as terminal:
        terminal.see("so what you type is not kept for later.")
        terminal.see_prompt()
        for odd in ("\x16\x07", "\udcff\udcfe", "\x16\x00", "/", "/set", "/load \x16\x01"):
            terminal.enter(odd)
        terminal.enter("\x1b[200~a\x1b[2Jb\x1b[201~")  # pasted: it would clear the screen
        terminal.see("\na\\x1b[2Jbcdef\n")
        terminal.enter("\x1b[200~c\nd\n\x1b[201~")  # several lines pasted: one prompt
        terminal.see("\nc\nd\nabcd\n")
        terminal.see_prompt()
        terminal.enter("ef")
        terminal.recall()
        terminal.see_prompt("ef")
        terminal.enter("", end=CTRL_C)
        terminal.keys(CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text
        assert "Unhandled" not in terminal.text


def test_a_history_on_a_full_disk_does_not_end_the_chat(place: Path, tmp_path: Path) -> None:
    with in_terminal(place, tmp_path) as terminal:
        terminal.see_prompt()
        # no file can grow from now on, as on a full disk
        prlimit(terminal.process.pid, RLIMIT_FSIZE, (0, RLIM_INFINITY))
        for prompt, answer in (("a", "abcde"), ("b", "bcdef")):
            terminal.enter(prompt)
            terminal.see(f"\n{answer}\n")
        terminal.see_prompt()
        terminal.keys(UP)
        terminal.see_prompt("b")  # kept for this session
        terminal.keys(CTRL_C + CTRL_D)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text
        assert "Unhandled" not in terminal.text


def test_each_line_of_a_pipe_is_a_prompt_whatever_it_begins_with(place: Path) -> None:
    typed = "\ufeffc\n\n   \nabcdefgh\u00e9" + "h" * 160 + "\n/save x.json\n//c\n"
    script = "import sys, runpy; sys.modules['prompt_toolkit'] = None; "  # nobody may import it
    script += "runpy.run_module('sample', run_name='__main__')"
    ended = run_python(["-c", script, *CHAT[2:]], place, typed=typed)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        "cdefg\nabcdefgh\u00e9" + "h" * 160 + "abcd\n/save x.jsonabcd\n//cdefg\n"
    )
    assert not (place / "x.json").exists()
    assert ended.stderr == (
        "runs/circle/step-00000010: step 10, 10,000 tokens read, val loss 1.2500.\n"
        "This is a base model: it does not answer, it continues the text that you begin.\n"
        "It is undertrained: it read 2.2 tokens for each of its 4,545 parameters, where 20 are "
        "usual. Expect the sound of its text more than its sense.\n"
        "The vocabulary has no '\u00e9': left out of the prompt.\n"
        "The oldest turn had no room in the context.\n"
        "The first 156 tokens of the last turn had no room in the context.\n"
        "The vocabulary has no '/', 's', 'v', 'x', '.', 'j', 'o', 'n': left out of the prompt.\n"
        "The vocabulary has no '/': left out of the prompt.\n"
    )


def test_an_answer_is_shown_while_the_input_stays_open_also_when_the_disk_is_full(
    place: Path,
) -> None:
    with start_python([*CHAT, "--transcript", "/dev/full"], place) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for prompt, answer in (("c", "cdefg\n"), ("a", "abcde\n")):
            process.stdin.write(prompt + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == answer
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        said = "/dev/full: this turn cannot be added to it (No space left on device)."
        assert process.stderr.read().count(said) == 2


def test_a_transcript_that_cannot_be_written_is_said_before_the_chat(
    place: Path, tmp_path: Path
) -> None:
    ended = run_python([*CHAT, "--transcript", str(tmp_path / "none" / "x")], place)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"Error: --transcript {tmp_path}/none/x: cannot be written (No such file or directory)."
    )
