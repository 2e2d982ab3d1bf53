"""ids -> text as it comes: bytes that do not yet form a character wait for the rest."""

import codecs
from collections.abc import Iterable, Iterator

from common.tokenizer import Tokenizer


def stream_text(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of ``ids`` piece by piece, together what decoding them at once would give.

    Bytes that can form no character become U+FFFD, as do those left incomplete at the end.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for idx in ids:
        if text := decoder.decode(tokenizer.token_bytes[idx]):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
