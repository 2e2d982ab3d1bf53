"""Peel compression, tar and zip layers off a stream, by content, until only plain files are left.

    openwebtext.tar.xz -> xz -> tar -> urlsf_subset00-1_data.xz -> xz -> tar -> 0001.txt

Nothing is extracted under its name and no name is trusted: a layer is what its first bytes say it
is. A name is only held to what it promises: an .xz that is no archive at all is an error.
"""

import io
from collections.abc import Generator, Iterator
from contextlib import closing

from common.errors import DataError
from prepare.archives.codecs import CODECS, ExpansionLimit, codec_of, decompressed
from prepare.archives.prefetch import ahead
from prepare.archives.streams import HEAD_BYTES, ChunkReader, Entries, Stream
from prepare.archives.tar import begins_tar, tar_entries
from prepare.archives.zip import ZIP_MAGICS, zip_entries
from prepare.readers.chunks import MORE
from prepare.sources.discover import ReadCounter
from prepare.stats import Stats, UnreadableError

MAX_DEPTH = 8  # no corpus nests deeper; a file made to nest for ever does
EXTENSIONS = {codec.suffix: codec.name for codec in CODECS}
EXTENSIONS |= {".tar": "tar", ".zip": "zip", ".7z": "7z"}
UNSUPPORTED = {
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!\x1a\x07": ("rar", "unrar x"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d"),
    b"LZIP\x01": ("lzip", "lzip -d"),
    b"\x1f\x9d": ("compress", "gzip -d"),
}
MAGICS = (*UNSUPPORTED, *ZIP_MAGICS, *(magic for codec in CODECS for magic in codec.magics))


def iter_files(
    name: str,
    stream: Stream,
    limit: ExpansionLimit,
    stats: Stats,
    ahead_of: ReadCounter | None = None,
    depth: int = 0,
) -> Entries:
    """Yield (name, stream) of each plain file inside ``stream``; read one before taking the next.

    With the counter of the file that ``stream`` reads, its outermost layer is decompressed by a
    process of its own, which ends with this generator.

    Raises: DataError on truncated or corrupt layers, with the name and the offset; a stream that
    was yielded can raise it too, and UnreadableError for an office document.
    """
    if depth > MAX_DEPTH:
        raise DataError(f"{name}: more than {MAX_DEPTH} layers of archives inside one another.")
    head = stream.peek(HEAD_BYTES)
    if not head.startswith(MAGICS) and not begins_tar(head):
        _check_extension(name, head)
        yield name, stream
        return
    _refuse_unsupported(name, head)
    codec = codec_of(head)
    if codec is not None:
        chunks = decompressed(name, stream, codec, limit)
        if ahead_of:
            chunks = _decoded_ahead(chunks, ahead_of)
        with closing(chunks):
            inner = io.BufferedReader(ChunkReader(chunks), HEAD_BYTES)
            suffix = next((c.suffix for c in CODECS if name.endswith(c.suffix)), "")
            name = name.removesuffix(suffix)
            yield from iter_files(name, inner, limit, stats, depth=depth + 1)
        return
    if head.startswith(ZIP_MAGICS):
        members = zip_entries(name, stream, limit)
    else:
        members = tar_entries(name, stream, limit, stats)
    try:
        with closing(members):
            for member_name, member in members:
                inner_name = f"{name}/{member_name}"
                try:
                    yield from iter_files(inner_name, member, limit, stats, depth=depth + 1)
                except DataError as error:  # said when it is read, so that what follows can be too
                    yield inner_name, _refused(error)
    except UnreadableError as error:
        yield name, _refused(error)


def _decoded_ahead(chunks: Iterator[bytes], counter: ReadCounter) -> Generator[bytes]:
    with closing(ahead(((chunk, MORE) for chunk in chunks), counter, Stats())) as pieces:
        for chunk, _ in pieces:
            yield chunk


def _refused(error: DataError) -> Stream:
    def refuse() -> Iterator[bytes]:
        raise error
        yield b""

    return io.BufferedReader(ChunkReader(refuse()), HEAD_BYTES)


def _refuse_unsupported(name: str, head: bytes) -> None:
    for magic, (kind, command) in UNSUPPORTED.items():
        if head.startswith(magic):
            raise DataError(
                f"{name}: {kind} is not supported: unpack it with '{command}' and name the folder."
            )


def _check_extension(name: str, head: bytes) -> None:
    if not name.endswith(tuple(EXTENSIONS)):
        return
    kind = next(kind for suffix, kind in EXTENSIONS.items() if name.endswith(suffix))
    found = f"begins with {head[:8]!r}" if head else "is empty (0 bytes)"
    raise DataError(
        f"{name}: named as {kind}, but the content is no archive: it {found}. It may be a failed "
        "download: fetch it again, or rename it if it is plain text."
    )
