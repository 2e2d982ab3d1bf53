"""What `sample score` writes: a table, JSON lines, or the text with each token's surprisal.

Surprisal is counted in bits: 1 bit is a coin tossed, 10 bits one guess among a thousand.
"""

import codecs
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.inference.decoder import Token
from common.tokenizer import Tokenizer
from sample.loaded_model import LoadedModel
from sample.score.score import Score, encode_chunks, read_text, score_ids
from sample.text.detokenizer import token_json
from sample.text.terminal_text import escape_controls

Line = tuple[str, bool]  # a text, and whether it is a result: stdout, else stderr
HEADINGS = f"{'':<30}{'tokens':>12}{'bytes':>14}{'loss':>9}{'perplexity':>14}{'bits/byte':>11}\n"
COLUMNS = "bits\tlogprob\tid\ttext\n"
# below how many bits -> which of the terminal's 256 colours behind the text: none, yellow ... red
COLOURS = ((2.0, None), (5.0, 229), (8.0, 221), (11.0, 214), (15.0, 208))
BEYOND = 196


@dataclass(frozen=True)
class Style:
    """How scores are written."""

    per_token: bool = False
    as_json: bool = False
    in_colour: bool = False  # each token, instead of columns

    @property
    def heading(self) -> Line:
        """What comes first."""
        if self.as_json:
            return "", True
        if not self.per_token:
            return HEADINGS, True
        return (legend(), False) if self.in_colour else (COLUMNS, True)

    def result(self, name: str, score: Score) -> Line:
        """Return what is written of a file."""
        figures = {"loss": score.loss, "perplexity": score.perplexity, "bpb": score.bpb}
        if self.as_json:
            found = figures if score.n_tokens else dict.fromkeys(figures)
            counts = {"file": name, "tokens": score.n_tokens, "bytes": score.n_bytes}
            return json.dumps(counts | found, ensure_ascii=False) + "\n", True
        large = score.perplexity >= 1e9
        perplexity = f"{score.perplexity:.3e}" if large else f"{score.perplexity:,.2f}"
        loss, bpb = f"{score.loss:.4f}", f"{score.bpb:.4f}"
        if not score.n_tokens:
            loss = perplexity = bpb = "-"
        name = escape_controls(name).replace("\n", "\\n")
        counts_text = f"{name:<30}{score.n_tokens:>12,}{score.n_bytes:>14,}"
        line = f"{counts_text}{loss:>9}{perplexity:>14}{bpb:>11}\n"
        # behind tokens it is not one of them
        return (HEADINGS + line, False) if self.per_token else (line, True)


def score_files(
    model: LoadedModel, names: Sequence[str], stride: int | None, style: Style
) -> Iterator[Line]:
    """Yield what is to be written for the files, each one document; "-" is standard input.

    Raises: ConfigError where the stride is longer than the context, DataError where a file is not
    UTF-8.
    """
    block_size, tokenizer = model.block_size, model.tokenizer
    stride = stride or max(1, block_size // 2)
    if stride > block_size:
        raise ConfigError(f"--stride is {stride:,}, but the context holds {block_size:,} tokens.")
    yield (
        f"stride {stride:,}: behind the first {block_size:,} tokens each is predicted from "
        f"{block_size - stride:,} or more before it\n",
        False,
    )
    whole = Score()
    heading = [style.heading]  # written when there is something below it
    for name in names:
        score, writer = Score(), TokenWriter(tokenizer, name, style)
        for tokens in _score_file(model, name, stride):
            score.add(tokens, tokenizer)
            whole.add(tokens, tokenizer)
            yield from heading
            heading.clear()
            if style.per_token:
                yield "".join(map(writer.write, tokens)), True
        yield writer.end() if style.in_colour else "", True
        yield from heading  # above an empty file too
        heading.clear()
        yield style.result(name, score)
    if len(names) > 1:
        yield style.result("all", whole)


def _score_file(model: LoadedModel, name: str, stride: int) -> Iterator[list[Token]]:
    file = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115
    try:
        chunks = encode_chunks(read_text(file, name), model.tokenizer)
        yield from score_ids(model.backend, chunks, before=model.tokenizer.eot_id, stride=stride)
    finally:
        if name != "-":
            file.close()


def surprisal(token: Token) -> float:
    """Return a token's surprisal in bits."""
    return abs(token.logprob) / math.log(2)  # not -0.0 for what was certain


class TokenWriter:
    """Writes a file's tokens one after the other: a colour in the terminal, columns in a pipe.

    A coloured token that holds part of a character gets no text: the whole character comes with the
    token that completes it.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, style: Style) -> None:
        self._tokenizer, self._name, self._style = tokenizer, name, style
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, token: Token) -> str:
        """Return what is written of a token."""
        bits = surprisal(token)
        if self._style.as_json:
            described = {"file": self._name, "bits": round(bits, 4)}
            described |= token_json(token, self._tokenizer)
            return json.dumps(described, ensure_ascii=False) + "\n"
        if not self._style.in_colour:
            text = self._tokenizer.decode_bytes([token.idx]).decode("utf-8", "surrogateescape")
            text = "".join(map(_spelled_out, text))
            return f"{bits:.3f}\t{token.logprob:.5f}\t{token.idx}\t{text}\n"
        text = escape_controls(self._decoder.decode(self._tokenizer.token_bytes[token.idx]))
        colour = next((colour for most, colour in COLOURS if bits < most), BEYOND)
        # line ends stay outside: a colour behind one fills the rest of the line
        return "\n".join(_paint(line, colour) for line in text.split("\n"))

    def end(self) -> str:
        """Return what ends a coloured text."""
        return self._decoder.decode(b"", final=True) + "\n"


def _spelled_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # stands for a byte beyond text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def _paint(text: str, colour: int | None) -> str:
    # black on the colour, whatever the theme
    return f"\x1b[38;5;16;48;5;{colour}m{text}\x1b[0m" if text and colour else text


def legend() -> str:
    """Return what the colours mean, in a line."""
    parts, least = [], 0.0
    for most, colour in COLOURS:
        parts.append(_paint(f" {least:g} to {most:g} ", colour))
        least = most
    return "bits of surprise:" + "".join(parts) + _paint(f" {least:g} and more ", BEYOND) + "\n"
