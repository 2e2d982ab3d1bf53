"""Documents of one split -> ids in its .bin, batch by batch, counted by source."""

from collections import Counter
from typing import Any

import numpy as np

from common.tokenfile import TokenWriter
from prepare.encode import EncodeBatch

# Encoded at a time: enough for every core to have a share, small beside any memory.
BATCH_BYTES = 4 << 20


class SplitWriter:
    """Gathers a split's documents into batches, encodes them and counts by source."""

    def __init__(self, writer: TokenWriter, encode_batch: EncodeBatch, eot_id: int) -> None:
        self._writer = writer
        self._encode_batch = encode_batch
        self._eot_id = eot_id
        self._sources: list[str] = []
        self._texts: list[bytes] = []
        self._batch_bytes = 0
        self._counts: dict[str, Counter[str]] = {}

    def add(self, source: str, text: bytes) -> None:
        """Take in one document."""
        self._sources.append(source)
        self._texts.append(text)
        self._batch_bytes += len(text)
        if self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._texts:
            return
        ids, lengths = self._encode_batch(self._texts)
        self._writer.add(np.insert(ids, np.cumsum(lengths), self._eot_id), lengths + 1)
        for source, text, length in zip(self._sources, self._texts, lengths, strict=True):
            self._counts.setdefault(source, Counter()).update(
                documents=1, bytes=len(text), tokens=int(length) + 1
            )
        self._sources, self._texts, self._batch_bytes = [], [], 0

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write out the rest; return the size and hash of each file."""
        self._flush()
        return self._writer.finish()

    def discard(self) -> None:
        """Delete what was written and not committed."""
        self._writer.discard()

    def counts_of(self, source: str) -> dict[str, int]:
        """Return documents, bytes and tokens that came from one source."""
        counts = self._counts.get(source, Counter())
        return {name: counts[name] for name in ("documents", "bytes", "tokens")}

    def totals(self) -> dict[str, int]:
        """Return documents, bytes and tokens of the split; tokens include the end-of-text ids."""
        total: Counter[str] = sum(self._counts.values(), Counter())
        return {name: total[name] for name in ("documents", "bytes", "tokens")}
