"""A scored token as a person sees it: a colour in the terminal, columns in a pipe.

Surprise is counted in bits: 1 bit is a coin tossed, 10 bits one guess among a thousand.
"""

import codecs
import math
from typing import Any

from common.tokenizer import Tokenizer
from sample.chat.terminal import visible
from sample.score.score import ScoredToken

# below how many bits -> which of the terminal's 256 colours behind the text: none, yellow ... red
COLOURS = ((2.0, None), (5.0, 229), (8.0, 221), (11.0, 214), (15.0, 208))
BEYOND = 196
COLUMNS = "bits\tlogprob\tid\ttext\n"


def bits(token: ScoredToken) -> float:
    """Return a token's surprise in bits."""
    return abs(token.logprob) / math.log(2)  # not -0.0 for what was certain


def as_columns(token: ScoredToken, tokenizer: Tokenizer) -> str:
    r"""Return a line of tab-separated columns; \n, \t and bytes beyond text are spelled out."""
    text = tokenizer.decode_bytes([token.idx]).decode("utf-8", "surrogateescape")
    text = "".join(map(_spelled_out, text))
    return f"{bits(token):.3f}\t{token.logprob:.5f}\t{token.idx}\t{text}\n"


def _spelled_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # stands for a byte beyond text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


class Colouring:
    """Writes a text's tokens one after the other.

    A token that holds part of a character gets no text: the whole character comes with the token
    that completes it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def coloured(self, token: ScoredToken) -> str:
        """Return a token's text in the colour of its surprise."""
        text = visible(self._decoder.decode(self.tokenizer.token_bytes[token.idx]))
        colour = next((colour for most, colour in COLOURS if bits(token) < most), BEYOND)
        if colour is None:
            return text
        # line ends stay outside: a colour behind one fills the rest of the line
        return "\n".join(_paint(line, colour) if line else "" for line in text.split("\n"))

    def as_json(self, token: ScoredToken) -> dict[str, Any]:
        """Return a token as JSON."""
        text = self.tokenizer.decode_bytes([token.idx]).decode("utf-8", "replace")
        return {"bits": round(bits(token), 4), "logprob": token.logprob, "id": token.idx} | {
            "text": text
        }

    def end(self) -> str:
        """Return what ends a coloured text."""
        return self._decoder.decode(b"", final=True) + "\n"


def _paint(text: str, colour: int) -> str:
    return f"\x1b[38;5;16;48;5;{colour}m{text}\x1b[0m"  # black on the colour, whatever the theme


def legend() -> str:
    """Return what the colours mean, in a line."""
    parts, least = [], 0.0
    for most, colour in COLOURS:
        words = f" {least:g} to {most:g} "
        parts.append(words if colour is None else _paint(words, colour))
        least = most
    return "bits of surprise:" + "".join(parts) + _paint(f" {least:g} and more ", BEYOND) + "\n"
