"""The commands of sample as processes: text on stdout, all else on stderr."""

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
}  # fmt: skip
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
        ["The network's scores are not finite numbers: its training has diverged."],
    ),
    "a device that is not here": (
        ["generate", "--device", "cuda:63"],
        ["--device cuda:63: this machine cannot use it"],
    ),
    "a temperature that is no number": (
        ["generate", "--temperature", "nan"],
        ["--temperature is nan: it must be a finite number."],
    ),
}


@pytest.fixture(scope="module")
def endings(workplace: Path) -> Ended:
    """Return how each command of GOOD and BAD ended."""
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
    commands = GOOD | {name: command for name, (command, _) in BAD.items()}
    return run_each({name: ["sample", *command] for name, command in commands.items()}, workplace)


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


def test_the_same_seed_gives_the_same_text(endings: Ended) -> None:
    assert endings["hot"].stdout == endings["hot again"].stdout
    assert endings["hot"].stdout != endings["another seed"].stdout
    assert set(endings["hot"].stdout) <= set("\n abcdefgh")


@pytest.mark.parametrize("name", BAD)
def test_what_a_person_can_mend_is_one_sentence(endings: Ended, name: str) -> None:
    assert_one_sentence(endings[name], *BAD[name][1])


def test_chat_with_scripted_input(workplace: Path) -> None:
    typed = "c\n\n   \nabcdefgh\u00e9" + "h" * 160 + "\nf\n"
    command = ["-m", "sample", "chat", "--temperature", "0", "--max-new-tokens", "4"]
    ended = run_python(command, workplace, typed=typed)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "cdefg\nabcdefgh\u00e9" + "h" * 160 + "abcd\nfghab\n"
    assert ended.stderr == (
        "runs/circle/step-00000010: step 10, 10,000 tokens read, val loss 1.2500.\n"
        "This is a base model: it does not answer, it continues the text that you begin.\n"
        "Ctrl-D leaves.\n"
        "\n> "
        "\n> Type the beginning of a text, or Ctrl-D to leave.\n"
        "\n> Type the beginning of a text, or Ctrl-D to leave.\n"
        "\n> The vocabulary has no '\u00e9': left out of the prompt.\n"
        "The prompt has 168 tokens, and 12 fit into the context beside the reply: "
        "the first 156 were cut off.\n"
        "The context has no room for the whole conversation: of its 1 turns the last 0 stay.\n"
        "\n> The context has no room for the whole conversation: of its 1 turns the last 0 stay.\n"
        "\n> \n"
    )


def test_an_answer_is_shown_while_the_input_stays_open(workplace: Path) -> None:
    command = ["-m", "sample", "chat", "--temperature", "0", "--max-new-tokens", "4"]
    with start_python(command, workplace) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for prompt, answer in (("c", "cdefg\n"), ("a", "abcde\n")):
            process.stdin.write(prompt + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == answer
        process.stdin.close()
        assert process.wait(timeout=60) == 0


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


def test_generate_steps_back_over_a_damaged_checkpoint_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "circle")
    shutil.copytree(run / "step-00000030", run / "step-00000040.tmp")
    manifest = run / "step-00000010" / "manifest.json"
    manifest.write_text("", encoding="utf-8")
    ended = run_python(["-m", "sample", "generate", *LIKELIEST], tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "ahgfe\n")  # another checkpoint, backwards
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("runs/circle/step-00000010/manifest.json: cannot be read (")
    assert lines[0].endswith("Stepping back to the checkpoint before.")
    assert lines[1:] == [
        "Using runs/circle/step-00000030 instead.",
        "runs/circle/step-00000030: val loss not measured",
    ]


def test_the_text_is_utf_8_whatever_the_locale_says(workplace: Path) -> None:
    script = (
        "import os, sys; os.environ['PYTHONIOENCODING'] = 'ascii'; os.environ['LC_ALL'] = 'C'; "
    )
    script += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    arguments = ["-m", "sample", "generate", "--prompt", "\u00fca", *LIKELIEST]
    ended = run_python(["-c", script, *arguments], workplace)
    assert (ended.returncode, ended.stdout) == (0, "\u00fcabcdef\n"), ended.stderr
