"""What of a text was learned by heart, and what was made up: by its spans in the training text."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.tracing import Span, Tracer, open_tracer
from sample.text.terminal_text import notify


def require_tracer(checkpoint: Path) -> Tracer:
    """Open the training text of a checkpoint's run; raise DataError where none of it is indexed."""
    notices: list[str] = []
    tracer = open_tracer(checkpoint, notices)
    if tracer is None:
        raise DataError(f"--novelty needs the training text and its index. {notices[0]}")
    for notice in notices:
        notify(notice)
    return tracer


def trace_chunks(
    chunks: Iterable[list[int]],
    tracer: Tracer,
    count: Callable[[int], None],
    add_spans: Callable[[list[int], int, list[Span]], None] | None,
) -> Iterator[list[int]]:
    """Yield ``chunks``; call ``count`` with the number of their ids that are in any span.

    ``add_spans`` is called with the ids, the number of those before them, and their spans. Spans
    end where a chunk does, so that memory does not grow with the text.
    """
    n_before = 0
    for ids in chunks:
        places = list(tracer.spans(ids))
        is_traced = np.zeros(len(ids), bool)
        for first, last in places:
            is_traced[first:last] = True
        count(int(is_traced.sum()))
        if add_spans is not None:
            add_spans(ids, n_before, tracer.with_passages(ids, places))
        n_before += len(ids)
        yield ids
