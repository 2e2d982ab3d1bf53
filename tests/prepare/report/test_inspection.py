import random
import re
import statistics
import struct
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.dataset import SPLITS, DataFolder, Split
from common.errors import DataError
from common.tokenizer import (
    GPT2_PATTERN,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
    special_ids_after,
)
from prepare.report import inspection as inspection_module
from prepare.report.inspection import (
    LOOKS,
    MAX_LISTED,
    SHOWN_CHARACTERS,
    Inspection,
    draw,
    first_documents,
    inspect_data,
    picture,
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
    """100 million ids are 200 MB on disk."""
    row = np.zeros(1_000_000, np.uint16)
    documents: dict[Split, list[Any]] = {"train": [row] * 100, "val": []}
    write_data(tmp_path / "data", documents, ABC, sources=[])
    code = (
        "from pathlib import Path\n"
        "from resource import RUSAGE_SELF, getrusage\n"
        "from common.dataset import open_data\n"
        "from prepare.report.inspection import first_documents, inspect_data\n"
        "before = getrusage(RUSAGE_SELF).ru_maxrss\n"
        "found = inspect_data(open_data(Path('data')))\n"
        "shown = list(first_documents(found.data, 3))\n"
        "print(found.n_by_id[0], len(shown), getrusage(RUSAGE_SELF).ru_maxrss - before)\n"
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


@pytest.fixture
def found(tmp_path: Path) -> Inspection:
    """An inspection with two splits and twelve sources."""
    sources = [source(f"part-{i:02}.txt", 1000 * (i + 1), 3000) for i in range(12)]
    train, val = random_rows(60, seed=5), random_rows(20, seed=6)
    return inspect_data(write(tmp_path / "data", ABC, train, val, sources=sources))


def panels(found: Inspection) -> list[Axes]:
    """Return the panels: lengths, ranks, tokens by source, bytes per token by source."""
    return picture(found).axes


def test_bars_of_lengths_are_shares_of_each_split(found: Inspection) -> None:
    for split, bars in zip(SPLITS, panels(found)[0].containers, strict=True):
        n_by_bin = found.lengths[split].n_by_bin
        heights = [bar.get_height() for bar in bars.patches]  # type: ignore[attr-defined]
        assert sum(heights) == pytest.approx(100)
        occupied = [100 * n / n_by_bin.sum() for n in n_by_bin.tolist() if n]
        assert [height for height in heights if height] == pytest.approx(occupied)


def test_the_curve_of_ranks_is_that_of_the_counts(found: Inspection) -> None:
    [line] = panels(found)[1].lines
    counts = sorted((n for n in found.n_by_id.tolist() if n), reverse=True)
    assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3, 4]
    assert np.asarray(line.get_ydata()).tolist() == counts


def test_a_curve_of_60_000_ranks_keeps_its_ends_and_few_points(tmp_path: Path) -> None:
    tokenizer = byte_pairs(*[b"%d" % i * 3 for i in range(60_000)])
    ids = [*range(50_000), *[7] * 10]
    [line] = panels(inspect_data(write(tmp_path, tokenizer, [ids])))[1].lines
    ranks, counts = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert len(ranks) <= 500
    assert (ranks[0], counts[0]) == (1, 11)
    assert (ranks[-1], counts[-1]) == (50_001, 1)  # the end-of-text id is one more


def test_the_ten_largest_sources_are_drawn_from_the_top(found: Inspection) -> None:
    tokens, ratios = panels(found)[2:]
    names = [label.get_text() for label in tokens.get_yticklabels()]
    assert names == [f"part-{i:02}.txt" for i in range(11, 1, -1)]
    drawn = [[bar.get_width() for bar in axes.patches] for axes in (tokens, ratios)]  # type: ignore[attr-defined]
    assert drawn[0] == [1000 * (i + 1) for i in range(11, 1, -1)]
    assert drawn[1] == pytest.approx([3 / (i + 1) for i in range(11, 1, -1)])
    assert "12,000" in [text.get_text() for text in tokens.texts]
    assert tokens.get_title() == "tokens by source, the largest 10 of 12"


def texts_in(figure: Figure) -> list[Text]:
    """Return the texts that are drawn in a picture: of ticks only those between an axis's ends."""
    texts = list(figure.texts)  # the title above all panels
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in ticks]
        legend = axes.get_legend()
        texts += legend.get_texts() if legend else []
    return [text for text in texts if text.get_visible() and text.get_text()]


