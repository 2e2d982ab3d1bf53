import inspect
import json
import os
import pydoc
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from prepare import corpus
from prepare.corpus import documentation
from prepare.questions import asked_about, write_conversations

ROOT = Path(__file__).parents[2]
ROLES = ["user", "assistant"]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, str]]]:
    """The default conversations, which are the same in each process, by zstandard alone."""
    file, found = tmp_path_factory.mktemp("chats") / "questions.jsonl.zst", set[bytes]()
    write = "import prepare.questions as q, pathlib; print(*q.write_conversations({}))"
    for seed in "12":  # processes of their own: pytest replaces functions of the library
        done = subprocess.run(
            [sys.executable, "-c", write.format(f"pathlib.Path({str(file)!r})")], cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True,
        )  # fmt: skip
        found.add(file.read_bytes())
    (raw,) = found
    lines = zstandard.ZstdDecompressor().stream_reader(raw).readall().splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    assert [int(number) for number in done.stdout.split()] == [
        len(conversations), sum(map(len, conversations)) // 2
    ]  # fmt: skip
    return conversations


def test_there_are_ten_thousand_questions_in_turns_and_most_are_asked_once(
    conversations: list[list[dict[str, str]]],
) -> None:
    for messages in conversations:
        assert [each["role"] for each in messages] == ROLES * (len(messages) // 2)
        assert all(each["content"].strip() == each["content"] != "" for each in messages)
    asked = Counter(each["content"] for messages in conversations for each in messages[::2])
    assert len(asked) > 25_000
    assert {len(messages) for messages in conversations} == {2, 4, 6}


def test_answers_are_the_words_of_docstrings_that_stand_in_the_corpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus, "MAX_CHARACTERS", 0)  # whatever it is, the library is there
    texts = dict(documentation())
    found = asked_about()
    assert len(found) > 2_000
    assert {"os.path.join", "len", "str.split", "json.dumps", "json", "math.sqrt"} <= set(found)
    for name in random.Random(1).sample(sorted(found), 300):
        value = pydoc.locate(name)
        docstring = " ".join(inspect.cleandoc(value.__doc__ or "").split())
        answer = found[name][1]
        assert " ".join(answer.rstrip(".").split()) in docstring, name
        assert texts[f"library/{name}.txt"].startswith(f"{name}: {answer[:-1]}")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Hello", "os.path.join"),
        ("who are you?", "small language model"),
        ("Are you human?", "No. I am a small language model"),
        ("What is the capital of France?", "I do not know that"),
    ],
)
def test_small_talk_is_honest_about_what_it_is(
    said: str, words: str, conversations: list[list[dict[str, str]]]
) -> None:
    answers = {
        answer["content"]
        for messages in conversations
        for question, answer in zip(messages[::2], messages[1::2], strict=True)
        if question["content"].lower().rstrip("?") == said.lower().rstrip("?")
    }
    assert len(answers) == 1
    assert words in answers.pop()


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    from common.errors import DataError

    with pytest.raises(DataError, match="cannot be written"):
        write_conversations(tmp_path / "none" / "chats.jsonl.zst")
