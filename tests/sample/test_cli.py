"""The commands of sample as processes: text on stdout, all else on stderr."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from common.checkpoint import load_checkpoint, save_checkpoint
from tests.processes import assert_one_sentence, run_each, run_python, start_python
from tests.sample.conftest import ALPHABET, make_run

Ended = dict[str, "subprocess.CompletedProcess[str]"]
LIKELIEST = ["--temperature", "0", "--max-new-tokens", "5"]
GOOD = {
    "best of the newest run": ["generate", "--prompt", "ab c", *LIKELIEST],
    "latest of the newest run": ["generate", "--checkpoint", "latest", "--prompt", "c", *LIKELIEST],
    "a run by name": ["generate", "old", "--prompt", "c", *LIKELIEST],
    "runs elsewhere": ["generate", "--runs-dir", "elsewhere", "--prompt", "c", *LIKELIEST],
    "no prompt": ["generate", *LIKELIEST],
    "a prompt too long": ["generate", "--prompt", "g" * 159 + "h", *LIKELIEST],
    "an unknown character": ["generate", "--prompt", "a\U0001f600b\u00fc", *LIKELIEST],
    "hot": ["generate", "--temperature", "1000", "--top-p", "1", "--max-new-tokens", "60"],
    "hot again": ["generate", "--temperature", "1000", "--top-p", "1", "--max-new-tokens", "60"],
    "another seed": [
        "generate", "--temperature", "1000", "--top-p", "1", "--max-new-tokens", "60",
        "--seed", "5",
    ],
    "two, with a stop": [
        "generate", "--prompt", "a", "--num-samples", "2", "--stop", "x", "--stop", "de",
        *LIKELIEST,
    ],
    "weights of a byte": ["generate", "--prompt", "ab c", "--quantize", "int8", *LIKELIEST],
    "json": ["generate", "--prompt", "ab", "--json", "--temperature", "0", "--max-new-tokens", "1"],
    "score": ["score", "abcd.txt", "aa.txt"],
    "score unknown characters": ["score", "ueber.txt"],
    "score in json": ["score", "aa.txt", "--run", "old", "--json"],
    "score per token": ["score", "aa.txt", "--per-token", "--quantize", "int8"],
    "score standard input": ["score", "-", "--json"],
    "score nothing": ["score", "a\x1b[31m\nb"],
    "score nothing in json": ["score", "a\x1b[31m\nb", "--json"],
    "a damaged checkpoint": ["generate", "--runs-dir", "worn", *LIKELIEST],
}  # fmt: skip
WITH_CONTROLS = {
    "generate": ["generate", "--prompt", "a\x9b2J", *LIKELIEST],
    "generate --json": ["generate", "--prompt", "a\x9b2J", "--json", *LIKELIEST],
    "chat": ["chat", *LIKELIEST],
}
BAD = {
    "an unknown run": (
        ["generate", "nothing"],
        ["runs/nothing: no such run. Runs in runs: circle"],
    ),
    "no runs": (
        ["chat", "--runs-dir", "nowhere"],
        ["nowhere: no run with a checkpoint in it. Train one first: make train"],
    ),
    "no sound checkpoint": (
        ["generate", "damaged", "--runs-dir", "bad"],
        ["bad/damaged: holds no checkpoint that verifies. Train it anew"],
    ),
    "weights that are no numbers": (
        ["generate", "diverged", "--runs-dir", "bad", "--checkpoint", "latest"],
        ["The network's logits are not finite numbers: its training has diverged."],
    ),
    "a score by weights that are no numbers": (
        ["score", "aa.txt", "--run", "diverged", "--runs-dir", "bad", "--checkpoint", "latest"],
        ["The network's logits are not finite numbers: its training has diverged."],
    ),
    "a device that is not here": (
        ["generate", "--device", "cuda:63"],
        ["--device cuda:63: this machine cannot use it"],
    ),
    "a stride beyond the context": (
        ["score", "aa.txt", "--stride", "17"],
        ["--stride is 17, but the context holds 16 tokens."],
    ),
    "a text that is not UTF-8": (
        ["score", "latin.txt"],
        ["latin.txt: not UTF-8 at byte 1"],
    ),
    "a temperature that is no number": (
        ["generate", "--temperature", "nan"],
        ["--temperature is nan: it must be a finite number."],
    ),
    "logprobs without a place to be": (
        ["generate", "--logprobs", "3"],
        ["--logprobs is of use only with --json: pass both, or none."],
    ),
}


@pytest.fixture(scope="module")
def endings(workplace: Path) -> Ended:
    """Return how each command of GOOD, BAD and WITH_CONTROLS ended, the last also in a terminal."""
    if not (workplace / "elsewhere").exists():
        make_run(workplace / "elsewhere", "other")
        damaged = make_run(workplace / "bad", "damaged")
        for weights in damaged.glob("step-*/model.safetensors"):
            weights.write_bytes(weights.read_bytes()[:100])
        diverged = make_run(workplace / "bad", "diverged")
        loaded = load_checkpoint(diverged / "step-00000030", torch.device("cpu"))
        with torch.no_grad():
            loaded.model.lm_head.weight.fill_(float("nan"))
        progress = {"progress": loaded.state["progress"]}
        save_checkpoint(diverged, 40, loaded.model, {}, progress, ALPHABET)
        worn = make_run(workplace / "worn", "circle")
        shutil.copytree(worn / "step-00000030", worn / "step-00000040.tmp")
        (worn / "step-00000010" / "manifest.json").write_text("", encoding="utf-8")
    texts = {
        "abcd.txt": b"abcd",
        "aa.txt": b"aa",
        "latin.txt": b"a\xfc",
        "ueber.txt": b"\xc3\xbcab",
    }
    for name, content in (texts | {"a\x1b[31m\nb": b""}).items():
        (workplace / name).write_bytes(content)
    in_terminal = {f"{name} in a terminal": command for name, command in WITH_CONTROLS.items()}
    commands = GOOD | {name: command for name, (command, _) in BAD.items()}
    commands |= WITH_CONTROLS | in_terminal
    typed = dict.fromkeys(("chat", "chat in a terminal"), "a\x9b2J\n")
    return run_each(
        {name: ["sample", *command] for name, command in commands.items()},
        workplace,
        typed=typed | {"score standard input": "abc"},
        in_terminal=in_terminal,
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("best of the newest run", "ab cdefgh", "runs/circle/step-00000010: val loss 1.2500"),
        ("latest of the newest run", "cbahgf", "runs/circle/step-00000030: val loss not measured"),
        ("a run by name", "cdefgh", "runs/old/step-00000010: val loss 1.2500"),
        ("runs elsewhere", "cdefgh", "elsewhere/other/step-00000010: val loss 1.2500"),
        ("no prompt", "abcde", "runs/circle/step-00000010: val loss 1.2500"),
        (
            "a prompt too long",
            "g" * 159 + "habcde",
            "The prompt has 160 tokens and the context 16: only its end is seen.",
        ),
        (
            "an unknown character",
            "a\U0001f600b\u00fccdefg",
            "The vocabulary has no '\U0001f600', '\u00fc': left out of the prompt.",
        ),
    ],
)
def test_generate_writes_the_text_to_stdout_and_all_else_to_stderr(
    endings: Ended, name: str, text: str, said: str
) -> None:
    ended = endings[name]
    assert (ended.returncode, ended.stdout) == (0, text + "\n"), ended.stderr
    assert said in ended.stderr.splitlines()


def test_several_texts_end_before_a_stop_text(endings: Ended) -> None:
    ended = endings["two, with a stop"]
    assert (ended.returncode, ended.stdout) == (0, "abc\n---\nabc\n"), ended.stderr


def test_weights_of_a_byte_write_the_same_where_one_id_is_far_ahead(endings: Ended) -> None:
    ended = endings["weights of a byte"]
    assert (ended.returncode, ended.stdout) == (0, "ab cdefgh\n"), ended.stderr


def test_json_is_a_line_a_text(endings: Ended) -> None:
    described = json.loads(endings["json"].stdout)
    assert described["prompt"] + described["text"] == "abc"
    assert [token["text"] for token in described["tokens"]] == ["c"]
    assert (described["sample"], described["seed"], described["finish"]) == (0, 1337, "length")


# After end-of-text comes a, after it b, with a score 50 above all others: aa has 0 and 50 nats.
def test_scores_of_files_and_of_all_worked_out_by_hand(endings: Ended) -> None:
    assert endings["score"].returncode == 0, endings["score"].stderr
    heading, *lines = endings["score"].stdout.splitlines()
    assert heading.split() == ["tokens", "bytes", "loss", "perplexity", "bits/byte"]
    assert [line.split()[:3] for line in lines] == [
        ["abcd.txt", "4", "4"], ["aa.txt", "2", "2"], ["all", "6", "6"],
    ]  # fmt: skip
    found = [[float(word.replace(",", "")) for word in line.split()[3:]] for line in lines]
    for (loss, perplexity, bpb), expected in zip(found, [0, 25, 50 / 6], strict=True):
        assert loss == pytest.approx(expected, abs=1e-3)
        assert perplexity == pytest.approx(math.exp(expected), rel=1e-3)
        assert bpb == pytest.approx(expected / math.log(2), abs=1e-3)
    described = json.loads(endings["score in json"].stdout)
    assert (described["file"], described["tokens"]) == ("aa.txt", 2)
    assert described["loss"] == pytest.approx(25, rel=1e-4)
    assert described["perplexity"] == pytest.approx(math.exp(25), rel=1e-3)


def test_characters_that_are_not_scored_are_said(endings: Ended) -> None:
    said = endings["score unknown characters"].stderr.splitlines()
    assert "ueber.txt: The vocabulary has no '\u00fc': left out of what is scored." in said


def test_scores_of_tokens_are_columns_in_a_pipe(endings: Ended) -> None:
    ended = endings["score per token"]
    assert ended.returncode == 0, ended.stderr
    heading, first, second = (line.split("\t") for line in ended.stdout.splitlines())
    assert heading == ["bits", "logprob", "id", "text"]
    assert (first[0], first[3], second[3]) == ("0.000", "a", "a")
    assert float(second[0]) == pytest.approx(50 / math.log(2), rel=0.02)  # of bytes
    assert "aa.txt" in ended.stderr


def test_standard_input_is_scored(endings: Ended) -> None:
    ended = endings["score standard input"]
    assert json.loads(ended.stdout)["loss"] == pytest.approx(0, abs=1e-6), ended.stderr


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("score nothing", "a\\x1b[31m\\nb"),
        (
            "score nothing in json",
            '{"file": "a\\u001b[31m\\nb", "tokens": 0, "bytes": 0, "loss": null, ',
        ),
    ],
)
def test_an_empty_file_has_no_loss_and_a_name_cannot_command_the_terminal(
    endings: Ended, name: str, line: str
) -> None:
    ended = endings[name]
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1].startswith(line)
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        ("chat", "<&-"),
        ("score -", "<&-"),
        ("chat", ">&-"),
        ("generate", ">&-"),
        ("score -", "2>&-"),
    ],
)
def test_a_closed_stream_is_as_one_of_nothing(workplace: Path, command: str, closed: str) -> None:
    shell = f'echo ab | "$0" -m sample {command} {closed}'
    script = "import subprocess, sys; sys.exit(subprocess.run(['sh', '-c', sys.argv[1], "
    script += "sys.executable], stdin=subprocess.DEVNULL).returncode)"
    ended = run_python(["-c", script, shell], workplace)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout or closed != "2>&-"


def test_the_same_seed_gives_the_same_text(endings: Ended) -> None:
    assert endings["hot"].stdout == endings["hot again"].stdout
    assert endings["hot"].stdout != endings["another seed"].stdout
    assert set(endings["hot"].stdout) <= set("\n abcdefgh")


@pytest.mark.parametrize("name", BAD)
def test_what_a_person_can_mend_is_one_sentence(endings: Ended, name: str) -> None:
    assert_one_sentence(endings[name], *BAD[name][1])


def test_a_reader_that_has_enough_ends_it_without_a_traceback(workplace: Path) -> None:
    command = ["-m", "sample", "generate", "--max-new-tokens", "100000", "--temperature", "0"]
    with start_python(command, workplace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == "a"
        process.stdout.close()  # as head -c 1 does
        said = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert said == "runs/circle/step-00000010: val loss 1.2500\n"


def test_generate_steps_back_over_a_damaged_checkpoint_and_says_so(endings: Ended) -> None:
    ended = endings["a damaged checkpoint"]
    assert (ended.returncode, ended.stdout) == (0, "ahgfe\n")  # another checkpoint, backwards
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("worn/circle/step-00000010/manifest.json: cannot be read (")
    assert lines[0].endswith("Stepping back to the checkpoint before.")
    assert lines[1:] == [
        "Using worn/circle/step-00000030 instead.",
        "worn/circle/step-00000030: val loss not measured",
    ]


@pytest.mark.parametrize("name", WITH_CONTROLS)
def test_what_a_terminal_would_obey_is_spelled_out_there_and_nowhere_else(
    endings: Ended, name: str
) -> None:
    assert "a\\x9b2J" in endings[f"{name} in a terminal"].stdout
    assert "a\x9b2J" in endings[name].stdout


def test_the_text_is_utf_8_whatever_the_locale_says(workplace: Path) -> None:
    script = (
        "import os, sys; os.environ['PYTHONIOENCODING'] = 'ascii'; os.environ['LC_ALL'] = 'C'; "
    )
    script += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    arguments = ["-m", "sample", "generate", "--prompt", "\u00fca", *LIKELIEST]
    ended = run_python(["-c", script, *arguments], workplace)
    assert (ended.returncode, ended.stdout) == (0, "\u00fcabcdef\n"), ended.stderr
