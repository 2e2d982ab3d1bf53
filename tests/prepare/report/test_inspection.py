import random
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.dataset import SPLITS, DataFolder, Split
from common.tokenizer import (
    GPT2_PATTERN,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
    special_ids_after,
)
from prepare.report import inspection as inspection_module
from prepare.report.inspection import (
    MAX_LISTED,
    SHOWN_CHARACTERS,
    first_documents,
    inspect_data,
    tables,
)
from tests.prepare.making import write_data
from tests.processes import run_python

Rows = list[list[int]]

ABC = CharTokenizer(("a", "b", "c"))  # so the end-of-text id is 3, and there are 8 ids


def byte_pairs(*more: bytes) -> BytePairTokenizer:
    """Return a vocabulary of the bytes, then of ``more`` from 256 on, then the special tokens."""
    tokens = [bytes([byte]) for byte in range(256)] + list(more)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return BytePairTokenizer("pairs", GPT2_PATTERN, ranks, special_ids_after(len(tokens)))


def write(
    folder: Path, tokenizer: Tokenizer, train: Rows, val: Rows | None = None, **meta: Any
) -> DataFolder:
    """Write a data folder of documents, to whose ids the end-of-text id is added.

    Its one source has 2 bytes a token; ``meta`` goes into meta.json.
    """
    documents: dict[Split, Rows] = {
        split: [[*row, tokenizer.eot_id] for row in rows or []]
        for split, rows in zip(SPLITS, (train, val), strict=True)
    }
    counts: dict[Split, dict[str, int]] = {
        split: {"documents": len(found), "bytes": 2 * n_tokens, "tokens": n_tokens}
        for split, found in documents.items()
        for n_tokens in [sum(map(len, found))]
    }
    sources: dict[str, Any] = {"sources": [{"name": "texts.jsonl", "size_bytes": 1, **counts}]}
    return write_data(folder, documents, tokenizer, **sources | meta)


def source(name: str, n_tokens: int, n_bytes: int) -> dict[str, Any]:
    """Return a source as meta.json has it, all but a token of which is in train."""
    train = {"documents": 1, "bytes": n_bytes, "tokens": n_tokens - 1}
    return {"name": name, "train": train, "val": {"documents": 1, "bytes": 0, "tokens": 1}}


def random_rows(n_rows: int, seed: int) -> Rows:
    """Return documents of a, b and c, most of them short and a few long."""
    drawn = random.Random(seed)
    lengths = [int(4 ** drawn.uniform(0, 5)) for _ in range(n_rows)]
    return [drawn.choices([0, 1, 2], [9, 3, 1], k=length) for length in lengths]


@pytest.mark.parametrize("block_tokens", [1, 7, 1000, 1 << 20])
def test_every_id_is_counted_wherever_blocks_end(
    block_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection_module, "BLOCK_TOKENS", block_tokens)
    train, val = random_rows(20, seed=0), random_rows(9, seed=1)
    found = inspect_data(write(tmp_path, ABC, train, val))
    counted = Counter(i for row in train + val for i in [*row, ABC.eot_id])
    assert found.n_by_id.tolist() == [counted[i] for i in range(ABC.vocab_size)]


def test_lengths_fall_into_bins_between_powers_of_two(tmp_path: Path) -> None:
    """By hand: a document of n characters has n + 1 tokens."""
    lengths = [1, 2, 3, 4, 7, 8, 1023, 1024]
    found = inspect_data(write(tmp_path, ABC, [[0] * (n - 1) for n in lengths]))
    by_hand = {0: 1, 1: 2, 2: 2, 3: 1, 9: 1, 10: 1}
    assert found.lengths["train"].n_by_bin.tolist() == [by_hand.get(i, 0) for i in range(31)]
    assert (found.lengths["train"].median, found.lengths["train"].longest) == (5.5, 1024)


def test_bins_median_and_longest_are_those_of_the_documents(tmp_path: Path) -> None:
    rows: dict[Split, Rows] = {"train": random_rows(50, seed=2), "val": random_rows(20, seed=3)}
    found = inspect_data(write(tmp_path, ABC, rows["train"], rows["val"]))
    for split in SPLITS:
        lengths = [len(row) + 1 for row in rows[split]]
        bits = Counter(length.bit_length() - 1 for length in lengths)
        assert found.lengths[split].n_by_bin.tolist() == [bits[i] for i in range(31)]
        assert found.lengths[split].median == statistics.median(lengths)
        assert found.lengths[split].longest == max(lengths)


