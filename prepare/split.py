"""Which document is train and which is val: a pure function of its content.

So the split is the same for any order of files and on any machine, stays as it is when more
documents come later, and exact duplicates never stand on both sides.
"""

from hashlib import blake2b

from common.tokenfile import Split

# Below this many documents a split by document is too coarse: one in ten of 30 says little.
MIN_DOCUMENTS = 1_000


def hash_fraction(text: bytes, seed: int) -> float:
    """Return a number in [0, 1) that depends on nothing but the text and the seed."""
    salt = seed.to_bytes(16, "little")
    digest = blake2b(text, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "little") / 2**64


def split_of(text: bytes, val_fraction: float, seed: int) -> Split:
    """Return the side a whole document belongs to."""
    return "val" if hash_fraction(text, seed) < val_fraction else "train"


def tail_start(text: bytes, val_fraction: float) -> int:
    """Return where a document's val part begins: at its last tenth, never inside a character."""
    cut = int(len(text) * (1 - val_fraction))
    while cut < len(text) and text[cut] & 0xC0 == 0x80:  # a byte that continues a character
        cut += 1
    return cut
