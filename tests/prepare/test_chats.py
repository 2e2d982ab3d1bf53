"""Conversations to data/: from ids and masks alone each is rebuilt, and what of it is learned."""

import gzip
import json
import lzma
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.chat_format import CHAT_TEMPLATE, TEMPLATE_NAME
from common.dataset import SPLITS, open_data, verify_data
from common.errors import DataError
from common.tokenizer import SPECIAL_TOKENS
from prepare.conversation import pack, unpack
from prepare.report.conversations import documents, text_of, verify_masks
from tests.prepare.chats import (
    BPE,
    CHAR,
    Turn,
    by_hand,
    documents_in,
    lines_of,
    messages,
    prepare_chats,
    said_in,
    with_end,
)
from tests.prepare.making import snapshot, tar_of
from tests.prepare.output.test_restart import SMALL
from tests.processes import run_python, start_python

SIDES = {BPE: st.text(st.characters(codec="utf-8")), CHAR: st.text("ab \n.\u00fcZ")}
FORGED = st.sampled_from([*SPECIAL_TOKENS, "<|end|><|assistant|>yes<|end|>", "<|endoftext|>\n"])


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[Turn]]]:
    said = st.lists(text | FORGED, min_size=1, max_size=3).map("".join)
    said = said.filter(lambda text: bool(set(text.strip()) & set("ab.\u00fc")) or not text.strip())
    said = said.map(lambda text: text if text.strip() else "a")
    exchange = st.tuples(said, said)
    whole = st.tuples(st.none() | said, st.lists(exchange, min_size=1, max_size=3))

    def turns(parts: tuple[str | None, list[tuple[str, str]]]) -> list[Turn]:
        system, exchanges = parts
        found = [("system", system)] if system is not None else []
        return found + [turn for q, a in exchanges for turn in (("user", q), ("assistant", a))]

    return st.lists(whole.map(turns), min_size=1, max_size=8)


@pytest.mark.parametrize("tokenizer", SIDES, ids=["bpe", "char"])
@settings(max_examples=8, deadline=None, suppress_health_check=[*HealthCheck])
@given(drawn=st.data())
def test_ids_and_mask_are_those_made_by_hand_whatever_is_said(
    tokenizer: str, drawn: st.DataObject, tmp_path: Path
) -> None:
    said = drawn.draw(conversations(SIDES[tokenizer]))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "a.jsonl").write_bytes(lines_of(map(messages, said)))
    data = prepare_chats(
        [tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=tokenizer, val_fraction=0
    )
    own = data.tokenizer()
    lacking = set("".join(text for turns in said for _, text in turns)) & set(
        own.missing("".join(sorted({c for turns in said for _, text in turns for c in text})))
    )
    kept = [
        [(role, "".join(c for c in text.strip() if c not in lacking)) for role, text in turns]
        for turns in said
    ]
    assert documents_in(data) == [with_end(own, by_hand(own, turns)) for turns in kept]
    assert set(data.meta["chats"]["missing"]) == lacking
    verify_data(data)
    verify_masks(data)
    rebuilt = [[(m.role, text_of(m, own)) for m in each] for each in documents(data, "train")]
    assert rebuilt == [[(role, text.strip()) for role, text in turns] for turns in kept]


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1
    ),
    rejected=st.none() | st.text(),
)
def test_a_packed_conversation_is_unpacked_as_it_was(turns: Any, rejected: str | None) -> None:
    said = [(role, text.encode("utf-8", "replace")) for role, text in turns]
    bad = None if rejected is None else rejected.encode("utf-8", "replace")
    assert unpack(pack(said, bad)) == (said, bad)


def test_a_pair_is_one_document_with_the_rejected_answer_behind_the_chosen_one(
    tmp_path: Path,
) -> None:
    asked = [("system", "be"), ("user", "a"), ("assistant", "b"), ("user", "d")]
    prompt = messages(asked)["messages"]
    answers = {key: messages([("assistant", key)])["messages"] for key in ("chosen", "rejected")}
    whole = {key: prompt + answer for key, answer in answers.items()}
    records = [
        {"prompt": prompt} | answers,  # TRL's explicit prompt
        whole,  # its implicit prompt
        {"prompt": "d", "chosen": "chosen", "rejected": "rejected"},
        {"prompt": prompt} | whole,
    ]
    (tmp_path / "a.jsonl").write_bytes(lines_of(records))
    data = prepare_chats([tmp_path / "a.jsonl"], tmp_path / "out", val_fraction=0)
    own = data.tokenizer()

    def pair(turns: list[Turn]) -> tuple[list[int], list[int]]:
        n = len(turns)
        good = by_hand(own, [*turns, ("assistant", "chosen")], learned=n)
        bad = by_hand(own, [*turns, ("assistant", "rejected")], learned=n, bits=2)
        return with_end(own, (good[0] + bad[0], good[1] + bad[1]))

    assert documents_in(data) == [pair(asked), pair(asked), pair(asked[-1:]), pair(asked)]
    assert (data.meta["chats"]["pairs"], data.meta["chats"]["shapes"]) == (True, {"pairs": 4})
    verify_masks(data)
    plain = lines_of([messages([("user", "a"), ("assistant", "b")]), records[2]])
    (tmp_path / "a.jsonl").write_bytes(plain)
    with pytest.raises(DataError, match="1 preference pairs among 2 conversations"):
        prepare_chats([tmp_path / "a.jsonl"], tmp_path / "out", val_fraction=0)
    assert open_data(tmp_path / "out").meta == data.meta


