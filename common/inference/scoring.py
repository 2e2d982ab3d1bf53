"""How likely a network finds a text that is there already: its tokens, each with its logprob."""

from collections.abc import Iterator, Sequence

from common.inference.backend import KVCache
from common.inference.decoder import Token
from common.inference.row import top_logprobs


def score_tokens(
    cache: KVCache, row: int, ids: Sequence[int], n_skipped: int = 0, n_top: int = 0
) -> Iterator[list[Token]]:
    """Yield ids[1 + n_skipped :] as tokens, each predicted from all before it, part by part.

    ``row`` is begun with them; between two parts other rows may go on. Raise CheckpointError for
    logits that are not finite.
    """
    targets = iter(ids[1 + n_skipped :])
    if n_wanted := max(0, len(ids) - 1 - n_skipped):
        for _, part in cache.prefill([(row, ids[:-1])], n_wanted):
            yield [
                Token(idx, float(logits[idx]) - logsumexp, top_logprobs(logits, logsumexp, n_top))
                for (logits, logsumexp), idx in zip(part.each(), targets, strict=False)
            ]
