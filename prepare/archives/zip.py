"""The members of a zip: its directory read by zipfile, their content by bounded decoders."""

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any

from common.errors import DataError
from prepare.archives.codecs import (
    BZIP2,
    CHUNK_BYTES,
    XZ,
    ZSTD,
    Decoder,
    Deflate,
    ExpansionLimit,
    Input,
    decoded,
)
from prepare.archives.streams import HEAD_BYTES, ChunkReader, Entries, Span, Stream, seekable
from prepare.stats import UnreadableError

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # a member, or the end of a zip without any
ZIP_HEADER_BYTES, ZIP_END_BYTES = 30, 22  # without names, extra fields and comments
ZIP_STORED, ZIP_LZMA = 0, 14
ZIP_DECODERS: dict[int, Callable[[], Decoder]] = {  # by method; source: APPNOTE.TXT, section 4.4.5
    8: partial(Deflate, -zlib.MAX_WBITS),
    12: BZIP2.decoder,
    ZIP_LZMA: partial(lzma.LZMADecompressor, lzma.FORMAT_ALONE),
    93: ZSTD.decoder,
    95: XZ.decoder,
}


def zip_entries(name: str, stream: Stream, limit: ExpansionLimit) -> Entries:
    """Yield the regular files of a zip, in the order of its directory."""
    with seekable(stream) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                file.seek(-ZIP_END_BYTES - len(archive.comment), io.SEEK_END)
                end = file.read(ZIP_END_BYTES)
        # what zipfile raises beside its own error comes from damaged or too new directories
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            OverflowError,
            OSError,
            struct.error,
        ) as error:
            raise DataError(
                f"{name}: damaged or cut short zip ({error}). Fetch it again."
            ) from error
        # a damaged length in the directory can hide the members that come after it
        (n_members,) = struct.unpack_from("<H", end, 10)
        if not end.startswith(ZIP_MAGICS[1]) or n_members not in (len(members) & 0xFFFF, 0xFFFF):
            raise DataError(
                f"{name}: its directory has {len(members):,} members, but its end says "
                f"{n_members:,}, or something follows it. Fetch the file again."
            )
        _check_directory(name, file, members)
        for member in members:
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            if not member.is_dir() and not is_link:
                chunks = _content(f"{name}/{member.filename}", file, member, limit)
                held_bytes = min(HEAD_BYTES, max(1, member.file_size))
                yield member.filename, io.BufferedReader(ChunkReader(chunks), held_bytes)


def _check_directory(name: str, file: Any, members: list[zipfile.ZipInfo]) -> None:
    """Refuse office documents, two zips joined, and members that lie in one another.

    Of two zips the directory of the first is lost. Entries in one another let a small zip expand
    without end. Source: D. Fifield, A better zip bomb, WOOT 2019.
    """
    names = [member.filename for member in members]
    if names[:1] == ["mimetype"] or "[Content_Types].xml" in names:
        raise UnreadableError(
            f"{name}: an office document or e-book, not text: save it as plain text."
        )
    ordered = sorted(members, key=attrgetter("header_offset"))
    file.seek(0)
    begins_with_member = file.read(4) == ZIP_MAGICS[0]
    if begins_with_member != bool(ordered) or (ordered and ordered[0].header_offset != 0):
        raise DataError(
            f"{name}: begins with something that its directory does not list: the file is damaged "
            "or two files were joined."
        )
    for one, after in pairwise(ordered):
        if one.header_offset + ZIP_HEADER_BYTES + one.compress_size > after.header_offset:
            raise DataError(
                f"{name}: its members {one.filename!r} and {after.filename!r} overlap: the file "
                "is damaged, or made to harm."
            )


def _content(
    name: str, file: Any, member: zipfile.ZipInfo, limit: ExpansionLimit
) -> Iterator[bytes]:
    """Yield the content of one member, checked against its length and CRC.

    zipfile's own reader expands bzip2 and LZMA without a bound.
    """
    packed = _packed(name, file, member)
    if member.compress_type == ZIP_STORED:
        chunks: Iterator[bytes] = iter(partial(packed.read, CHUNK_BYTES), b"")
    else:
        decoder = ZIP_DECODERS[member.compress_type]()
        chunks = decoded(name, Input(packed), "zip", decoder, limit)
    n_out, crc = 0, 0
    for chunk in chunks:
        n_out += len(chunk)
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if (n_out, crc) != (member.file_size, member.CRC):
        raise DataError(
            f"{name}: {n_out:,} bytes with CRC {crc:08x}, but its zip promises "
            f"{member.file_size:,} with {member.CRC:08x}. Fetch the file again."
        )


def _packed(name: str, file: Any, member: zipfile.ZipInfo) -> Stream:
    """Return what is stored of a member, as a stream that begins as its decoder wants it."""
    method = member.compress_type
    if member.flag_bits & 1:
        raise DataError(f"{name}: encrypted: unpack the zip with its password and name the folder.")
    if method != ZIP_STORED and method not in ZIP_DECODERS:
        raise DataError(
            f"{name}: packed by zip's method {method}, which is not supported: unpack the zip "
            "with '7z x' and name the folder."
        )
    file.seek(member.header_offset)
    header = file.read(ZIP_HEADER_BYTES)
    if len(header) < ZIP_HEADER_BYTES or not header.startswith(ZIP_MAGICS[0]):
        raise DataError(
            f"{name}: its zip has it at byte {member.header_offset:,}, but no member begins there. "
            "Fetch the file again."
        )
    file.seek(sum(struct.unpack("<HH", header[26:])), io.SEEK_CUR)  # its name, and what is extra
    packed = io.BufferedReader(Span(name, file, member.compress_size), HEAD_BYTES)
    if method != ZIP_LZMA:
        return packed
    # zip's own header, of a version and the settings, becomes an .lzma file's: settings and size
    has_end_mark = member.flag_bits & 2
    size = b"\xff" * 8 if has_end_mark else member.file_size.to_bytes(8, "little")
    parts = chain([packed.read(9)[4:] + size], iter(partial(packed.read, CHUNK_BYTES), b""))
    return io.BufferedReader(ChunkReader(parts), HEAD_BYTES)
