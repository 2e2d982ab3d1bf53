"""What `sample score` writes: a table, JSON lines, or the text with each token's surprisal.

Surprisal is counted in bits: 1 bit is a coin tossed, 10 bits one guess among a thousand. Results go
to stdout, what explains them to stderr.
"""

import codecs
import json
import math
import sys
from collections.abc import Iterator, Sequence

from common.errors import ConfigError
from common.inference.decoder import Token
from common.tokenizer import Tokenizer
from sample.loaded_model import LoadedModel
from sample.score.score import Score, encode_chunks, read_text, score_ids
from sample.text.detokenizer import token_json
from sample.text.terminal_text import escape_controls, write_stdout

HEADINGS = f"{'':<30}{'tokens':>12}{'bytes':>14}{'loss':>9}{'perplexity':>14}{'bits/byte':>11}\n"
COLUMNS = "bits\tlogprob\tid\ttext\n"
# below how many bits -> which of the terminal's 256 colours behind the text: none, yellow ... red
COLOURS = ((2.0, 0), (5.0, 229), (8.0, 221), (11.0, 214), (15.0, 208))
BEYOND = 196


def write_scores(
    model: LoadedModel, names: Sequence[str], stride: int | None, *, per_token: bool, as_json: bool
) -> None:
    """Write the scores of files, each one document; "-" is standard input.

    Raises: ConfigError where the stride is longer than the context, DataError where a file is not
    UTF-8.
    """
    block_size, tokenizer = model.block_size, model.tokenizer
    stride = stride or max(1, block_size // 2)
    if stride > block_size:
        raise ConfigError(f"--stride is {stride:,}, but the context holds {block_size:,} tokens.")
    sys.stderr.write(
        f"stride {stride:,}: behind the first {block_size:,} tokens each is predicted from "
        f"{block_size - stride:,} or more before it\n"
    )
    report = Report(tokenizer, per_token=per_token, as_json=as_json)
    total = Score()
    for name in names:
        score = Score()
        for tokens in _score_file(model, name, stride):
            score.add(tokens, tokenizer)
            total.add(tokens, tokenizer)
            report.add_tokens(name, tokens)
        report.add_score(name, score)
    if len(names) > 1:
        report.add_score("all", total)


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


class Report:
    """Scores as they come; with ``per_token``, colours in a terminal and columns in a pipe."""

    def __init__(self, tokenizer: Tokenizer, *, per_token: bool, as_json: bool) -> None:
        self._tokenizer, self._per_token, self._as_json = tokenizer, per_token, as_json
        self._in_colour = per_token and not as_json and sys.stdout.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line_is_open = False
        self._heading = "" if as_json else COLUMNS if per_token else HEADINGS

    def _write_heading(self) -> None:
        """Write what comes first, once there is something below it."""
        if self._heading and self._in_colour:
            sys.stderr.write(legend())
        else:
            write_stdout(self._heading)
        self._heading = ""

    def add_tokens(self, name: str, tokens: Sequence[Token]) -> None:
        """Write more tokens of a file."""
        self._write_heading()
        if self._as_json and self._per_token:
            bits = ({"file": name, "bits": round(surprisal(token), 4)} for token in tokens)
            described = (token_json(token, self._tokenizer) for token in tokens)
            write_stdout("".join(_json_line(a | b) for a, b in zip(bits, described, strict=True)))
        elif self._in_colour:
            sys.stdout.write("".join(map(self.coloured, tokens)))
            self._line_is_open = True
        elif self._per_token:
            write_stdout("".join(map(self.columns, tokens)))

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
        colour = next((colour for limit, colour in COLOURS if surprisal(token) < limit), BEYOND)
        # line ends stay outside: a colour behind one fills the rest of the line
        return "\n".join(_paint(line, colour) for line in text.split("\n"))

    def add_score(self, name: str, score: Score) -> None:
        """Write the score of a file."""
        self._write_heading()
        figures = {"loss": score.loss, "perplexity": score.perplexity, "bpb": score.bpb}
        if self._as_json:
            counts = {"file": name, "tokens": score.n_tokens, "bytes": score.n_bytes}
            write_stdout(
                _json_line(counts | (figures if score.n_tokens else dict.fromkeys(figures)))
            )
            return
        perplexity = f"{score.perplexity:{'.3e' if score.perplexity >= 1e9 else ',.2f'}}"
        loss, bpb = f"{score.loss:.4f}", f"{score.bpb:.4f}"
        if not score.n_tokens:
            loss = perplexity = bpb = "-"
        shown = escape_controls(name).replace("\n", "\\n")
        line = f"{shown:<30}{score.n_tokens:>12,}{score.n_bytes:>14,}"
        line += f"{loss:>9}{perplexity:>14}{bpb:>11}\n"
        if self._line_is_open:
            write_stdout(self._decoder.decode(b"", final=True) + "\n")
            self._line_is_open = False
        if self._per_token:  # behind tokens it is not one of them
            sys.stderr.write(HEADINGS + line)
        else:
            write_stdout(line)


def _json_line(value: dict[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _paint(text: str, colour: int) -> str:
    # black on the colour, whatever the theme
    return f"\x1b[38;5;16;48;5;{colour}m{text}\x1b[0m" if text and colour else text


def legend() -> str:
    """Return what the colours mean, in a line."""
    words = "bits of surprisal:"
    for limit, colour in COLOURS:
        words += _paint(f" below {limit:g} ", colour)
    return words + _paint(" more ", BEYOND) + "\n"