BY_HAND = """\
    documents           tokens  source
            3               15  texts.jsonl

   tokens in a document        train          val
                      1            0            1  ###############
                    2-3            0            0
                    4-7            2            0  #############################
                 median            7            1
                longest            7            1

      id           count    share  bytes  most frequent tokens
       0               9   60.00%      1  'a'
       3               3   20.00%      0  <|endoftext|>
       2               2   13.33%      1  'c'
       1               1    6.67%      1  'b'

      id           count    share  bytes  longest tokens that occur
       0               9   60.00%      1  'a'
       1               1    6.67%      1  'b'
       2               2   13.33%      1  'c'

4 of 8 ids occur."""


def test_the_tables_of_three_documents_are_these(tmp_path: Path) -> None:
    data = write(tmp_path, ABC, [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 2]], [[]])
    assert tables(inspect_data(data)) == BY_HAND


def test_one_document_and_an_empty_val_are_shown(tmp_path: Path) -> None:
    text = tables(inspect_data(write(tmp_path, ABC, [[0, 1]])))
    assert re.search(r"^ +2-3 +1 +0  #{29}$", text, re.MULTILINE)
    assert re.search(r"^ +median +3 +-$", text, re.MULTILINE)
    assert re.search(r"^ +longest +3 +-$", text, re.MULTILINE)


def test_a_data_set_without_a_document_is_shown(tmp_path: Path) -> None:
    text = tables(inspect_data(write(tmp_path, ABC, [], sources=[])))
    assert re.search(r"^ +median +- +-$", text, re.MULTILINE)
    assert text.endswith("0 of 8 ids occur.")


def test_a_single_document_among_thousands_has_a_bar(tmp_path: Path) -> None:
    found = inspect_data(write(tmp_path, ABC, [[0]] * 5000 + [[0] * 9]))
    assert re.search(r"^ +8-15 +1 +0  #$", tables(found), re.MULTILINE)


def test_tokens_are_shown_as_python_writes_them(tmp_path: Path) -> None:
    """Half a character as bytes; the text of a special token in quotes, as that is another id."""
    tokens = ["日本".encode(), "é".encode(), b"\xe6\x97", b" \n", b"<|user|>", b"-" * 99]
    tokenizer = byte_pairs(*tokens)
    user = tokenizer.special_tokens["<|user|>"]
    text = tables(inspect_data(write(tmp_path, tokenizer, [[*range(256, 262), 0xFF, user]])))
    frequent = text.split("most frequent tokens\n")[1].split("\n\n")[0]
    shown = {int(line.split()[0]): line.split("%", 1)[1].strip() for line in frequent.splitlines()}
    assert shown == {
        0xFF: r"1  b'\xff'",
        256: "6  '日本'",
        257: "2  'é'",
        258: r"2  b'\xe6\x97'",
        259: r"2  ' \n'",
        260: "8  '<|user|>'",
        261: "99  '" + "-" * 33 + "...",
        tokenizer.eot_id: "0  <|endoftext|>",
        user: "0  <|user|>",
    }


def test_the_ten_longest_and_most_frequent_of_60_000_ids_are_listed(tmp_path: Path) -> None:
    more = [b"%d" % i * (1 + i % 13) for i in range(256, 60_000 - 5)]
    tokenizer = byte_pairs(*more)
    assert tokenizer.vocab_size == 60_000
    ids = random.Random(4).choices(range(60_000 - 5), k=20_000) + [59_000] * 3 + [300] * 50
    found = inspect_data(write(tmp_path, tokenizer, [ids]))
    counted = Counter(ids)
    assert found.most_frequent() == sorted(counted, key=lambda i: (-counted[i], i))[:MAX_LISTED]
    by_length = sorted(counted, key=lambda i: (-len(tokenizer.token_bytes[i]), i))
    assert found.longest() == by_length[:MAX_LISTED]
    assert f"{len(counted) + 1:,} of 60,000 ids occur." in tables(found)


def test_bars_fill_80_columns_and_no_line_is_wider(tmp_path: Path) -> None:
    tokenizer = byte_pairs(*[b"\\" * n for n in range(50, 70)])
    sources = [source("/folder" * 30 + f"/{i}", 10**12 + i, 10**12) for i in range(25)]
    rows = [[256 + i % 20] * 2**i for i in range(18)]
    text = tables(inspect_data(write(tmp_path, tokenizer, rows, rows, sources=sources)))
    assert max(map(len, text.splitlines())) == 80
    assert "and 15 more" in text


