"""Records to turns: every shape that people have, and a sentence for all that is none."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from common.errors import DataError
from prepare.sources.source import Source, SourceList
from tests.prepare.chats import documents_in, lines_of, prepare_chats, said_in

ASKED = [("user", "What is it?"), ("ASSISTANT", "A mill.")]
WITH_SYSTEM = [("system", "Be brief."), *ASKED]
QUESTION, ANSWER = "What is it?", "A mill."

SHAPES: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "messages": (
        {"messages": [{"role": "user", "content": QUESTION},
                      {"role": "assistant", "content": ANSWER}]},
        ASKED,
    ),
    "parts": (
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [{"type": "text", "text": "What"}, {"text": "is it?"}]},
                {"role": "model", "content": [" A mill. "]},
            ]
        },
        [("system", "Be brief."), ("user", "What\nis it?"), ("ASSISTANT", "A mill.")],
    ),
    "ShareGPT": (
        {
            "id": "x",
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "What"},
                {"from": "human", "value": "is it?"},
                {"from": "gpt", "value": ANSWER},
            ],
        },
        [("system", "Be brief."), ("user", "What\nis it?"), ("ASSISTANT", "A mill.")],
    ),
    "an empty system text": (
        {"conversations": [{"from": "system", "value": " "}, {"from": "Human", "value": QUESTION},
                           {"from": "bot", "value": ANSWER}]},
        ASKED,
    ),
    "texts in turn": ({"dialog": [QUESTION, ANSWER, "And?", "No."]},
                      [*ASKED, ("user", "And?"), ("ASSISTANT", "No.")]),
    "Alpaca": (
        {"instruction": "Translate.", "input": "moulin", "output": "mill"},
        [("user", "Translate.\n\nmoulin"), ("ASSISTANT", "mill")],
    ),
    "Alpaca without input": ({"instruction": QUESTION, "input": "", "output": ANSWER}, ASKED),
    "Dolly": (
        {"instruction": "Which?", "context": "A b.", "response": "b", "category": "qa"},
        [("user", "Which?\n\nA b."), ("ASSISTANT", "b")],
    ),
    "completion": ({"prompt": QUESTION, "completion": ANSWER}, ASKED),
    "completion in messages": (
        {
            "prompt": [{"role": "system", "content": "Be brief."},
                       {"role": "user", "content": QUESTION}],
            "completion": [{"role": "assistant", "content": ANSWER}],
        },
        WITH_SYSTEM,
    ),
    "question": ({"question": QUESTION, "answer": ANSWER, "source": "x"}, ASKED),
    "input and output": ({"input": QUESTION, "output": ANSWER, "system": "Be brief."}, WITH_SYSTEM),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_known_by_its_keys(shape: str, tmp_path: Path) -> None:
    record, expected = SHAPES[shape]
    (tmp_path / "a.jsonl").write_bytes(lines_of([record]))
    data = prepare_chats([tmp_path / "a.jsonl"], tmp_path / "out", val_fraction=0)
    assert said_in(data) == [expected]
    assert sum(data.meta["chats"]["shapes"].values()) == 1


def test_fields_name_question_and_answer_wherever_they_stand(tmp_path: Path) -> None:
    records = [{"data": {"q": QUESTION}, "r": ANSWER, "messages": "none"}]
    (tmp_path / "a.jsonl").write_bytes(lines_of(records))
    data = prepare_chats(
        [tmp_path / "a.jsonl"], tmp_path / "out", val_fraction=0, fields="data.q, r"
    )
    assert said_in(data) == [ASKED]
    assert data.meta["chats"]["shapes"] == {"data.q, r": 1}


def test_tables_and_saved_data_sets_are_read_by_their_columns(tmp_path: Path) -> None:
    rows = [{"id": i, "question": f"{QUESTION} {i}", "answer": ANSWER} for i in range(40)]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question", "answer"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    turns = [
        {"messages": [{"role": "user", "content": r["question"]},
                      {"role": "assistant", "content": r["answer"]}]}
        for r in rows
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(turns), tmp_path / "b.parquet")
    (tmp_path / "a.jsonl").write_bytes(lines_of(rows))
    datasets.Dataset.from_list(turns).save_to_disk(str(tmp_path / "saved"))
    saved = Source(name="saved", path=tmp_path / "saved", dataset=True)
    expected = prepare_chats([tmp_path / "a.jsonl"], tmp_path / "out")
    names = [tmp_path / "a.csv", tmp_path / "a.parquet", tmp_path / "b.parquet"]
    found = [prepare_chats([path], tmp_path / f"out {path.name}") for path in names]
    found.append(prepare_chats(SourceList([saved]), tmp_path / "out saved"))
    for data in found:
        assert documents_in(data) == documents_in(expected)


def user(text: str = "a") -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str = "b") -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str = "s") -> dict[str, str]:
    return {"role": "system", "content": text}


MALFORMED: dict[str, tuple[str, str]] = {  # a line -> the reason, and more of the sentence
    '{"messages": [{"role": "he", "content": "a"}]}': ("unknown role", "'he'; known are"),
    json.dumps({"messages": [user(), {"role": "tool", "content": "1"}, bot()]}): (
        "unknown role", "'tool'; what tools were asked",
    ),
    json.dumps({"messages": [user()]}): ("missing turn", "the last question has no answer"),
    json.dumps({"messages": [user(), bot(), user()]}): ("missing turn", "the last question"),
    json.dumps({"messages": []}): ("missing turn", "there is no message"),
    json.dumps({"messages": [system(), system(), user(), bot()]}): ("two system texts", "join"),
    json.dumps({"messages": [system(), user(), system(), bot()]}): (
        "two system texts", "message 3",
    ),
    json.dumps({"messages": [user(), system(), bot()]}): ("late system text", "message 2"),
    json.dumps({"messages": [user(), bot(" \n")]}): ("empty answer", "message 2 holds no text"),
    json.dumps({"messages": [user(), {"role": "assistant", "content": None}]}): (
        "empty answer", "message 2",
    ),
    json.dumps({"messages": [user(""), bot()]}): ("empty question", "message 1"),
    json.dumps({"messages": [bot(), user(), bot()]}): ("assistant first", "message 1, the first"),
    json.dumps({"messages": [system(), bot()]}): ("assistant first", "message 2"),
    json.dumps({"messages": [{"role": "user"}]}): ("no message", "found the keys 'role'"),
    json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}): (
        "no message", "a part that is no text (image_url)",
    ),
    '{"question": "a", "answer": 42}': ("no message", "found int '42' instead of a text"),
    '{"question": "a", "id": 1}': ("missing turn", "no answer under any of output, completion"),
    '{"prompt": "a", "chosen": "b"}': ("missing turn", "no answer under"),
    '{"chosen": "b", "rejected": "c"}': ("missing turn", "'chosen' answers no 'prompt'"),
    json.dumps({"chosen": [user("x"), bot()], "rejected": [user("y"), bot()]}): (
        "two questions", "differ before their last answer",
    ),
    '{"title": "a", "body": "b"}': ("no conversation", "found the keys 'title', 'body'"),
    '"text"': ("no conversation", "found str 'text'"),
    json.dumps(user()): ("no conversation", "found a message by itself"),
    '{"messages": [': ("not JSON", "not a JSON object"),
}  # fmt: skip
GOOD = json.dumps({"messages": [user(), bot()]})


@pytest.mark.parametrize("line", MALFORMED)
def test_what_is_malformed_has_its_sentence_with_its_line_or_is_left_out_and_counted(
    line: str, tmp_path: Path
) -> None:
    reason, detail = MALFORMED[line]
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        prepare_chats([path], tmp_path / "out")
    sentence = raised.value.message
    assert sentence.startswith(f"{path}, line 3: ")
    assert detail in sentence
    assert sentence.endswith(".")
    assert not (tmp_path / "out").exists()
    data = prepare_chats([path], tmp_path / "out", on_error="skip", val_fraction=0)
    assert data.meta["reasons"] == {reason: 1}
    assert data.meta["skipped"][0]["name"] == f"{path}, line 3"
    assert said_in(data) == [[("user", "a"), ("ASSISTANT", "b")]] * 2


def test_files_of_something_else_are_left_out_of_folders_and_refused_where_named(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    others = {
        "README.md": b"# About\n\nText.\n",
        "config.json": b'{"a": 1}',
        "c.jsonl": b'{"t": 1}\n',
    }
    for name, content in others.items():
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match="no conversation"):
            prepare_chats([folder / name], tmp_path / "out")
    (folder / "a.jsonl").write_text(GOOD, encoding="utf-8")
    data = prepare_chats([folder], tmp_path / "out", val_fraction=0)
    assert {Path(s["name"]).name.split(",")[0] for s in data.meta["skipped"]} == {*others}
    assert len(said_in(data)) == 1
