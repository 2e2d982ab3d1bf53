"""The threads that go through a pass together: their barrier, how they wait, begin and end."""

import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# A thread that has waited some tenths of a millisecond sleeps: other processes want the processors.
SPINS, SLEEP_US = 200_000, 20

_usleep = types.ExternalFunction("usleep", types.intc(types.uintc))
read = types.ExternalFunction("read", types.intp(types.intc, types.voidptr, types.uintp))
write = types.ExternalFunction("write", types.intp(types.intc, types.voidptr, types.uintp))


@intrinsic
def atomic_add(typing: Any, counter: Any) -> Any:
    """Add one to ``counter`` (1,), for all threads, and return the sum."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = context.make_array(signature.args[0])(context, builder, args[0]).data
        one = ir.Constant(ir.IntType(64), 1)
        return builder.add(builder.atomic_rmw("add", at, one, "acq_rel"), one)

    return types.int64(counter), generate


@intrinsic
def atomic_load(typing: Any, counter: Any) -> Any:
    """Return ``counter`` (1,), with all that was written before it was added to visible."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(at, "acquire", 8)

    return types.int64(counter), generate


@njit
def barrier(group):
    """Wait until all threads are here."""
    if group.n_threads == 1:
        return
    n = atomic_add(group.n_arrived)
    all_here = -(-n // group.n_threads) * group.n_threads
    n_spins = 0
    while atomic_load(group.n_arrived) < all_here:
        n_spins += 1
        if n_spins > SPINS:
            _usleep(SLEEP_US)


def start_thread(number: int, work: Callable[[int, int], None], owner: object) -> int:
    """Start ``work(number, read_end)`` of a pipe in a thread; return the pipe's other end.

    The thread ends, as that end is closed, with its ``owner``.
    """
    read_end, write_end = os.pipe()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # for the main thread
        work(number, read_end)
        os.close(read_end)

    thread = threading.Thread(target=run, name=f"kernels-{number}", daemon=True)
    thread.start()
    # not as the interpreter ends: a thread that wakes up then is ended by force, which compiled
    # code does not survive; asleep it ends with the process
    _ends[write_end] = weakref.finalize(owner, _end_thread, write_end, thread)
    _ends[write_end].atexit = False
    return write_end


def _end_thread(write_end: int, thread: threading.Thread) -> None:
    del _ends[write_end]
    os.close(write_end)
    thread.join()


# Of all threads that are there, by the ends of their pipes. A child would hold these open, and with
# them the threads of its parent; it has none of its own.
_ends: "dict[int, weakref.finalize[Any, Any]]" = {}


def _close_in_child() -> None:
    for write_end, end in _ends.items():
        end.detach()
        os.close(write_end)
    _ends.clear()


os.register_at_fork(after_in_child=_close_in_child)