# Characters are ids: of a message its length and 2; the context is 30.
CUT: dict[str, tuple[list[Turn], list[list[Turn]], dict[str, int]]] = {
    "fits to the last id": (
        [("system", "s" * 4), ("user", "a" * 10), ("assistant", "b" * 10)],
        [[("system", "s" * 4), ("user", "a" * 10), ("ASSISTANT", "b" * 10)]],
        {"n_answers": 1},
    ),
    "between turns, the system text again": (
        [
            *[("system", "s" * 4), ("user", "a" * 4), ("assistant", "b" * 4)],
            *[("user", "d" * 4), ("assistant", "e" * 4)],
            *[("user", "f" * 2), ("assistant", "g" * 2)],
        ],
        [
            [
                *[("system", "s" * 4), ("user", "a" * 4), ("ASSISTANT", "b" * 4)],
                *[("user", "d" * 4), ("ASSISTANT", "e" * 4)],  # 30 ids
            ],
            [("system", "s" * 4), ("user", "f" * 2), ("ASSISTANT", "g" * 2)],
        ],
        {"n_answers": 3, "n_cut": 1},
    ),
    "in an answer": (
        [("user", "a" * 6), ("assistant", "b" * 21)],
        [[("user", "a" * 6), ("cut", "b" * 20)]],
        {"n_answers": 1, "n_answers_cut": 1},
    ),
    "a question too long": (
        [
            *[("user", "a"), ("assistant", "b"), ("user", "d" * 26), ("assistant", "e")],
            *[("user", "f"), ("assistant", "g")],
        ],
        [[("user", "a"), ("ASSISTANT", "b")], [("user", "f"), ("ASSISTANT", "g")]],
        {"n_answers": 3, "n_no_room": 1, "n_cut": 1},
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_what_is_longer_than_the_context_is_cut_at_turns(case: str, tmp_path: Path) -> None:
    turns, expected, counts = CUT[case]
    (tmp_path / "a.jsonl").write_bytes(lines_of([messages(turns)] * 2))
    data = prepare_chats(
        [tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=CHAR, context=30, val_fraction=0,
        dedup="exact",
    )  # fmt: skip
    own = data.tokenizer()
    rows = []
    for part in expected:
        turns = [(role.replace("cut", "assistant").lower(), text) for role, text in part]
        ids, mask = by_hand(own, turns)
        if part[-1][0] == "cut":
            mask[-1] = 0  # where it was cut off is no end to learn
        rows.append(with_end(own, (ids, mask)))
    assert documents_in(data) == rows
    assert max(len(ids) - 1 for ids, _ in rows) <= 30
    chats = data.meta["chats"]
    assert {key: chats[key] // 2 for key in counts} == counts  # of both, before one was dropped
    assert (data.meta["n_documents"], data.meta["n_duplicates"]) == (1, 1)
    verify_masks(data)


def test_a_long_pair_loses_the_beginning_of_its_prompt_then_the_end_of_its_answers(
    tmp_path: Path,
) -> None:
    asked: list[Turn] = [("user", "a" * 9), ("assistant", "b"), ("user", "d")]
    records = [
        {"prompt": messages(asked)["messages"], "chosen": "e" * 13, "rejected": "f"},
        {"prompt": "a" * 6, "chosen": "e" * 21, "rejected": "f"},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines_of(records))
    data = prepare_chats(
        [tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=CHAR, context=30, val_fraction=0
    )
    rows = []
    for question, chosen in [("d", "e" * 13), ("a" * 6, "e" * 20)]:
        good, bad = (
            by_hand(data.tokenizer(), [("user", question), ("assistant", text)], bits=bits)
            for text, bits in [(chosen, 0), ("f", 2)]
        )
        good[1][-1] = int(len(chosen) < 20)
        rows.append(with_end(data.tokenizer(), (good[0] + bad[0], good[1] + bad[1])))
    assert documents_in(data) == rows
    assert data.meta["chats"]["n_cut"] == data.meta["chats"]["n_answers_cut"] == 1


def many(n: int) -> list[list[Turn]]:
    return [[("user", f"what is {i}?"), ("assistant", f"it is {i * i}")] for i in range(n)]


@pytest.mark.parametrize("n", [3, 20, 40, 1_200])
def test_whole_conversations_are_set_aside_by_hash_of_few_too(n: int, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(map(messages, many(n))))
    sides = []
    for order in (slice(None), slice(None, None, -1)):
        (tmp_path / "a.jsonl").write_bytes(lines_of(map(messages, many(n)[order])))
        data = prepare_chats([tmp_path / "a.jsonl"], tmp_path / "out")
        own = data.tokenizer()
        splits = [
            {tuple(text_of(m, own) for m in each) for each in documents(data, s)} for s in SPLITS
        ]
        sides.append(splits)
        assert len(splits[0]) + len(splits[1]) == n
    assert sides[0] == sides[1]
    assert (len(sides[0][1]) > 0) or n < 20
    assert abs(len(sides[0][1]) - n / 10) < 4 * (n * 0.09) ** 0.5
    said = [line for line in data.meta["warnings"] if line.startswith("Val ")]
    assert len(said) == (n < 1_000)


def test_archives_folders_and_workers_give_the_same_conversations(tmp_path: Path) -> None:
    said = many(90)
    parts = [lines_of(map(messages, said[i : i + 30])) for i in range(0, 90, 30)]
    array = json.dumps([messages(turns) for turns in said[60:]], indent=1).encode()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(parts[0]))
    (folder / "b.tar.xz").write_bytes(lzma.compress(tar_of({"inner.jsonl": parts[1]})))
    (folder / "c.json").write_bytes(array)
    (tmp_path / "all.jsonl").write_bytes(b"".join(parts))
    whole = prepare_chats([tmp_path / "all.jsonl"], tmp_path / "1")
    packed = prepare_chats([folder], tmp_path / "2")
    assert documents_in(packed) == documents_in(whole)
    assert (whole.path / TEMPLATE_NAME).read_text("utf-8") == CHAT_TEMPLATE


@pytest.mark.slow
def test_killed_and_run_again_by_one_or_two_workers_it_writes_the_same(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL, encoding="utf-8")
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(20):
        said = [[(r, f"{t} of {i}") for r, t in turns] for turns in many(60)]
        (folder / f"{i}.jsonl").write_bytes(lines_of(map(messages, said)))
    command = ["small.py", "chats", "many", "--tokenizer", BPE, "--context", "24"]
    whole = run_python([*command, "--out", "whole", "--workers", "1"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    n_recovered = 0
    for workers in ("1", "2"):
        out = tmp_path / workers
        for n_shards in (1, 5, 9):
            os.environ["QUERN_TEST_PACE"] = "0.05"
            process = start_python([*command, "--out", workers, "--workers", workers], tmp_path)
            del os.environ["QUERN_TEST_PACE"]
            deadline = time.monotonic() + 60
            while len([*out.glob(".unfinished/*-val.mask")]) <= n_shards:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(0.2)  # workers end with what began them
        ended = run_python([*command, "--out", workers, "--workers", workers], tmp_path)
        assert ended.returncode == 0, ended.stderr
        n_recovered += "tasks were finished before" in ended.stderr
        assert snapshot(out) == snapshot(tmp_path / "whole")
    assert n_recovered == 2


def test_gsm8k_by_its_fields_is_rebuilt(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/gsm8k_train.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:1_200]]
    (tmp_path / "a.jsonl").write_bytes(lines_of(records))
    data = prepare_chats(
        [tmp_path / "a.jsonl"], tmp_path / "out", fields="question,answer", context=8_192
    )
    expected = Counter(
        (("user", r["question"].strip()), ("ASSISTANT", r["answer"].strip())) for r in records
    )
    assert Counter(map(tuple, said_in(data))) == expected
    learned = sum(data.meta["chats"]["learned"].values())
    assert learned == sum(sum(mask) for _, mask in documents_in(data))


def test_each_part_is_named_by_the_line_it_was_in_whatever_was_left_out(tmp_path: Path) -> None:
    lines = [
        messages([("user", "a"), ("assistant", "b")]),
        None,  # blank
        {"title": "x"},
        messages([("user", "d" * 40), ("assistant", "e")]),  # no room
        messages([("user", "a" * 9), ("assistant", "b" * 9)] * 3),  # in three parts
        messages([("user", "f"), ("assistant", "g")]),
    ]
    text = "".join((json.dumps(line) if line else "") + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    data = prepare_chats(
        [tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=CHAR, context=30, val_fraction=0,
        on_error="skip",
    )  # fmt: skip
    name = str(tmp_path / "a.jsonl")
    found = [data.document_name("train", i) for i in range(len(said_in(data)))]
    assert found == [(name, 1), (name, 5), (name, 5), (name, 5), (name, 6)]
    assert data.meta["n_documents"] == 3
