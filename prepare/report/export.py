"""A data folder in the forms that other projects read.

    llmc        data_train_000000.bin ...   shards for llm.c and modded-nanogpt
    text        train.jsonl, val.jsonl      the documents again, one JSON object a line; of
                                            conversations their messages (conversations.py)

Megatron-LM and GPT-NeoX need no export: train.bin with train.idx is their format, and data/train is
what they call the pair. nanoGPT maps train.bin as it is. Each file appears whole or not at all, and
only files of the same name are replaced. The data were verified before.

Sources: llm.c, dev/data/data_common.py and llmc/dataloader.h; modded-nanogpt, train_gpt.py.
"""

import json
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from common.dataset import SPLITS, DataFolder, Split
from common.errors import DataError
from common.files import atomic_write
from common.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 16  # read at a time; larger ones are no faster
SHARD_TOKENS = 100_000_000  # llm.c's: 200 MB a file
LLMC_HEADER = struct.Struct("<3i1012x")  # magic, version, tokens: the first of 256 int32
LLMC_FORMS = {2: (20240520, 1), 4: (20240801, 7)}  # by bytes a token: GPT-2's, Llama 3's
GPT2_EOT_ID = 50256
OPENING, CLOSING = b'{"text": "', b'"}\n'  # of a line of JSON


def export_llmc(data: DataFolder, out: Path, shard_tokens: int = SHARD_TOKENS) -> list[Path]:
    """Write shards ``data_split_000000.bin``, ...; return their paths.

    Together a split's shards hold one end-of-text id and then the ids as they are. So one stands
    before each document, where modded-nanogpt looks for it, and also after the last.
    Raise DataError when shards lie there that the loaders would take for some of these.
    """
    eot_id = data.meta["tokenizer"]["eot_id"]
    token_bytes = data.dtype.itemsize
    if token_bytes == 2 and eot_id != GPT2_EOT_ID:
        log.warning(
            f"The end-of-text id is {eot_id}, not GPT-2's {GPT2_EOT_ID}: llm.c reads these shards, "
            "but modded-nanogpt finds no documents in them until its BOS_ID says so."
        )
    if data.has_masks:
        log.warning("These shards do not say what is learned of conversations: all will be.")
    with writing(out):
        plan = {split: _shards(data, split, out, shard_tokens) for split in SPLITS}
        for split, shards in plan.items():
            with (data.path / f"{split}.bin").open("rb") as ids:
                lead = eot_id.to_bytes(token_bytes, "little")
                for path, n_tokens in shards.items():
                    with atomic_write(path) as file:
                        file.write(LLMC_HEADER.pack(*LLMC_FORMS[token_bytes], n_tokens) + lead)
                        _copy(ids, file, n_tokens * token_bytes - len(lead))
                    lead = b""
    return [path for shards in plan.values() for path in shards]


def _shards(data: DataFolder, split: Split, out: Path, shard_tokens: int) -> dict[Path, int]:
    """Return the tokens in each shard: equal numbers, as llm.c refuses one shorter than a batch."""
    n_tokens = data.n_tokens(split) + 1 if data.n_tokens(split) else 0  # no shard without documents
    n_shards = -(-n_tokens // shard_tokens)
    bounds = [n_tokens * i // max(1, n_shards) for i in range(n_shards + 1)]
    shards = {
        out / f"data_{split}_{i:06}.bin": end - start
        for i, (start, end) in enumerate(pairwise(bounds))
    }
    others = sorted(set(out.glob(f"data_{split}_*.bin")) - shards.keys())
    if others:
        raise DataError(
            f"{others[0]}: left by another export, and a loader would read it as one of the "
            f"{n_shards:,} shards of {split}. Delete it, or choose another folder."
        )
    return shards


def _copy(source: BinaryIO, target: BinaryIO, n_bytes: int) -> None:
    for start in range(0, n_bytes, BLOCK_BYTES):
        target.write(source.read(min(BLOCK_BYTES, n_bytes - start)))


def export_text(data: DataFolder, out: Path) -> list[Path]:
    """Write ``split.jsonl`` with one {"text": ...} a document; return the paths.

    A document that was split by ``tail`` gives two: its beginning in train, its end in val.
    """
    lookup = _json_of_ids(data.tokenizer())
    paths = {split: out / f"{split}.jsonl" for split in SPLITS}
    with writing(out):
        for split, path in paths.items():
            with (data.path / f"{split}.bin").open("rb") as ids, atomic_write(path) as file:
                file.write(OPENING)
                while block := ids.read(BLOCK_BYTES):
                    file.write(b"".join(lookup[np.frombuffer(block, data.dtype)].tolist()))
                file.truncate(file.tell() - len(OPENING))  # no document follows the last
    return list(paths.values())


def _json_of_ids(tokenizer: Tokenizer) -> npt.NDArray[np.object_]:
    """Return what each id adds to a file of JSON lines.

    JSON escapes single bytes below 128, and so never a piece of a character: each id can be
    written for itself, however long its document is.
    """
    escaped = [  # as Latin-1, which has one character for each byte
        json.dumps(token.decode("latin-1"), ensure_ascii=False)[1:-1].encode("latin-1")
        for token in tokenizer.token_bytes
    ]
    escaped[tokenizer.eot_id] = CLOSING + OPENING
    return np.array(escaped, dtype=object)  # numpy looks up twice as fast as a list does


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder; say in a sentence what keeps it from being written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from error