def test_sources_stand_in_order_of_their_tokens(tmp_path: Path) -> None:
    sources = [source("few", 5, 10), source("most", 70, 10), source("some", 30, 10)]
    text = tables(inspect_data(write(tmp_path, ABC, [[0]], sources=sources)))
    assert re.findall(r"^ +2 +(\d+)  (\w+)$", text, re.MULTILINE) == [
        ("70", "most"),
        ("30", "some"),
        ("5", "few"),
    ]


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    """100 million ids are 200 MB on disk. VmHWM, as ru_maxrss begins at the parent's peak."""
    row = np.zeros(1_000_000, np.uint16)
    documents: dict[Split, list[Any]] = {"train": [row] * 100, "val": []}
    write_data(tmp_path / "data", documents, ABC, sources=[])
    code = (
        "from pathlib import Path\n"
        "from common.dataset import open_data\n"
        "from prepare.report.inspection import first_documents, inspect_data\n"
        "status = Path('/proc/self/status')\n"
        "peak_kib = lambda: int(status.read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak_kib()\n"
        "found = inspect_data(open_data(Path('data')))\n"
        "shown = list(first_documents(found.data, 3))\n"
        "print(found.n_by_id[0], len(shown), peak_kib() - before)\n"
    )
    process = run_python(["-c", code], tmp_path)
    assert process.returncode == 0, process.stderr
    n_counted, n_shown, grown_kib = map(int, process.stdout.split())
    assert (n_counted, n_shown) == (10**8, 3)
    assert grown_kib < 40 << 10


def documents_shown(data: DataFolder, n_documents: int) -> list[tuple[str, str]]:
    """Return the heading and the rest of each document that is shown."""
    shown = [text.split("\n", 1) for text in first_documents(data, n_documents)]
    return [(heading, rest) for heading, rest in shown]


def test_short_documents_are_shown_whole_and_val_after_the_last_of_train(tmp_path: Path) -> None:
    data = write(tmp_path, ABC, [[0, 1], []], [[2], [2, 2]])
    assert documents_shown(data, 3) == [
        ("--- train document 0: 3 tokens ---", "ab"),
        ("--- train document 1: 1 tokens ---", ""),
        ("--- val document 0: 2 tokens ---", "c"),
    ]
    assert len(documents_shown(data, 1)) == 1
    assert len(documents_shown(data, 99)) == 4
    assert documents_shown(data, 0) == []


@pytest.mark.parametrize(
    ("n_characters", "n_more"), [(1, 0), (1999, 0), (2000, 0), (2001, 1), (100_000, 98_000)]
)
def test_after_2000_characters_only_the_number_of_tokens_left_is_said(
    n_characters: int, n_more: int, tmp_path: Path
) -> None:
    [(_, shown)] = documents_shown(write(tmp_path, ABC, [[1] * n_characters]), 1)
    note = f"\n[... {n_more:,} more tokens]" if n_more else ""
    assert shown == "b" * (n_characters - n_more) + note


@pytest.mark.parametrize("character", ["é", "日", "🙂"])
def test_a_long_text_of_single_bytes_is_cut_between_characters(
    character: str, tmp_path: Path
) -> None:
    """What is shown and what is said to be left are the whole document."""
    for raw in (character * 9000).encode(), ("a" + character * 9000).encode():
        [(_, shown)] = documents_shown(write(tmp_path, byte_pairs(), [list(raw)]), 1)
        text, note = shown.split("\n")
        assert len(text) == SHOWN_CHARACTERS
        assert raw.startswith(text.encode())
        assert note == f"[... {len(raw) - len(text.encode()):,} more tokens]"


def test_half_a_character_at_the_end_of_a_document_is_marked(tmp_path: Path) -> None:
    data = write(tmp_path, byte_pairs(), [list("é".encode() + b"\xe6\x97")])
    assert documents_shown(data, 1)[0][1] == "é\ufffd"


def test_of_a_long_document_only_the_beginning_is_read(tmp_path: Path) -> None:
    data = write(tmp_path, ABC, [[1] * 8000 + [99]])  # there is no id 99
    assert len(documents_shown(data, 1)) == 1
