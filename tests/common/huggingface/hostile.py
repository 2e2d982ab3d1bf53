"""Texts that break tokenizers: what their patterns, normalizers and special tokens trip over."""

import random

from common.tokenizer import SPECIAL_TOKENS

ENDS = ("s", "t", "d", "m", "ll", "ve", "re")
LETTERS = "aeoAEZ\u00e9\u00df\u0130\u017f\u03c3\u0416\u05d0\u0639\u0e01\uac00\u4e2d\u3042\U00010400"
DIGITS = "0123456789\u00b2\u00bd\u0660\u06f5\u0966\u0e53\u2160\u3007\uff19\U0001d7d8"
BLANKS = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
MARKS = "\u0300\u0301\u0308\u0327\u0338\u0345\u05b0\u064b\u0941\u0e31\u3099\u20dd\ufe0f\U0001d165"
UNSEEN = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202c\u202e\u2060\u2066\u2069\ufeff"
PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u00a1\u00bf\u2014\u2019\u201c\u2026\u20ac\u3002\uff0c"
)
SMILEYS = (
    "\U0001f600", "\U0001f469\u200d\U0001f4bb", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea",
    "1\ufe0f\u20e3", "\u2764\ufe0f", "\U0001f3f4\U000e0067\U000e0062\U000e007f",
)  # fmt: skip
SPECIAL = (
    *SPECIAL_TOKENS, "<|im_start|>", "<|endoftext", "|endoftext|>", "<|end|", "<s>", "</s>",
    "<unk>", "[INST]", "[UNK]", "<0x0A>", "<|ENDOFTEXT|>", "<| end |>", "\u2581", "\u0120",
    "\u010a", "##a", "@@",
)  # fmt: skip
RIGHT_TO_LEFT = (
    "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643", "\u202eabc\u202c",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u0661\u0662\u0663", "\ufdfa", "\u2067x\u2069",
)  # fmt: skip
WORDS = (
    "the", "quern", "Stone", "HTTPServer", "na\u00efve", "na\u0131ve", "co-op",
    "snake_case", "e.g.",
)  # fmt: skip


def hostile_strings(seed: int, n: int) -> list[str]:
    """Return ``n`` texts of up to some thousand characters, always the same for a seed.

    Each is of one kind of trouble or, every other, of several. There are no lone surrogates.
    """
    drawn = random.Random(seed)
    texts = []
    for i in range(n):
        kinds = [KINDS[i // 2 % len(KINDS)]] if i % 2 else drawn.choices(KINDS, k=6)
        pieces = [drawn.choice(kinds)(drawn) for _ in range(drawn.randint(1, 12))]
        texts.append(drawn.choice(("", "", " ")).join(pieces))
    return texts


def _some(drawn: random.Random, characters: str, most: int) -> str:
    return "".join(drawn.choices(characters, k=drawn.randint(1, most)))


def _control(drawn: random.Random) -> str:
    return chr(drawn.choice((*range(0x20), *range(0x7F, 0xA0), 0xFFFD, 0xFFFE, 0xFFFF)))


def _run(drawn: random.Random) -> str:
    return drawn.choice(BLANKS) * drawn.choice((1, 2, 3, 4, 7, 16, 33, 100))


def _blanks(drawn: random.Random) -> str:
    return _some(drawn, BLANKS, 8) + drawn.choice(("", "a", "1", "!", "'s"))


def _lines(drawn: random.Random) -> str:
    ends = ("\r\n", "\n", "\r", "\n\n", "\r\n\r\n", " \n", "\n ", "\n\r", "\t\r\n")
    return drawn.choice(WORDS) + drawn.choice(ends) * drawn.randint(1, 3)


def _marked(drawn: random.Random) -> str:
    return drawn.choice(LETTERS + " .1") + _some(drawn, MARKS, 6)


def _smileys(drawn: random.Random) -> str:
    return "".join(drawn.choices((*SMILEYS, " ", "\u200d"), k=drawn.randint(1, 4)))


def _right_to_left(drawn: random.Random) -> str:
    return drawn.choice(RIGHT_TO_LEFT) + drawn.choice(("", " ", ", abc ", " 12"))


def _astral(drawn: random.Random) -> str:
    planes = ((0x10000, 0x10FFF), (0x1D400, 0x1D7FF), (0x1F000, 0x1FAFF), (0x20000, 0x2A6DF),
              (0xE0000, 0xE007F), (0xF0000, 0xF00FF), (0x10FF00, 0x10FFFF))  # fmt: skip
    return "".join(chr(drawn.randint(*drawn.choice(planes))) for _ in range(drawn.randint(1, 5)))


def _any(drawn: random.Random) -> str:
    return chr(drawn.randrange(0xD800)) + chr(drawn.randrange(0xE000, 0x10000))


def _digits(drawn: random.Random) -> str:
    return _some(drawn, drawn.choice((DIGITS, "0123456789")), 9) + drawn.choice(("", ".", ",", "e"))


def _contraction(drawn: random.Random) -> str:
    end = drawn.choice((*ENDS, *map(str.upper, ENDS), "Ll", "\u017f", "x", ""))
    mark = drawn.choice(("'", "'", "'", "\u2019", "''", " '"))
    return drawn.choice((*WORDS, "", " ", "I", "9")) + mark + end


def _special(drawn: random.Random) -> str:
    return drawn.choice(("", " ", "a")) + drawn.choice(SPECIAL)


def _punctuation(drawn: random.Random) -> str:
    return drawn.choice(("", " ", "a")) + _some(drawn, PUNCTUATION, 7)


def _unseen(drawn: random.Random) -> str:
    return drawn.choice(WORDS) + _some(drawn, UNSEEN, 3) + drawn.choice(("", *WORDS))


def _letters(drawn: random.Random) -> str:
    return _some(drawn, LETTERS, 12)


def _long(drawn: random.Random) -> str:
    if drawn.random() < 0.9:  # few, as they take long
        return drawn.choice(WORDS) + " "
    part = drawn.choice(("a", "ab", "xyz", "the", "\u4e2d", "9", "=", "'s", "-\n"))
    return part * drawn.randint(50, 400)


KINDS = (
    _control, _run, _blanks, _lines, _marked, _smileys, _right_to_left, _astral, _any, _digits,
    _contraction, _special, _punctuation, _unseen, _letters, _long,
)  # fmt: skip
