"""The members of a tar as they stream by, of every flavour that tarfile reads, strictly.

tarfile alone takes a damaged header for the end of the file, and loses what comes after it.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import Any

from common.errors import DataError
from prepare.archives.streams import (
    HEAD_BYTES,
    TAR_BLOCK_BYTES,
    Entries,
    Stream,
    damage_as_data_error,
    failing_stream,
    stream_of,
)
from prepare.chunks import Stats

SEEK_BYTES = 1 << 19  # read at a time to get past them
EXTENDED_TYPES = (b"x", b"g", b"X", b"L", b"K")  # headers of pax, of Solaris, GNU's long names
EXTENDED_HEADER_BYTES = 1 << 20  # of one: tarfile holds it whole
# The last three come from damaged extended headers.
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)


class _ForwardOnlyFile:
    """A stream that seeks forward only; tarfile's own never stops where a bad header sends it."""

    def __init__(self, stream: Stream) -> None:
        self.n_zero_blocks = 0  # since the last member
        self.tell, self.read = stream.tell, stream.read

    def seek(self, position: int) -> None:
        n_left = position - self.tell()
        if n_left < 0:
            raise tarfile.ReadError(f"sent back from byte {self.tell():,} to {position:,}")
        while n_left:
            n_read = len(self.read(min(n_left, SEEK_BYTES)))
            if not n_read:
                raise tarfile.ReadError("unexpected end of data")
            n_left -= n_read


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that is damaged, or cut, is an error: tarfile takes it for the end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_StrictTarInfo":
        member = cls._plain_file(buf, encoding, errors) or super().frombuf(buf, encoding, errors)
        if member.type in EXTENDED_TYPES and member.size > EXTENDED_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {member.size:,} bytes")
        return member

    @classmethod
    def _plain_file(cls, buf: bytes, encoding: str, errors: str) -> "_StrictTarInfo | None":
        """Return the header of a regular file as most are, in a third of the time, or None.

        Source of the fields: POSIX.1-2024, pax, ustar interchange format.
        """
        size, checksum = buf[124:135], buf[148:154]
        is_plain = (
            len(buf) == TAR_BLOCK_BYTES
            and buf[156:157] == tarfile.REGTYPE
            and buf[257:262] == b"ustar"
            and size.isdigit()
            and checksum.isdigit()
            and buf[345:346] == b"\0"  # its path is not in two parts
        )
        if not is_plain:
            return None
        try:
            # the checksum counts itself as eight blanks
            if sum(buf) - sum(buf[148:156]) + 8 * 32 != int(checksum, 8):
                return None
            member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
            member.size = int(size, 8)
            return member
        except ValueError:  # an 8 or a 9
            return None

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        file: Any = tar.fileobj
        try:
            member = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            file.n_zero_blocks += 1
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]  # the end of the file
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"bad header at byte {tar.offset:,} of the tar") from error
        file.n_zero_blocks = 0
        return member


def tar_entries(name: str, stream: Stream, stats: Stats) -> Entries:
    """Yield the regular files of a tar, and of tars joined behind it, as they stream by."""
    file: Any = _ForwardOnlyFile(stream)
    with (
        damage_as_data_error(name, "tar", TAR_ERRORS),
        tarfile.TarFile(
            fileobj=file,
            tarinfo=_StrictTarInfo,
            ignore_zeros=True,
            encoding="utf-8",
            errors="replace",  # names are only shown, and must be text to be written to meta.json
        ) as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header
            if member.isfile():
                yield member.name, _content(f"{name}/{member.name}", file, member)
            elif member.size and member.type not in tarfile.SUPPORTED_TYPES:
                stats.skip(f"{name}/{member.name}", "a tar member of an unknown kind")
    if file.n_zero_blocks < 2:
        stats.warn(
            f"{name}: ends without a tar's end mark: members may be missing. Compare it with its "
            "origin, or fetch it again."
        )


def _content(name: str, file: Any, member: tarfile.TarInfo) -> Stream:
    if member.size < 0:
        raise tarfile.ReadError(f"a size of {member.size:,} bytes")
    if member.issparse():
        message = "stored as a sparse file, which is not supported: unpack the tar with 'tar xf'"
        return failing_stream(DataError(f"{name}: {message} and name the folder."))
    if member.size > HEAD_BYTES:
        return stream_of(_blocks(name, file, member.size))
    content = b"".join(_blocks(name, file, member.size))
    return io.BufferedReader(io.BytesIO(content), max(1, member.size))


def _blocks(name: str, file: Any, n_left: int) -> Iterator[bytes]:
    while n_left:
        block = file.read(min(n_left, HEAD_BYTES))
        if not block:
            raise DataError(
                f"{name}: cut short inside its archive, {n_left:,} bytes before its end. "
                "Fetch it again."
            )
        n_left -= len(block)
        yield block
