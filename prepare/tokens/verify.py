"""A sample of gigatoken's ids compared with tiktoken's, which define what is right.

In every run a sample of texts is encoded by both: the first of each process, and one in
VERIFY_ONE_IN of the others. One difference ends gigatoken's use, and all is encoded again.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from common.dataset import token_dtype
from common.tokenizer import BytePairTokenizer

TokenIds = npt.NDArray[np.unsignedinteger[Any]]

VERIFY_FIRST = 50
# tiktoken encodes 18 MB/s where the whole of prepare does 100: so this costs 1.5 % of the time
VERIFY_ONE_IN = 400
# Where letters, digits and marks of Unicode 17 begin (and their neighbours): of them gigatoken 0.10
# knows, tiktoken 0.14, with Unicode 16, does not. The test goes through all characters.
UNICODE_17 = re.compile(
    rb"\xe0(?:\xa2\x8f|[\xb1\xb3]\x9c)|\xe1\xab|\xea\x9f|\xf0(?:\x90[\xa5\xbb]|\x91[\xad\xb6\xb7]"
    rb"|\x96[\xba\xbb\xbf]|\x98[\x9f\xb4\xb6\xb7]|\x9e\x9b|\xab\x9c|\xac\xba|[\xb2\xb3])"
)
UNICODE_17_LEADS = (b"\xe0", b"\xe1", b"\xea", b"\xf0")  # for speed: they all begin with one


class EncodersDisagreeError(Exception):
    """gigatoken gave other ids than tiktoken: what it encoded in this run is not to be trusted."""


class VerifiedEncoder:
    """gigatoken's encoding of texts, a sample of it compared with tiktoken's."""

    def __init__(
        self,
        encode: Callable[[bytes], TokenIds],  # gigatoken's
        tiktoken_ids: Callable[[bytes], TokenIds],  # what takes any text
        tokenizer: BytePairTokenizer,
        n_first: int = VERIFY_FIRST,
    ) -> None:
        self._encode, self._tiktoken_ids, self._tokenizer = encode, tiktoken_ids, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._n_left = n_first

    def __call__(self, texts: list[bytes]) -> list[TokenIds]:
        """Return gigatoken's ids of each text, or tiktoken's where the two cannot agree.

        Raises: EncodersDisagreeError.
        """
        rows = []
        for text in texts:
            if not text.isascii() and _has_unicode_17(text):
                rows.append(self._tiktoken_ids(text))
                continue
            ids = self._encode(text)
            if self._n_left > 0 or xxhash.xxh3_64_intdigest(text) % VERIFY_ONE_IN == 0:
                self._n_left -= 1
                self._verify(text, ids)
            # A copy: what gigatoken returns lies in a buffer as large as the text could need.
            rows.append(ids.astype(self._dtype))
        return rows

    def _verify(self, text: bytes, ids: TokenIds) -> None:
        try:
            expected = self._tokenizer.encode_array(text.decode("utf-8"))
        except ValueError:  # tiktoken gives up on this text: a million blanks in a row
            return
        if not np.array_equal(ids, expected):
            raise EncodersDisagreeError


def _has_unicode_17(text: bytes) -> bool:
    return any(lead in text for lead in UNICODE_17_LEADS) and bool(UNICODE_17.search(text))
