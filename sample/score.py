"""How surprised a network is by a text: loss, perplexity, bits per byte, and each token's share.

    file -> text in chunks -> ids -> windows that overlap -> one logprob a token

A window is a whole context and moves on by ``stride`` tokens; of each only the tokens that the one
before it did not reach are counted. So every token but those of the first window is predicted from
at least block_size - stride tokens. With a stride of block_size windows stand end to end, as in
training's evaluation. Memory does not grow with the text.
"""

import codecs
import json
import math
import re
import sys
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from common.errors import ConfigError, DataError
from common.inference.backend import Backend
from common.inference.decoder import Token
from common.inference.scoring import score_tokens
from common.tokenizer import Tokenizer
from common.tracing import Span
from sample.loaded_model import LoadedModel
from sample.novelty import require_tracer, trace_chunks
from sample.text.detokenizer import token_json
from sample.text.prompt import missing_notice
from sample.text.terminal_text import escape_controls, notify, write_stdout

READ_BYTES = 1 << 16
# Chunks of text end before a blank behind a letter or digit: there every published way of cutting
# text into words begins a new one, so the ids are those of the whole text.
CHUNK_CHARACTERS = 1 << 18
WORD_END = re.compile(r"\w(?= )")
HEADINGS = f"{'':<30}{'tokens':>12}{'bytes':>14}{'loss':>9}{'perplexity':>14}{'bits/byte':>11}\n"
COLUMNS = "bits\tlogprob\tid\ttext\n"
# of the terminal's 256, behind the text: none below 2 bits, yellow below 5 ... red from 15 on
COLOURS, BITS = (0, 229, 221, 214, 208, 196), (2, 5, 8, 11, 15)


@dataclass
class Score:
    """The sum over a text."""

    nats: float = 0.0
    n_tokens: int = 0
    n_bytes: int = 0
    n_traced: int = 0  # tokens in spans of the training text

    def add(self, tokens: Iterable[Token], tokenizer: Tokenizer) -> None:
        """Add more of the text; end-of-text stands for no byte."""
        for token in tokens:
            self.nats -= token.logprob
            self.n_tokens += 1
            self.n_bytes += len(tokenizer.token_bytes[token.idx])

    def count_traced(self, n_tokens: int) -> None:
        """Count so many of the tokens as standing in the training text."""
        self.n_traced += n_tokens

    @property
    def loss(self) -> float:
        """Mean loss, nats a token."""
        return self.nats / max(1, self.n_tokens)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where it has no float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bpb(self) -> float:
        """Bits a byte of text, which compares between vocabularies."""
        return self.nats / math.log(2) / max(1, self.n_bytes)

    @property
    def novelty(self) -> float:
        """Share of the tokens that stand in no span of the training text."""
        return 1 - self.n_traced / max(1, self.n_tokens)


