"""The embedded default corpus: real English about code, from the documentation on this machine.

    standard library, installed packages --ast--> docstrings
    pydoc_data.topics                    -------> the language reference
                                                   -> half .tar.xz, half .jsonl.zst

Needs no network, and gives the same bytes for the same environment: nothing is imported or run,
the order is that of names, and no time or owner is written.
"""

import ast
import hashlib
import io
import json
import lzma
import re
import sysconfig
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import zstandard

from common.errors import DataError
from common.files import atomic_write
from prepare.library import library

# Shorter docstrings are one-line labels, which teach a model to stop after a line.
MIN_CHARACTERS = 200
# More than a CPU reads in some minutes of training only makes preparing and evaluating slower.
MAX_CHARACTERS = 8_000_000
# Tests document themselves; lib2to3's fixtures and the like do not even parse.
LEFT_OUT_FOLDERS = {"test", "tests", "testing", "_vendor", "site-packages", "__pycache__"}
TAR_NAME, JSONL_NAME = "documentation.tar.xz", "documentation.jsonl.zst"


def documentation() -> list[tuple[str, str]]:
    """Return (name, text) of each document, sorted by name, no text twice.

    Files are read in the order of a hash of their names, so that the share that fits into
    MAX_CHARACTERS is drawn from every package alike.
    """
    # From text to name and back: two topics may share their text, as "if" and "else" do.
    names = {text.strip() + "\n": f"topics/{topic}.txt" for topic, text in topics.items()}
    names |= {entry.document: f"library/{entry.name}.txt" for entry in library()}
    n_characters = sum(map(len, names))
    told = {entry.text for entry in library()}
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib")}
    files = [(file.relative_to(root), file) for root in roots for file in Path(root).rglob("*.py")]
    for inside, file in sorted(files, key=_shuffled):
        if not LEFT_OUT_FOLDERS.isdisjoint(inside.parts[:-1]):
            continue
        for line, text in _docstrings(file):
            if text not in names and text not in told:
                names[text] = f"{inside.with_suffix('').as_posix()}-{line}.txt"
                n_characters += len(text)
        if n_characters >= MAX_CHARACTERS:
            break
    return sorted((name, text) for text, name in names.items())


def _shuffled(paths: tuple[Path, Path]) -> tuple[bytes, Path]:
    name = paths[0].as_posix().encode("utf-8", "replace")
    return hashlib.sha256(name).digest(), paths[1]


def _docstrings(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a strange escape in somebody's string is no news
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # templates and deliberately broken examples
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            is_text = not re.search("[\0\ud800-\udfff]", docstring)
            if len(docstring) >= MIN_CHARACTERS and is_text:
                yield getattr(node, "lineno", 0), docstring + "\n"


def write_corpus(folder: Path) -> tuple[int, int]:
    """Write the corpus into ``folder``; return its numbers of documents and of bytes of text.

    Each file appears under its name only when it is whole.
    """
    documents = [(name, text.encode("utf-8")) for name, text in documentation()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(folder / TAR_NAME) as file,
            lzma.open(file, "wb", preset=6) as compressed,
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, text in documents[::2]:
                member = tarfile.TarInfo(name)  # its time is 0 and its owner is nobody
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
        compressor = zstandard.ZstdCompressor(level=10, write_checksum=True)
        with (
            atomic_write(folder / JSONL_NAME) as file,
            compressor.stream_writer(file, closefd=False) as lines,
        ):
            for name, text in documents[1::2]:
                record = {"text": text.decode("utf-8"), "name": name}
                lines.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}).") from error
    return len(documents), sum(len(text) for _, text in documents)
