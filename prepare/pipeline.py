"""The chain of prepare, in order, with memory that does not grow with the corpus.

    sources -> documents -> first pass: how many, which vocabulary
                         -> second pass: (split, ids) -> data/

The sources are read twice where the vocabulary is learned from them or their number decides the
split, and once where neither is so.
"""

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.tokenfile import SPLITS, TokenWriter, commit, token_dtype
from common.tokenizer import CharTokenizer, Tokenizer
from prepare.config import PrepareConfig
from prepare.documents import (
    Document,
    Findings,
    read_dataset,
    read_documents,
)
from prepare.encode import EncodersDisagreeError, make_encoder
from prepare.scan import Scan, parts_of
from prepare.sources import Progress, Source
from prepare.split import MIN_DOCUMENTS
from prepare.vocabulary import (
    file_tokenizer,
    learn_bpe,
    parse_vocab_size,
    published_tokenizer,
)
from prepare.write import SplitWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """What to read: files, or the name of a Hugging Face data set."""

    sources: list[Source] = field(default_factory=list)
    dataset: str | None = None

    def documents(
        self, config: PrepareConfig, findings: Findings, progress: Progress
    ) -> Iterator[Document]:
        """Yield every document, in the order of the sources."""
        for source in self.sources:
            yield from read_documents(source, config, findings, progress)
        if self.dataset is not None:
            yield from read_dataset(self.dataset, config, findings)

    def sizes(self) -> list[tuple[str, int | None]]:
        """Return each source's name and bytes on disk, None for a data set."""
        sizes: list[tuple[str, int | None]] = [(s.name, s.size_bytes) for s in self.sources]
        return sizes + ([(self.dataset, None)] if self.dataset is not None else [])


def prepare_corpus(
    corpus: Corpus,
    config: PrepareConfig,
    out: Path,
    new_progress: Callable[[str], Progress],
) -> dict[str, Any]:
    """Write a data folder from ``corpus``; return its meta.json.

    ``new_progress`` is called with the name of each pass over the sources, and returns what is
    then called with the bytes read.

    Raises: UserError for whatever in the sources or settings cannot be used; the folder is then
    as it was before.
    """
    parse_vocab_size(config.vocab_size, 0)  # a typo is better said now than after the first pass
    if config.vocab_size != "auto" and config.tokenizer != "bpe":
        log.warning(
            "--vocab-size is ignored: only --tokenizer bpe learns a vocabulary of any size."
        )
    tokenizer = None if _learns(config) else _ready_tokenizer(config.tokenizer)
    scan = Scan(config)
    if tokenizer is None or config.split == "auto":
        findings = Findings()
        documents = corpus.documents(config, findings, new_progress("scan"))
        for document in documents if tokenizer is None else islice(documents, MIN_DOCUMENTS):
            scan.add(document)
        _refuse_empty(corpus, scan.n_documents, findings)
    if tokenizer is None:
        tokenizer = _learned_tokenizer(scan)
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            return _write(corpus, scan, tokenizer, out, new_progress, fast=True)
        except EncodersDisagreeError:
            log.warning("gigatoken gave other ids than tiktoken: encoding again with tiktoken.")
            return _write(corpus, scan, tokenizer, out, new_progress, fast=False)
    except OSError as error:  # those of reading are DataErrors already
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from error


def _learns(config: PrepareConfig) -> bool:
    return config.tokenizer in ("bpe", "char")


def _ready_tokenizer(name: str) -> Tokenizer:
    path = Path(name)
    return file_tokenizer(path) if path.is_file() else published_tokenizer(name)


def _learned_tokenizer(scan: Scan) -> Tokenizer:
    if scan.config.tokenizer == "char":
        return CharTokenizer(tuple(sorted(scan.characters)))
    n_train_bytes = int(scan.n_bytes * (1 - scan.config.val_fraction))
    vocab_size = parse_vocab_size(scan.config.vocab_size, n_train_bytes)
    return learn_bpe(scan.training_texts(), vocab_size)


def _refuse_empty(corpus: Corpus, n_documents: int, findings: Findings) -> None:
    if n_documents:
        return
    what = corpus.dataset or ", ".join(source.name for source in corpus.sources[:5])
    left_out = [f"{count:,} {reason}" for reason, count in findings.reasons().items()]
    left_out += [f"{findings.n_empty:,} empty"] if findings.n_empty else []
    raise DataError(
        f"{what}: no text found in {len(corpus.sources):,} files"
        + (f" (left out: {', '.join(left_out)})" if left_out else "")
        + ". Name text files, JSON lines, or archives of them."
    )


def _write(
    corpus: Corpus,
    scan: Scan,
    tokenizer: Tokenizer,
    out: Path,
    new_progress: Callable[[str], Progress],
    *,
    fast: bool,
) -> dict[str, Any]:
    """Second pass: encode every document into the files of its split, then commit them."""
    config, findings = scan.config, Findings()
    encoder_name, encode_batch = make_encoder(tokenizer, fast=fast)
    dtype = token_dtype(tokenizer.vocab_size)
    writers = {
        split: SplitWriter(TokenWriter(out, split, dtype), encode_batch, tokenizer.eot_id)
        for split in SPLITS
    }
    n_documents = 0
    try:
        for document in corpus.documents(config, findings, new_progress("encode")):
            n_documents += 1
            for split, text in parts_of(document.text, scan.rule, config).items():
                writers[split].add(document.source, text)
        _refuse_empty(corpus, n_documents, findings)
        if _learns(config) and n_documents != scan.n_documents:
            raise DataError(
                f"The sources changed while they were read: {scan.n_documents:,} documents at "
                f"first, then {n_documents:,}. Run it again when they are complete."
            )
        files: dict[str, dict[str, Any]] = {}
        for writer in writers.values():
            files |= writer.finish()
        meta = {
            "dtype": dtype.name,
            "split": {"rule": scan.rule, "val_fraction": config.val_fraction, "seed": config.seed},
            "splits": {split: writer.totals() for split, writer in writers.items()},
            "n_documents": n_documents,
            "sources": [
                {"name": name, "size_bytes": size_bytes}
                | {split: writers[split].counts_of(name) for split in SPLITS}
                for name, size_bytes in corpus.sizes()
            ],
            "skipped": findings.skipped,
            "n_empty": findings.n_empty,
            "n_bad_bytes": findings.n_bad_bytes,
            "n_with_nul": findings.n_with_nul,
            "encoder": encoder_name,
            "options": asdict(config),
            "versions": _versions(),
        }
        return commit(out, files, tokenizer, meta)
    finally:
        for writer in writers.values():
            writer.discard()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("numpy", "tiktoken", "gigatoken", "zstandard"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
