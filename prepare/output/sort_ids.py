"""Sort the positions of ids by what begins there: of bytes on stdin, as uint32 on stdout.

Run as a process, which can be killed where the library cannot be interrupted, and whose memory is
free afterwards: WIDTH bytes an id, N_BYTES of them, four times as many for the positions of all
bytes. The library sorts those of bytes, also where it is given larger integers.
"""

import sys

import numpy as np
from pydivsufsort import divsufsort  # type: ignore[import-untyped]

BLOCK = 1 << 22  # positions written at a time


def main() -> None:
    """Read, sort, and write the positions at which an id begins."""
    width, n_bytes = map(int, sys.argv[1:])
    ids = np.empty(n_bytes, np.uint8)
    rest = ids.data
    with open(0, "rb", buffering=0) as stdin:
        while rest:
            rest = rest[stdin.readinto(rest) :]
    order = divsufsort(ids)
    with open(1, "wb", buffering=0, closefd=False) as stdout:
        for i in range(0, n_bytes, BLOCK):
            places = order[i : i + BLOCK]
            positions = (places[places % width == 0] // width).astype("<u4")
            rest = memoryview(positions).cast("B")
            while rest:
                rest = rest[stdout.write(rest) :]


if __name__ == "__main__":
    main()
