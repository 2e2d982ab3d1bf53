"""Small folders of conversations, made by hand: ids, masks and all."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.chat_format import CHAT_TEMPLATE, LEARNED, TEMPLATE_NAME, Role, end_id, role_id
from common.dataset import META_NAME, DataFolder, Split, meta_sha256, open_data, token_dtype
from common.files import sha256_of, write_json
from common.tokenizer import Tokenizer, describe_tokenizer, save_tokenizer
from prepare.config import ChatsConfig
from prepare.output.dataset_writer import TokenWriter
from prepare.pipeline import prepare_corpus
from prepare.readers.conversations import read_conversations
from prepare.sources.discover import find_sources
from tests.tiny import SENTENCE

Talk = Sequence[tuple[Role, str]]


def ids_and_mask(talk: Talk, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation, end-of-text included, and a mask's byte for each."""
    ids, mask = list[int](), list[int]()
    for role, text in talk:
        content = [*tokenizer.encode(text), end_id(tokenizer)]
        ids += [role_id(tokenizer, role), *content]
        mask += [0, *[LEARNED if role == "assistant" else 0] * len(content)]
    return [*ids, tokenizer.eot_id], [*mask, 0]


def write_chats(
    folder: Path, tokenizer: Tokenizer, talks: dict[Split, Sequence[Talk]], context: int = 64
) -> DataFolder:
    """Write a data folder of conversations."""
    folder.mkdir(parents=True)
    splits, names = {}, [tokenizer.file_name, TEMPLATE_NAME]
    for split, of_split in talks.items():
        masks = list[int]()
        with TokenWriter(folder, split, token_dtype(tokenizer.vocab_size)) as writer:
            for talk in of_split:
                ids, mask = ids_and_mask(talk, tokenizer)
                writer.add_ids(np.array(ids, writer.dtype).tobytes())
                writer.add_lengths(np.array([len(ids)]))
                masks += mask
            splits[split] = {"tokens": writer.n_tokens, "documents": len(of_split)}
            writer.finish()
        (folder / f"{split}.mask").write_bytes(bytes(masks))
        names += [f"{split}.bin", f"{split}.idx", f"{split}.mask"]
    save_tokenizer(tokenizer, folder)
    (folder / TEMPLATE_NAME).write_text(CHAT_TEMPLATE, encoding="utf-8")
    meta = {
        "format": 1,
        "tokenizer": describe_tokenizer(tokenizer),
        "splits": splits,
        "chats": {"context": context, "pairs": False},
        "files": {
            name: {
                "size_bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)
            }
            for name in names
        },
    }  # fmt: skip
    write_json(folder / META_NAME, meta | {"meta_sha256": meta_sha256(meta)})
    return open_data(folder)


def echoes(n: int, seed: int, n_turns: int = 2) -> list[Talk]:
    """Return conversations in which the assistant says again the word that it was told."""
    draw = random.Random(seed)
    words = [word for word in SENTENCE.split() if len(word) < 7]
    talks: list[Talk] = []
    for _ in range(n):
        told = draw.choices(words, k=draw.randint(1, n_turns))
        talks.append([turn for w in told for turn in (("user", w), ("assistant", w))])
    return talks


def prepare_chats(records: list[dict[str, Any]], folder: Path, name: str, like: Path) -> DataFolder:
    """Prepare conversations for the vocabulary of ``like``."""
    file, out = folder / f"{name}.jsonl", folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = ChatsConfig(tokenizer=str(like), context=32, val_fraction=0.2)
    sources = find_sources([file])
    prepare_corpus(
        sources, config, out, lambda name, size: lambda n_bytes: None, read=read_conversations
    )
    return open_data(out)


def two_answers(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs in which the answer to a word is to be that word, not "no"."""
    draw = random.Random(seed)
    known = [word for word in SENTENCE.split() if word.isascii()]  # the other letter is rare
    words = [" ".join(draw.choices(known, k=2)) for _ in range(n)]
    return [{"prompt": word, "chosen": "grain", "rejected": "stone"} for word in words]
