"""A vocabulary that was published, by tiktoken's name for it or as a .tiktoken file."""

import logging
from pathlib import Path

from common.dataset import META_NAME, open_data
from common.errors import DataError
from common.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    read_ranks,
    special_ids_after,
)

log = logging.getLogger(__name__)


def published_tokenizer(name: str) -> BytePairTokenizer:
    """Return the vocabulary of a .tiktoken file, or tiktoken's of this name.

    tiktoken's keeps its own end-of-text id; the other special tokens come after its last.

    Raises: DataError when tiktoken has no such name, or the file can neither be found nor fetched.
    """
    if Path(name).is_file():
        return file_tokenizer(Path(name))
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        raise DataError(
            f"--tokenizer {name}: not bpe, not char, no file of that name, and tiktoken knows only "
            f"{', '.join(sorted(tiktoken.list_encoding_names()))}."
        )
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DataError(
            f"--tokenizer {name}: its vocabulary is not on this machine and could not be fetched "
            f"({type(error).__name__}). Set TIKTOKEN_CACHE_DIR to a folder that holds it, or use "
            "--tokenizer bpe, which needs no network."
        ) from error
    after = [token for token in SPECIAL_TOKENS if token != END_OF_TEXT]
    special_tokens = {END_OF_TEXT: encoding.eot_token} | {
        token: encoding.n_vocab + i for i, token in enumerate(after)
    }
    return BytePairTokenizer(
        name, encoding._pat_str, dict(encoding._mergeable_ranks), special_tokens
    )


def file_tokenizer(path: Path) -> BytePairTokenizer:
    """Return the vocabulary in a .tiktoken file, with its own pattern if it lies in a data folder.

    A bare file carries no pattern; GPT-2's is used, and said.
    """
    if (path.parent / META_NAME).exists():
        tokenizer = open_data(path.parent).tokenizer()
        if isinstance(tokenizer, BytePairTokenizer) and path.name == tokenizer.file_name:
            return tokenizer
    log.warning("%s: such a file does not say how text is cut into words; using GPT-2's way.", path)
    ranks = read_ranks(path)
    return BytePairTokenizer(
        path.stem, GPT2_PATTERN, ranks, special_ids_after(max(ranks.values()) + 1)
    )
