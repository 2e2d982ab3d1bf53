"""Where a text stands in what a run was trained on: its spans, word for word, and the documents.

    ids of an answer -> the longest runs of ids that train.bin holds -> passages around them

A span has MIN_IDS or more, and is part of no longer one. It holds no special id, so it reaches
across no document's end and across no turn of a conversation.

Source: Liu et al. 2025, OLMoTrace (arXiv:2504.07096).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, zip_longest
from pathlib import Path

import numpy as np

from common.dataset import DataFolder, open_data
from common.errors import DataError, UserError
from common.run_dir import CONFIG_NAME, read_json
from common.suffix_array import SuffixArray

MIN_IDS = 8  # of a span
MAX_PASSAGES = 3  # of a span, each of another document
MAX_PLACES = 1_000  # looked at for them: a phrase may stand in one document a million times
CONTEXT = 100  # characters before and behind a passage; also ids that are decoded for them
FIRST_IDS = 64  # looked for at once, where the longest is sought
MAX_RUNS = 100  # that began from one another: a circle of them would have no end


@dataclass(frozen=True)
class Passage:
    """A place in the training text."""

    name: str  # of the file it was read from, or archive and member; of several there, which
    line: int | None  # in JSON lines
    before: str
    text: str
    after: str


@dataclass(frozen=True)
class Span:
    """Ids of a text, ids[first:last], that stand in the training text as they are."""

    first: int
    last: int
    n_found: int  # how often
    passages: list[Passage]


class TracedData:
    """A data folder with its index: the documents that hold a span."""

    def __init__(self, data: DataFolder) -> None:
        """Open the index; raise DataError where there is none of these ids."""
        self.suffixes = SuffixArray(data)
        self._data = data
        data.document_name("train", 0)  # opens them: another data set may take this one's place
        self._token_bytes = list(data.tokenizer().token_bytes)
        self.special_ids = frozenset(data.meta["tokenizer"]["special_tokens"].values())
        for idx in self.special_ids:
            self._token_bytes[idx] = b"\n"  # between two turns

    def passages(self, pattern: bytes) -> Iterator[Passage]:
        """Yield a passage of each document in which ``pattern`` stands."""
        seen = set()
        n_ids = len(pattern) // self.suffixes.dtype.itemsize
        for place in islice(self.suffixes.places(pattern), MAX_PLACES):
            document, begin, end = self.suffixes.document_at(place)
            if document not in seen:
                seen.add(document)
                yield self._passage(document, begin, place, place + n_ids, end)

    def _passage(self, document: int, begin: int, first: int, last: int, end: int) -> Passage:
        """Return the ids from ``first`` to ``last`` in the document from ``begin`` to ``end``."""
        before = self._decode(max(begin, first - CONTEXT), first)
        text = self._decode(first, last)
        after = self._decode(last, min(end - 1, last + CONTEXT))
        whole = before + text + after
        # a character of several ids belongs to where it begins
        cuts = [_character_at(whole, n) for n in (0, len(before), len(before) + len(text))]
        before, text, after = (
            whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)
        )
        name, line = self._data.document_name("train", document)
        if line is not None and not name.endswith((".jsonl", ".ndjson")):
            name, line = f"{name}, document {line:,}", None
        return Passage(
            name,
            line,
            before.decode("utf-8", "replace")[-CONTEXT:],
            text.decode("utf-8", "replace"),
            after.decode("utf-8", "ignore")[:CONTEXT],
        )

    def _decode(self, first: int, last: int) -> bytes:
        return b"".join([self._token_bytes[idx] for idx in self.suffixes.ids(first, last)])


def _character_at(text: bytes, at: int) -> int:
    """Return where the first character begins that does not begin before ``at``."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return at


