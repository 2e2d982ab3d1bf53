"""Bits a byte that compressors need for val once they have read train: peers without a network.

That is the size of both together less that of train. As in the .bin files, each document ends in
an id of its own, here a byte 0; as in an evaluation, val's first id is given, and what is left is
divided by its bytes of text. Unlike a network, a compressor looks back as far as it likes, and goes
on learning within val.
"""

import lzma
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyppmd
import zstandard

from common.dataset import DataFolder, open_data
from tests.bench.learning import SHARED

WINDOW_LOG = 27  # of zstd, 128 MiB; xz -9 looks 64 MiB back
MEMORY_BYTES = 1 << 30  # for PPMd's contexts: more than 8 MB of text fill
# The longest contexts of PPMd. H is 7-Zip's variant; of I, pyppmd takes any above 16 for 16.
ORDERS = {"H": (4, 6, 8, 12, 16, 32, 64), "I": (4, 6, 8, 12, 16)}
CORPORA = {  # the source's name here or in SHARED, and its kind of vocabulary
    "default corpus": ("corpus", "bpe"),
    "wikitext-2": ("wikitext-2", "bpe"),
    "tinyshakespeare": ("tinyshakespeare.txt", "char"),
    "state_union": ("state_union", "bpe"),
}


def xz(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def zstd(text: bytes) -> int:
    settings = zstandard.ZstdCompressionParameters.from_level(
        22, window_log=WINDOW_LOG, enable_ldm=True
    )
    return len(zstandard.ZstdCompressor(compression_params=settings).compress(text))


def ppmd(text: bytes, variant: str, order: int) -> int:
    return len(pyppmd.compress(text, max_order=order, mem_size=MEMORY_BYTES, variant=variant))


def texts(data: DataFolder) -> tuple[bytes, bytes, int]:
    """Return what is known, what is asked for, and how many bytes of text the latter has."""
    tokenizer = data.tokenizer()
    train, val = data.tokens("train").tolist(), data.tokens("val").tolist()
    table = list(tokenizer.token_bytes)
    n_bytes = sum(len(table[idx]) for idx in val[1:])
    table[tokenizer.eot_id] = b"\0"
    known, asked = (b"".join([table[idx] for idx in ids]) for ids in (train + val[:1], val[1:]))
    return known, asked, n_bytes


def main() -> None:
    """Print a line for each compressor, a table for each corpus."""
    compressors: dict[str, Callable[[bytes], int]] = {"xz -9e": xz, "zstd --ultra -22 --long": zstd}
    for variant, orders in ORDERS.items():
        for order in orders:
            name = f"PPMd {variant}, order {order}"
            compressors[name] = partial(ppmd, variant=variant, order=order)
    with tempfile.TemporaryDirectory() as temporary:
        folder, prepare = Path(temporary), [sys.executable, "-m", "prepare"]
        run = partial(subprocess.run, check=True, capture_output=True)
        run([*prepare, "corpus", str(folder / "corpus"), "--chats", str(folder / "chats.jsonl")])
        for corpus, (name, tokenizer) in CORPORA.items():
            source = folder / name if (folder / name).exists() else SHARED / name
            out = folder / f"data-{name}"
            run([*prepare, "text", str(source), "--tokenizer", tokenizer, "--out", str(out)])
            known, asked, n_bytes = texts(open_data(out))
            sys.stdout.write(f"\n{corpus}: {n_bytes:,} bytes after {len(known):,}, bits a byte\n")
            for title, size in compressors.items():
                bits = 8 * (size(known + asked) - size(known)) / n_bytes
                sys.stdout.write(f"{title:<26}{bits:>8.4f}\n")
                sys.stdout.flush()
