"""Sources -> documents: where text files, JSON lines and data sets become one stream.

    path, folder, "-" --archives.leaves--> plain files --> Document, Document, ...

One plain file, one file in a tar, or one JSON line is one document, as UTF-8 bytes.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataError
from prepare.archives import HEAD_BYTES, Stream, UnreadableError, leaves
from prepare.config import PrepareConfig
from prepare.sources import CountedFile, Progress, Source

JSON_SUFFIXES = (".jsonl", ".ndjson")
BOM = b"\xef\xbb\xbf"  # a byte-order mark is not text
# Beyond this share of zero bytes a file is taken for binary: text has hardly any.
MAX_NUL_SHARE = 0.01


@dataclass(frozen=True)
class Document:
    """One document: valid UTF-8, and the name of the source it came from."""

    source: str
    text: bytes


@dataclass
class Findings:
    """What was met on the way: everything left out, and why."""

    skipped: list[dict[str, str]] = field(default_factory=list)
    n_empty: int = 0
    n_bad_bytes: int = 0  # documents that were not UTF-8 (or held lone surrogates)
    n_with_nul: int = 0

    def skip(self, name: str, reason: str) -> None:
        """Record a file or document that is left out."""
        self.skipped.append({"name": name, "reason": reason})

    def reasons(self) -> Counter[str]:
        """Count what was skipped by its reason."""
        return Counter(entry["reason"] for entry in self.skipped)


def read_documents(
    source: Source, config: PrepareConfig, findings: Findings, progress: Progress
) -> Iterator[Document]:
    """Yield the documents of one source, layer by layer, empty ones left out and counted.

    Raises: DataError naming the file (and the line or the byte) for whatever cannot be read.
    """
    try:
        with io.BufferedReader(CountedFile(source.path, progress), 1 << 20) as stream:
            for name, leaf in leaves(source.name, stream):
                try:
                    for text in _texts(name, leaf, config, findings):
                        yield Document(source.name, text)
                except UnreadableError:
                    if source.named and name == source.name:
                        raise
                    findings.skip(name, "binary, not text")
    except OSError as error:
        raise DataError(f"{source.name}: cannot be read ({error.strerror or error}).") from error


def _texts(name: str, leaf: Stream, config: PrepareConfig, findings: Findings) -> Iterator[bytes]:
    if _is_json_lines(name, leaf, config.text_key):
        raw_texts = _json_lines(name, leaf, config, findings)
    else:
        raw_texts = _plain_texts(name, leaf, config, findings)
    for text in raw_texts:
        if not text.strip():
            findings.n_empty += 1
            continue
        findings.n_with_nul += b"\0" in text
        yield text


def _is_json_lines(name: str, leaf: Stream, text_key: str) -> bool:
    if name.endswith(JSON_SUFFIXES):
        return True
    head = leaf.peek()
    first_line, end, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    if not first_line.startswith(b"{"):
        return False
    if not end and len(head) >= HEAD_BYTES:  # longer than can be looked at: the key has to do
        return json.dumps(text_key, ensure_ascii=False).encode("utf-8", "replace") in first_line
    try:
        return text_key in json.loads(first_line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False


def _plain_texts(
    name: str, leaf: Stream, config: PrepareConfig, findings: Findings
) -> Iterator[bytes]:
    raw = leaf.read().removeprefix(BOM)
    if raw.count(0) > MAX_NUL_SHARE * len(raw):
        raise UnreadableError(
            f"{name}: binary, not text: {raw.count(0):,} of its {len(raw):,} bytes are zero. "
            "Name text files, or archives of them."
        )
    pieces, separator = [raw], b""
    if config.separator:
        separator = _unescaped(config.separator).encode("utf-8", "surrogateescape")
        pieces = raw.split(separator)
    offset = 0
    for piece in pieces:
        text = _as_utf8(piece, f"{name}, byte {offset:,}", config, findings)
        if text is not None:
            yield text
        offset += len(piece) + len(separator)


def _unescaped(separator: str) -> str:
    return separator.replace(r"\n", "\n").replace(r"\t", "\t")


def _json_lines(
    name: str, leaf: Stream, config: PrepareConfig, findings: Findings
) -> Iterator[bytes]:
    # A binary stream ends lines at \n only; str.splitlines() would also cut at U+2028 and others.
    for number, line in enumerate(leaf, start=1):
        where = f"{name}, line {number:,}"
        if not line.strip():
            continue
        decoded = _as_utf8(line, where, config, findings)
        if decoded is None:
            continue
        try:
            record = json.loads(decoded)
        except (ValueError, RecursionError) as error:  # the latter: brackets in brackets for ever
            raise DataError(
                f"{where}: not a JSON object ({error}). Found {decoded[:40]!r}; each line must be "
                "one object."
            ) from error
        text = record.get(config.text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f"{where}: no text under the key {config.text_key!r}; found "
                f"{_keys(record)}. Name the right one: --text-key."
            )
        yield _without_surrogates(text, findings)


def _keys(record: Any) -> str:
    if not isinstance(record, dict):
        return f"a {type(record).__name__} instead of an object"
    return "the keys " + ", ".join(repr(key) for key in list(record)[:10])


def _without_surrogates(text: str, findings: Findings) -> bytes:
    """Encode, halves of a pair joined, a lone surrogate (JSON can write one) becoming U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        findings.n_bad_bytes += 1
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def _as_utf8(raw: bytes, where: str, config: PrepareConfig, findings: Findings) -> bytes | None:
    """Return ``raw`` if it is UTF-8, else what --on-bad-bytes says: mended, None, or an error."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if config.on_bad_bytes == "fail":
            raise DataError(
                f"{where}: byte {error.start:,} from there, {raw[error.start]:#04x}, is not UTF-8. "
                "Convert the file, or pass --on-bad-bytes replace."
            ) from error
        findings.n_bad_bytes += 1
        if config.on_bad_bytes == "skip":
            findings.skip(where, "not UTF-8")
            return None
        return raw.decode("utf-8", "replace").encode("utf-8")
    return raw


def read_dataset(name: str, config: PrepareConfig, findings: Findings) -> Iterator[Document]:
    """Yield the texts of a Hugging Face data set: a folder saved by it, or streamed from the hub.

    Raises: DataError when it cannot be opened, or lacks the column.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "--dataset needs the package datasets: .venv/bin/pip install -r requirements.txt"
        ) from error
    try:
        if Path(name, "dataset_info.json").exists() or Path(name, "dataset_dict.json").exists():
            rows = datasets.load_from_disk(name)
            rows = rows["train"] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(name, split="train", streaming=True)
        for number, row in enumerate(rows):
            text = row.get(config.text_key)
            if not isinstance(text, str):
                raise DataError(
                    f"{name}, row {number:,}: no text in column {config.text_key!r}; found "
                    f"{_keys(row)}. Name the right one: --text-key."
                )
            if text.strip():
                yield Document(name, _without_surrogates(text, findings))
            else:
                findings.n_empty += 1
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"--dataset {name}: cannot be opened ({error}). Check the name and the network, or "
            "save it into a folder with save_to_disk and name the folder."
        ) from error