class Tracer:
    """Finds the spans of a text in the training text of a run, and of those it began from."""

    def __init__(self, traced: Sequence[TracedData]) -> None:
        """Search in data folders of one vocabulary, at least one."""
        self._traced = traced
        self._parts = [part for data in traced for part in data.suffixes.parts]
        self._dtype = traced[0].suffixes.dtype
        self._special_ids = sorted(traced[0].special_ids)

    def trace(self, ids: Sequence[int]) -> list[Span]:
        """Return the spans of a text's ids with their passages, the longest first."""
        return self.with_passages(ids, self.spans(ids))

    def with_passages(self, ids: Sequence[int], places: Iterable[tuple[int, int]]) -> list[Span]:
        """Return what ``trace`` does of those spans that ``spans`` found."""
        found = sorted(places, key=lambda span: span[0] - span[1])
        return [self._with_passages(ids, first, last) for first, last in found]

    def spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of the same spans in the order of the text."""
        text = np.array(ids, self._dtype)
        borders = np.flatnonzero(np.isin(text, self._special_ids)).tolist()
        for border, end in pairwise([-1, *borders, len(text)]):
            for first, last in self._maximal(text[border + 1 : end].tobytes()):
                yield border + 1 + first, border + 1 + last

    def _maximal(self, text: bytes) -> Iterator[tuple[int, int]]:
        """Yield the spans of ``text``, which no special id interrupts.

        A window of MIN_IDS moves on until it is found. It is the end of what began at the window
        or, behind a span, in that one: where, halving tells, as parts of what is found are found.
        Then the end is sought from there.
        """
        width = self._dtype.itemsize

        def occurs(first: int, last: int) -> bool:
            pattern = text[first * width : last * width]
            return any(part.occurs(pattern) for part in self._parts)

        lowest, last = 0, MIN_IDS
        while last * width <= len(text):
            start = last - MIN_IDS
            if occurs(start, last):
                starts, end = range(lowest, start), last
                first = lowest + bisect_left(starts, True, key=lambda i: occurs(i, end))
                last = first + self._longest(text, first * width)
                yield first, last
                lowest, last = first + 1, last + 1
            else:
                lowest, last = start + 1, last + 1

    def _longest(self, text: bytes, at: int) -> int:
        """Return how many ids from the byte ``at`` on stand somewhere in a row."""
        n_ids = FIRST_IDS
        while True:
            pattern = text[at : at + n_ids * self._dtype.itemsize]
            found = max(part.longest(pattern) for part in self._parts)
            if found < n_ids or at + len(pattern) == len(text):
                return found
            n_ids *= 4

    def _with_passages(self, ids: Sequence[int], first: int, last: int) -> Span:
        pattern = np.array(ids[first:last], self._dtype).tobytes()
        n_found = sum(len(part.occurrences(pattern)) for part in self._parts)
        # in turns, the oldest text first: conversations were made from the documents of before
        in_turns = zip_longest(*(data.passages(pattern) for data in reversed(self._traced)))
        found = filter(None, chain.from_iterable(in_turns))
        return Span(first, last, n_found, list(islice(found, MAX_PASSAGES)))


def open_tracer(checkpoint: Path, notices: list[str] | None = None) -> Tracer | None:
    """Open the training text of a checkpoint's run and, through init_from, of those before it.

    None where no data folder of theirs has an index. Why one is left out is added to ``notices``:
    it is gone, its ids are others than those that were learned, it has no index.
    """
    notices = [] if notices is None else notices
    traced: list[TracedData] = []
    hashes: set[str] = set()  # several runs may have learned from the same
    folder: Path | None = checkpoint
    for _ in range(MAX_RUNS):
        if folder is None:
            break
        here, folder = folder, None
        try:
            settings = read_json(here.parent / CONFIG_NAME)
            before, learned = settings.get("init_from"), settings["data"]
            folder = Path(before) if before else None
            if learned["sha256"] not in hashes:
                hashes.add(learned["sha256"])
                traced.append(TracedData(_open_unchanged(**learned)))
        except UserError as error:
            notices.append(error.message)
        except KeyError:
            notices.append(f"{here.parent}: does not say what it learned from.")
    return Tracer(traced) if traced else None


def _open_unchanged(path: str, sha256: str) -> DataFolder:
    data = open_data(Path(path))
    if data.sha256 != sha256:
        raise DataError(
            f"{path}: SHA-256 {data.sha256[:12]}, but {sha256[:12]} was learned: the data changed "
            "since. Prepare it as it was, to see where an answer stands in it."
        )
    return data
