"""The members of a zip, as zipfile reads them: stored or deflated, and the directory checked.

The other methods are refused: zipfile expands them without a bound, bzip2's 277 bytes to 200 MB.
"""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter
from typing import Any

from common.errors import DataError
from prepare.archives.streams import (
    HEAD_BYTES,
    Entries,
    ExpansionLimit,
    Stream,
    damage_as_data_error,
    seekable,
    stream_of,
)
from prepare.chunks import UnreadableError

MEMBER_MAGIC, END_MAGIC = b"PK\x03\x04", b"PK\x05\x06"
HEADER_BYTES, END_BYTES = 30, 22  # without names, extra fields and comments
BLOCK_BYTES = 1 << 17  # decompressed at a time
# What zipfile raises beside its own error comes from damaged or too new directories and headers.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError),
    *(OSError, EOFError, struct.error, zlib.error),
)


def zip_entries(name: str, stream: Stream, limit: ExpansionLimit) -> Entries:
    """Yield the regular files of a zip, in the order of its directory."""
    with seekable(stream) as file:
        with damage_as_data_error(name, "zip", ZIP_ERRORS):
            archive = zipfile.ZipFile(file)
            members = archive.infolist()
            file.seek(-END_BYTES - len(archive.comment), io.SEEK_END)
            end = file.read(END_BYTES)
        _check_directory(name, file, members, end)
        for member in members:
            if not (member.is_dir() or stat.S_ISLNK(member.external_attr >> 16)):
                blocks = _content(f"{name}/{member.filename}", archive, member, limit)
                buffer_bytes = min(HEAD_BYTES, max(1, member.file_size))
                yield member.filename, stream_of(blocks, buffer_bytes)


def _check_directory(name: str, file: Any, members: list[zipfile.ZipInfo], end: bytes) -> None:
    """Refuse office documents, two zips joined, of which the first is lost, and overlaps.

    Overlapping members let a small zip expand without end. Source: D. Fifield, A better zip bomb,
    WOOT 2019.
    """
    (n_members,) = struct.unpack_from("<H", end, 10)
    if not end.startswith(END_MAGIC) or n_members not in (len(members) & 0xFFFF, 0xFFFF):
        raise DataError(
            f"{name}: its directory has {len(members):,} members, but its end says "
            f"{n_members:,}, or something follows it. Fetch the file again."
        )
    names = [member.filename for member in members]
    if names[:1] == ["mimetype"] or "[Content_Types].xml" in names:
        raise UnreadableError(
            f"{name}: an office document or e-book, not text: save it as plain text."
        )
    ordered = sorted(members, key=attrgetter("header_offset"))
    file.seek(0)
    begins_with_member = file.read(4) == MEMBER_MAGIC
    if begins_with_member != bool(ordered) or (ordered and ordered[0].header_offset != 0):
        raise DataError(
            f"{name}: begins with something that its directory does not list: the file is damaged "
            "or two files were joined."
        )
    for one, after in pairwise(ordered):
        if one.header_offset + HEADER_BYTES + one.compress_size > after.header_offset:
            raise DataError(
                f"{name}: its members {one.filename!r} and {after.filename!r} overlap: the file "
                "is damaged, or made to harm."
            )


def _content(
    name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: ExpansionLimit
) -> Iterator[bytes]:
    """Yield the content of one member; zipfile checks its CRC."""
    if member.flag_bits & 1:
        raise DataError(f"{name}: encrypted: unpack the zip with its password and name the folder.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{name}: packed by zip's method {member.compress_type}, which is not supported: "
            "unpack the zip with '7z x' and name the folder."
        )
    n_out = 0
    with damage_as_data_error(name, "zip", ZIP_ERRORS), archive.open(member) as content:
        while block := content.read(BLOCK_BYTES):
            n_out += len(block)
            if member.compress_type == zipfile.ZIP_DEFLATED:
                limit.add(name, len(block))
            yield block
    if n_out != member.file_size:
        raise DataError(
            f"{name}: {n_out:,} bytes, but its zip promises {member.file_size:,}. "
            "Fetch the file again."
        )