def write_scores(
    model: LoadedModel,
    names: Sequence[str],
    stride: int | None,
    *,
    per_token: bool,
    as_json: bool,
    novelty: bool = False,
) -> None:
    """Write the scores of files, each one document ("-" is standard input), and of all together.

    Raise ConfigError where the stride exceeds the context, DataError where a file is not UTF-8 or,
    for its ``novelty``, the training text has no index.
    """
    tracer = require_tracer(model.info.folder) if novelty else None
    block_size, tokenizer = model.info.config.block_size, model.tokenizer
    stride = stride or max(1, block_size // 2)
    if stride > block_size:
        raise ConfigError(f"--stride is {stride:,}, but the context holds {block_size:,} tokens.")
    sys.stderr.write(
        f"stride {stride:,}: behind the first {block_size:,} tokens each is predicted from "
        f"{block_size - stride:,} or more before it\n"
    )
    report = Report(tokenizer, per_token=per_token, as_json=as_json, novelty=novelty)
    total = Score()
    for name in names:
        score, missing = Score(), dict[str, None]()
        # open(0) is standard input
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            texts = note_missing(read_text(file, name), tokenizer, missing)
            chunks = encode_chunks(texts, tokenizer)
            if tracer is not None:
                add_spans = partial(report.add_spans, name) if as_json else None
                chunks = trace_chunks(chunks, tracer, score.count_traced, add_spans)
            for tokens in score_ids(model.backend, chunks, tokenizer.eot_id, stride):
                score.add(tokens, tokenizer)
                total.add(tokens, tokenizer)
                report.add_tokens(name, tokens)
        total.count_traced(score.n_traced)
        report.add_score(name, score)
        for notice in missing_notice(tokenizer, "".join(missing), of="what is scored"):
            notify(f"{name}: {notice}")
    if len(names) > 1:
        report.add_score("all", total)


def read_text(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield a file's text in chunks, without its mark; raise DataError where it is not UTF-8."""
    decoder, mark = codecs.getincrementaldecoder("utf-8")(), "\ufeff"
    n_read = 0
    try:
        while chunk := file.read(READ_BYTES):
            n_read += len(chunk)
            if text := decoder.decode(chunk):
                yield text.removeprefix(mark)
                mark = ""
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        position = n_read - len(error.object) + error.start
        raise DataError(
            f"{name}: not UTF-8 at byte {position:,} ({error.reason}). Convert it "
            "first, as in: iconv -f latin1 -t utf-8"
        ) from error


def note_missing(
    texts: Iterable[str], tokenizer: Tokenizer, missing: dict[str, None]
) -> Iterator[str]:
    """Yield ``texts``; add to ``missing`` the characters that the vocabulary lacks."""
    for text in texts:
        missing |= dict.fromkeys(tokenizer.missing(text))
        yield text


def encode_chunks(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the ids of a text that comes in chunks: together those of the whole."""
    held = ""
    for text in texts:
        held += text
        if len(held) < CHUNK_CHARACTERS:
            continue
        ends = [match.end() for match in WORD_END.finditer(held, len(held) // 2)]
        if ends:  # text that has no blank is held as a whole
            yield tokenizer.encode(held[: ends[-1]])
            held = held[ends[-1] :]
    yield tokenizer.encode(held)


def score_ids(
    backend: Backend, chunks: Iterable[list[int]], before: int, stride: int
) -> Iterator[list[Token]]:
    """Yield the tokens of ``chunks`` with their logprobs, by windows; ``before`` precedes them."""
    block_size = backend.config.block_size
    cache = backend.make_cache(1)
    ids = [before]  # from the window's first input on
    n_scored = 0  # of them, behind the first
    for chunk in chunks:
        ids += chunk
        while len(ids) > block_size:
            yield from score_tokens(cache, 0, ids[: block_size + 1], n_scored)
            ids = ids[stride:]
            n_scored = block_size - stride
    yield from score_tokens(cache, 0, ids, n_scored)


class Report:
    """Scores as they come; with ``per_token``, colours in a terminal and columns in a pipe."""

    def __init__(
        self, tokenizer: Tokenizer, *, per_token: bool, as_json: bool, novelty: bool = False
    ) -> None:
        self._tokenizer, self._per_token, self._as_json = tokenizer, per_token, as_json
        self._novelty = novelty
        self._headings = HEADINGS.replace("\n", f"{'novelty':>9}\n") if novelty else HEADINGS
        self._in_colour = per_token and not as_json and sys.stdout.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._heading = "" if as_json else COLUMNS if per_token else self._headings

    def _write(self, text: str) -> None:
        write_stdout(self._heading + text)
        self._heading = ""

    def _write_json(self, records: Iterable[dict[str, object]]) -> None:
        self._write("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))

    def add_tokens(self, name: str, tokens: Sequence[Token]) -> None:
        """Write more tokens of a file."""
        if self._in_colour:
            sys.stdout.write("".join(map(self.coloured, tokens)))
        elif self._per_token and self._as_json:
            self._write_json(
                {"file": name, "bits": round(surprisal(each), 4)}
                | token_json(each, self._tokenizer)
                for each in tokens
            )
        elif self._per_token:
            self._write("".join(map(self.columns, tokens)))

    def add_spans(self, name: str, ids: list[int], n_before: int, spans: list[Span]) -> None:
        """Write spans of some tokens of a file, ``n_before`` of which came before."""
        for each in spans:
            text = self._tokenizer.decode_bytes(ids[each.first : each.last])
            place = {"file": name, "first": n_before + each.first, "last": n_before + each.last}
            found = {"n_found": each.n_found, "passages": [vars(one) for one in each.passages]}
            self._write_json([place | {"text": text.decode("utf-8", "replace")} | found])

    def columns(self, token: Token) -> str:
        r"""Return tab-separated columns; \n, \t and bytes beyond text are spelled out."""
        text = self._tokenizer.decode_bytes([token.idx]).decode("utf-8", "surrogateescape")
        # a surrogate stands for a byte beyond text
        spelled = [
            f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else repr(c)[1:-1]
            for c in text
        ]
        return f"{surprisal(token):.3f}\t{token.logprob:.5f}\t{token.idx}\t{''.join(spelled)}\n"

    def coloured(self, token: Token) -> str:
        """Return a token in its colour; a character of several comes with the last of them."""
        text = escape_controls(self._decoder.decode(self._tokenizer.token_bytes[token.idx]))
        colour = COLOURS[bisect(BITS, surprisal(token))]
        # black on the colour, whatever the theme; a colour behind a line end fills the rest of it
        return "\n".join(
            f"\x1b[38;5;16;48;5;{colour}m{line}\x1b[0m" if line and colour else line
            for line in text.split("\n")
        )

    def add_score(self, name: str, score: Score) -> None:
        """Write the score of a file."""
        if self._as_json:
            figures = {"loss": score.loss, "perplexity": score.perplexity, "bpb": score.bpb}
            if self._novelty:
                figures["novelty"] = score.novelty
            # of no tokens there are none, and JSON has no word for an infinite perplexity
            is_known = {name: score.n_tokens and math.isfinite(x) for name, x in figures.items()}
            counts = {"file": name, "tokens": score.n_tokens, "bytes": score.n_bytes}
            self._write_json([counts | {n: x if is_known[n] else None for n, x in figures.items()}])
            return
        perplexity = f"{score.perplexity:{'.3e' if score.perplexity >= 1e9 else ',.2f'}}"
        columns = [f"{score.loss:.4f}", perplexity, f"{score.bpb:.4f}"]
        loss, perplexity, bpb = columns if score.n_tokens else ["-"] * 3
        shown = escape_controls(name).replace("\n", "\\n")
        line = f"{shown:<30}{score.n_tokens:>12,}{score.n_bytes:>14,}"
        line += f"{loss:>9}{perplexity:>14}{bpb:>11}"
        share = f"{score.novelty:.1%}" if score.n_tokens else "-"
        line += f"{share:>9}\n" if self._novelty else "\n"
        if self._in_colour:
            write_stdout(self._decoder.decode(b"", final=True) + "\n")
        if self._per_token:  # behind tokens it is not one of them
            sys.stderr.write(self._headings + line)
        else:
            self._write(line)


def surprisal(token: Token) -> float:
    """Return a token's surprisal in bits: 1 is a coin tossed, 10 one guess among a thousand."""
    return abs(token.logprob) / math.log(2)  # not -0.0 for what was certain