def long_documents(folder: Path) -> DataFolder:
    """Write lengths, counts and names as wide as they come, in a vocabulary of 60,000 ids."""
    tokenizer = byte_pairs(*[b"%d" % i * 3 for i in range(60_000 - 256 - 5)])
    sources = [source("W" * 99 + str(i), 9 * 10**9 - i, 10**10) for i in range(12)]
    ids = [i for i in range(1000) for _ in range(1000)]
    return write(folder, tokenizer, [[], ids[:300], ids, ids * 3], [ids[:20]], sources=sources)


PICTURES: dict[str, Callable[[Path], DataFolder]] = {
    "two splits": lambda folder: write(folder, ABC, random_rows(60, 5), random_rows(20, 6)),
    "one document and no val": lambda folder: write(folder, ABC, [[0, 1]]),
    "one token": lambda folder: write(folder, ABC, [[]]),
    "nothing": lambda folder: write(folder, ABC, [], sources=[]),
    "wide numbers": long_documents,
    "names that are no plain text": lambda folder: write(
        folder,
        ABC,
        [[0]],
        sources=[
            source(name, 9, 9) for name in ("$^{$a$b$", "日本語" * 20, "a\n\x1b[31m\u202e", "über")
        ],
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_of_the_picture_touches_another_or_leaves_it(name: str, tmp_path: Path) -> None:
    with style.context(["default", LOOKS]):
        figure = picture(inspect_data(PICTURES[name](tmp_path / "data")))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        texts = texts_in(figure)
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) >= 12
    touching = [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]
    assert touching == []
    outside = [
        text
        for text, box in boxes
        if not (figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max))
    ]
    assert outside == []
    lengths, _, *sources = figure.axes
    for axes in sources:
        right = axes.get_window_extent().x1
        assert all(label.get_window_extent().x1 <= right for label in axes.texts)
    legend = lengths.get_legend()
    assert legend is not None
    for bar in lengths.patches:
        assert not legend.get_window_extent().overlaps(bar.get_window_extent())


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_is_drawn(name: str, tmp_path: Path) -> None:
    found = inspect_data(PICTURES[name](tmp_path / "data"))
    for suffix, beginning in (
        (".png", b"\x89PNG\r\n\x1a\n"),
        (".svg", b"<?xml"),
        (".PDF", b"%PDF-"),
    ):
        draw(found, tmp_path / f"picture{suffix}")
        raw = (tmp_path / f"picture{suffix}").read_bytes()
        assert raw.startswith(beginning)
        assert len(raw) < 1 << 20
    png = (tmp_path / "picture.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (1440, 960)  # 12 by 8 inches of 120 dots


def test_a_matplotlibrc_of_ones_own_changes_nothing(found: Inspection, tmp_path: Path) -> None:
    draw(found, tmp_path / "1.png")
    with rc_context({"font.size": 30, "axes.facecolor": "black", "text.usetex": True}):
        draw(found, tmp_path / "2.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


@pytest.mark.parametrize("name", ["picture.gif", "picture", "picture.png.txt", ".png"])
def test_a_suffix_of_no_picture_is_a_sentence(name: str, found: Inspection, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/{name}: .* in \.png, \.svg or \.pdf\.$"):
        draw(found, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_is_not_there_is_a_sentence(found: Inspection, tmp_path: Path) -> None:
    path = tmp_path / "no" / "picture.png"
    with pytest.raises(DataError, match=f"^{path}: cannot be written .No such file"):
        draw(found, path)


def test_matplotlib_is_not_loaded_before_something_is_drawn(tmp_path: Path) -> None:
    code = "import sys, prepare.report.inspection; print('matplotlib' in sys.modules)"
    assert run_python(["-c", code], tmp_path).stdout == "False\n"
