"""python -m prepare chats as a process, and what inspect, verify and export make of its folder."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.dataset import DataFolder, open_data
from common.errors import DataError
from prepare.report.conversations import verify_masks
from tests.prepare.chats import BPE, CHAR, documents_in, lines_of, messages, prepare_chats
from tests.processes import REPOSITORY, assert_one_sentence, run_python

TINY = REPOSITORY / "tests/fixtures/runs-2/tiny"
SAID = [[("system", "be good"), ("user", f"what is {i}?"), ("assistant", "it is")] for i in "abcde"]
PAIRS = [{"prompt": f"what is {i}?", "chosen": "it is", "rejected": "is it"} for i in "abcde"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chats.jsonl").write_bytes(lines_of(map(messages, SAID)))
    (tmp_path / "pairs.jsonl").write_bytes(lines_of(PAIRS))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny").symlink_to(TINY)
    (tmp_path / "data").symlink_to(BPE)
    return tmp_path


def test_vocabulary_and_context_are_those_of_the_run_that_is_named(folder: Path) -> None:
    step = sorted(TINY.glob("step-*"))[-1]
    block_size = json.loads((step / "state.json").read_bytes())["model"]["block_size"]
    own = json.loads((step / "vocab.json").read_bytes())
    for named, context, vocabulary in [
        ("runs/tiny", block_size, step / "vocab.json"),
        (f"runs/tiny/{step.name}", block_size, step / "vocab.json"),
        (f"runs/tiny/{step.name}/vocab.json", block_size, step / "vocab.json"),
        (CHAR, 1_024, Path(CHAR, "vocab.json")),
        (None, 1_024, Path(BPE, "vocab.tiktoken")),  # that of data/
    ]:
        lines = lines_of([messages([("user", "ab"), ("assistant", own[-1])])])
        (folder / "short.jsonl").write_bytes(lines)
        given = ["--tokenizer", named] if named else []
        ended = run_python(["-m", "prepare", "chats", "short.jsonl", *given], folder)
        assert ended.returncode == 0, ended.stderr
        data = open_data(folder / "chats")
        assert data.meta["chats"]["context"] == context
        assert (data.path / vocabulary.name).read_bytes() == vocabulary.read_bytes()
        assert f"at most {context:,} tokens each" in ended.stdout


def test_it_is_made_again_only_where_something_changed_and_leaves_no_mask_to_text(
    folder: Path,
) -> None:
    command = ["-m", "prepare", "chats", "chats.jsonl", "--out", "out", "--tokenizer", "own"]
    shutil.copytree(BPE, folder / "own")
    first, second = (run_python(command, folder) for _ in range(2))
    assert "5 of the shape messages; 5 answers" in first.stdout
    assert first.stdout == second.stdout
    assert "nothing to do" in second.stderr
    shutil.rmtree(folder / "own")
    shutil.copytree(CHAR, folder / "own")
    assert "--tokenizer own is another file than it was" in run_python(command, folder).stderr
    assert {"train.mask", "val.mask", "chat_template.jinja"} < {
        path.name for path in (folder / "out").iterdir()
    }
    text = [
        "-m",
        "prepare",
        "text",
        "chats.jsonl",
        "--out",
        "out",
        "--text-key",
        "messages.content",
    ]
    said = run_python(text, folder)
    assert said.returncode == 0
    assert said.stderr.count("python -m prepare chats learns the answers") == 1
    assert not [*(folder / "out").glob("*.mask"), *(folder / "out").glob("*.jinja")]
    assert not open_data(folder / "out").has_masks
    assert "made again" in run_python(command, folder).stderr
    assert open_data(folder / "out").has_masks


def test_sentences_for_what_cannot_be_prepared(folder: Path) -> None:
    (folder / "bad.jsonl").write_bytes(lines_of([{"messages": []}]))
    for arguments, sentence in [
        (["--tokenizer", "bpe"], "by the vocabulary of the run that is fine-tuned"),
        (["--tokenizer", "runs"], "runs: a folder without a vocabulary"),
        (["--fields", "question"], "--fields question: two names are needed"),
        (["--fields", "a,b,c"], "two names only"),
        (["--speakers", "A,"], "--speakers A,: two names are needed"),
        (["--context", "3"], "5 questions without room for an answer in the context"),
        (["bad.jsonl"], "bad.jsonl, line 1: missing turn: there is no message"),
        (["--out", "data"], "data: is --out, and its vocabulary is taken"),
        (["--tokenizer", "runs/tiny", "--out", "runs/tiny"], "runs/tiny: is a run"),
    ]:
        command = ["-m", "prepare", "chats", "chats.jsonl", "--out", "out", *arguments]
        ended = run_python(command, folder)
        assert_one_sentence(ended, sentence)
        assert not (folder / "out").exists()
    (folder / "data").unlink()
    ended = run_python(["-m", "prepare", "chats", "chats.jsonl"], folder)
    assert ended.returncode == 2
    assert "There is no data here, whose vocabulary" in ended.stderr


def test_left_out_conversations_are_listed_and_end_with_3(folder: Path) -> None:
    lines = lines_of([{"messages": []}, messages(SAID[0]), {"messages": [{"role": "x"}]}])
    (folder / "bad.jsonl").write_bytes(lines)
    (folder / "notes.txt").write_text("No conversation.\n")
    author = {"name": "ben"}
    said = {"author": author, "timestamp": "2024-01-01", "type": "Default", "content": "Hello"}
    discord = {"guild": {}, "channel": {}, "messages": [said]}
    (folder / "discord.json").write_text(json.dumps(discord))
    command = ["-m", "prepare", "chats", "bad.jsonl", "notes.txt", "discord.json"]
    ended = run_python([*command, "--on-error", "skip", "--val-fraction", "0"], folder)
    assert ended.returncode == 3
    assert "1 skipped, missing turn: bad.jsonl, line 1." in ended.stdout
    assert "1 skipped, no message: bad.jsonl, line 3." in ended.stdout
    assert "1 skipped, no conversations recognised: notes.txt." in ended.stdout
    assert "1 skipped, no --me: discord.json" in ended.stdout


def test_inspect_shows_conversations_and_export_writes_them_as_they_are_read(folder: Path) -> None:
    for name, shown in [
        ("chats.jsonl", "[system]\nbe good\n[user]\nwhat is a?\n[assistant, learned]\nit is\n"),
        ("pairs.jsonl", "[user, rejected]\nwhat is a?\n[assistant, rejected, learned]\nis it\n"),
    ]:
        data = prepare_chats([folder / name], folder / "out", val_fraction=0)
        ended = run_python(["-m", "prepare", "inspect", "out", "--show", "9"], folder)
        assert shown in ended.stdout
        assert len(re.findall("^--- train conversation", ended.stdout, re.MULTILINE)) == 5
        ended = run_python(["-m", "prepare", "export", "out", "exported", "--to", "text"], folder)
        assert ended.returncode == 0, ended.stderr
        again = prepare_chats([folder / "exported/train.jsonl"], folder / "2", val_fraction=0)
        assert documents_in(again) == documents_in(data)


@pytest.mark.parametrize("name", ["chats.jsonl", "pairs.jsonl"])
def test_any_bit_of_a_mask_that_is_not_as_it_must_be_is_found(name: str, folder: Path) -> None:
    data = prepare_chats([folder / name], folder / "out", val_fraction=0)
    verify_masks(data)
    path = data.path / "train.mask"
    whole = path.read_bytes()
    ids = data.tokens("train")
    ends = set(np.flatnonzero(ids == data.tokenizer().special_tokens["<|end|>"]).tolist())
    for place in range(0, int(data.document_bounds("train")[2])):
        for bit in (1, 2, 4):
            if bit == 1 and place in ends and whole[place] & 1:
                continue  # so ends an answer that was cut off
            changed = bytearray(whole)
            changed[place] ^= bit
            path.write_bytes(changed)
            with pytest.raises(DataError, match=r"train.mask, document [01]: its mask says"):
                verify_masks(DataFolder(data.path, data.meta))
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="each has one"):
        verify_masks(DataFolder(data.path, data.meta))
