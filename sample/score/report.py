"""What `sample score` writes: a table, JSON lines, or the text with each token's surprise."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.tokenizer import Tokenizer
from sample.chat.terminal import visible
from sample.loaded_model import Ready
from sample.score.score import Score, ScoredToken, encode_pieces, read_text, score_ids
from sample.score.surprisal import COLUMNS, Colouring, as_columns, legend

Line = tuple[str, bool]  # a text, and whether it is a result: stdout, else stderr
HEADINGS = f"{'':<30}{'tokens':>12}{'bytes':>14}{'loss':>9}{'perplexity':>14}{'bits/byte':>11}\n"


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

    def tokens(self, name: str, tokens: Sequence[ScoredToken], writer: Colouring) -> Iterator[str]:
        """Yield what is written of each token."""
        for token in tokens:
            if self.as_json:
                yield json.dumps({"file": name} | writer.as_json(token), ensure_ascii=False) + "\n"
            elif self.in_colour:
                yield writer.coloured(token)
            else:
                yield as_columns(token, writer.tokenizer)

    def result(self, name: str, score: Score) -> Line:
        """Return what is written of a file."""
        figures = score.loss, score.perplexity, score.bpb
        if self.as_json:
            described = {"file": name, "tokens": score.n_tokens, "bytes": score.n_bytes} | {
                key: figure if score.n_tokens else None
                for key, figure in zip(("loss", "perplexity", "bpb"), figures, strict=True)
            }
            return json.dumps(described, ensure_ascii=False) + "\n", True
        large = score.perplexity >= 1e9
        perplexity = f"{score.perplexity:.3e}" if large else f"{score.perplexity:,.2f}"
        loss, bpb = f"{score.loss:.4f}", f"{score.bpb:.4f}"
        if not score.n_tokens:
            loss = perplexity = bpb = "-"
        name = visible(name).replace("\n", "\\n")
        line = (
            f"{name:<30}{score.n_tokens:>12,}{score.n_bytes:>14,}"
            f"{loss:>9}{perplexity:>14}{bpb:>11}\n"
        )
        # behind tokens it is not one of them
        return (HEADINGS + line, False) if self.per_token else (line, True)


def score_files(
    ready: Ready, names: Sequence[str], stride: int | None, style: Style
) -> Iterator[Line]:
    """Yield what is to be written for the files, each one document; "-" is standard input.

    Raises: ConfigError where the stride is longer than the context, DataError where a file is not
    UTF-8.
    """
    block_size = ready.loaded.model.config.block_size
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
        score, writer = Score(), Colouring(ready.loaded.tokenizer)
        for tokens in _score_file(ready, name, stride):
            score.add(tokens, ready.loaded.tokenizer)
            whole.add(tokens, ready.loaded.tokenizer)
            yield from heading
            heading.clear()
            if style.per_token:
                yield "".join(style.tokens(name, tokens, writer)), True
        yield writer.end() if style.in_colour else "", True
        yield from heading  # above an empty file too
        heading.clear()
        yield style.result(name, score)
    if len(names) > 1:
        yield style.result("all", whole)


def _score_file(ready: Ready, name: str, stride: int) -> Iterator[list[ScoredToken]]:
    tokenizer: Tokenizer = ready.loaded.tokenizer
    file = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115
    try:
        pieces = encode_pieces(read_text(file, name), tokenizer)
        yield from score_ids(ready.network, pieces, before=tokenizer.eot_id, stride=stride)
    finally:
        if name != "-":
            file.close()
