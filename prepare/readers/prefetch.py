"""Read a source in a process of its own, while this one uses what comes of it.

A thread would not do: after each call of a decoder it waits for the interpreter's lock, and so does
the Python code beside it. Encoding 100 MB of .tar.xz took 1.8 s with one, and 1.4 s like this.

Through a pipe come batches of chunks, so few that memory stays flat, each with the bytes read so
far; with the last comes the error that ended them, or the stats.
"""

import fcntl
import multiprocessing
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

from common.errors import SIGNALS, DataError, UserError, defer_signals
from prepare.chunks import Chunk, Stats
from prepare.sources.source import ReadCounter

# Chunks are sent together: to wake a process that waits takes up to 0.3 ms on a virtual machine.
BATCH_BYTES = 1 << 17
Item = TypeVar("Item", bytes, Chunk)
PIPE_BYTES = 1 << 20  # as much as Linux grants to everybody
BATCH_CHUNKS = 1 << 14


class ReaderDiedError(UserError):
    """The process ended before its work was done: no fault of what it worked on."""


def can_fork() -> bool:
    """Return False in a worker, as each core has one, and beside the threads of pyarrow or Ray.

    And on macOS, whose own libraries may not survive a fork: multiprocessing spawns there.
    """
    if multiprocessing.parent_process() is not None or sys.platform == "darwin":
        return False
    # a fork copies the locks that threads hold, and not the threads
    return sys.modules.keys().isdisjoint({"pyarrow", "ray"})


def prefetch(chunks: Iterator[Item], counter: ReadCounter, stats: Stats) -> Generator[Item]:
    """Yield the same chunks, made by a process of its own, which ends with this generator.

    ``counter`` counts there what is read, and here again; ``stats`` are here when all is made.
    Raise what ``chunks`` raises, and ReaderDiedError when the process is killed.
    """
    if not can_fork():
        yield from chunks
        return
    fork = multiprocessing.get_context("fork")  # it goes on with what is here, an iterator
    receiver, sender = fork.Pipe(duplex=False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # on Linux: else the two wait for each other at each batch
        fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    arguments = (chunks, counter, stats, receiver, sender)
    process = fork.Process(target=_produce, args=arguments, daemon=True)  # ends with this one
    try:
        with defer_signals():
            process.start()
        sender.close()
        while True:
            try:
                n_read, batch, end = receiver.recv()
            except (EOFError, OSError) as error:
                raise ReaderDiedError(
                    "A process that helps to read ended without a word: it was killed, or there "
                    "was no memory left for it. Run the same command again: it goes on from the "
                    "shards that are finished."
                ) from error
            counter(n_read - counter.n_read)
            yield from batch
            if isinstance(end, Exception):
                raise end
            if end is not None:
                vars(stats).update(vars(end))
                return
    finally:
        receiver.close()
        if process.pid:
            process.kill()  # it may be at work, where no more is wanted
            process.join()


def _produce(
    chunks: Iterator[Item],
    counter: ReadCounter,
    stats: Stats,
    receiver: "Connection[object, object]",
    sender: "Connection[object, object]",
) -> None:
    """Send all chunks, in the process of its own; what came before an error is good."""
    receiver.close()
    for number in SIGNALS:  # those of a terminal reach all; the first decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    counter.detach()
    batch: list[Item] = []
    n_bytes = 0
    end: Stats | Exception = stats
    try:
        for chunk in chunks:
            batch.append(chunk)
            n_bytes += len(chunk if isinstance(chunk, bytes) else chunk[0])
            if n_bytes >= BATCH_BYTES or len(batch) >= BATCH_CHUNKS:
                sender.send((counter.n_read, batch, None))
                batch, n_bytes = [], 0
    except (DataError, OSError) as error:
        end = error
    except Exception as error:
        end = RuntimeError(repr(error))  # itself it might not go through a pipe
    with suppress(BrokenPipeError):  # the other process is gone
        sender.send((counter.n_read, batch, end))
