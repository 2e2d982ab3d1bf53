"""Learn byte pairs in a process of its own: Ctrl-C ends it at once, and its threads end with it.

    python learn_bpe.py VOCAB_SIZE < texts > tokens

Texts are UTF-8, a byte 0xff between them; tokens come one a line, in hexadecimal, by their ids.
"""

import os
import sys

import gigatoken


def main() -> None:
    """Read standard input whole, and write nothing but tokens to standard output."""
    with os.fdopen(os.dup(1), "w", encoding="ascii") as out:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what native code prints
        learned, _ = gigatoken.train_bpe(
            sys.stdin.buffer.read(),
            int(sys.argv[1]),
            [],
            tie_breaking="raw_token_ids",
            separator=b"\xff",
        )
        out.writelines(learned[i].hex() + "\n" for i in range(len(learned)))


if __name__ == "__main__":
    main()
