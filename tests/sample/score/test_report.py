"""Surprisal as it is shown: colours that a terminal understands, columns that a program reads."""

import math

import pytest

from common.inference.decoder import Token
from common.tokenizer import CharTokenizer, Tokenizer
from sample.score.report import Report, surprisal
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()


def surprising(text: bytes, n_bits: float) -> list[Token]:
    return [Token(byte, -n_bits * math.log(2)) for byte in text]


def coloured(text: bytes, n_bits: float) -> str:
    report = Report(BYTES, per_token=True, as_json=False)
    return "".join(map(report.coloured, surprising(text, n_bits)))


def as_columns(token: Token, tokenizer: Tokenizer) -> str:
    return Report(tokenizer, per_token=True, as_json=False).columns(token)


def test_bits_are_halvings() -> None:
    assert surprisal(Token(0, math.log(1 / 8))) == pytest.approx(3)


@pytest.mark.parametrize(
    ("n_bits", "expected"),
    [
        (0.0, "a"),
        (1.9, "a"),
        (2.1, "\x1b[38;5;16;48;5;229ma\x1b[0m"),
        (14.9, "\x1b[38;5;16;48;5;208ma\x1b[0m"),
        (99.0, "\x1b[38;5;16;48;5;196ma\x1b[0m"),
    ],
)
def test_what_surprises_is_coloured(n_bits: float, expected: str) -> None:
    assert coloured(b"a", n_bits) == expected


def test_a_character_of_several_tokens_comes_whole_and_line_ends_are_not_coloured() -> None:
    painted = coloured("\u4e16\n\U0001f600".encode(), 20)
    paint = "\x1b[38;5;16;48;5;196m{}\x1b[0m"
    assert painted == paint.format("\u4e16") + "\n" + paint.format("\U0001f600")


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert coloured(b"\x1b[2J", 0.0) == "\\x1b[2J"


def test_columns_hold_any_token_in_a_line() -> None:
    line = as_columns(Token(10, -1.0), BYTES)
    assert line == "1.443\t-1.00000\t10\t\\n\n"
    assert as_columns(Token(0xE4, -1.0), BYTES).endswith("\t228\t\\xe4\n")
    assert as_columns(Token(0, 0.0), CharTokenizer(("\\",))).endswith("\t0\t\\\\\n")
    tokenizer = CharTokenizer(("\u4e16",))
    assert as_columns(Token(0, 0.0), tokenizer) == "0.000\t0.00000\t0\t\u4e16\n"
