"""Which archive a file is, by its first bytes; its name is only held to what it promises."""

import re
import tarfile

from common.errors import DataError

ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # behind one of 16 bytes
MAGICS: dict[str, tuple[bytes, ...]] = {
    "xz": (b"\xfd7zXZ\x00",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + ZSTD_SKIPPABLE_MAGIC for i in range(16))),
    "gzip": (b"\x1f\x8b\x08",),
    "bzip2": tuple(  # a block, or, where the content is empty, the end mark
        b"BZh%d" % level + mark for level in range(1, 10) for mark in (b"1AY&SY", b"\x17rE8P\x90")
    ),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),  # a member, or the end of a zip without any
}
UNSUPPORTED = {
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!\x1a\x07": ("rar", "unrar x"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d"),
    b"LZIP\x01": ("lzip", "lzip -d"),
    b"\x1f\x9d": ("compress", "gzip -d"),
}
ALL_MAGICS = (*UNSUPPORTED, *(magic for magics in MAGICS.values() for magic in magics))
COMPRESSED_EXTENSIONS = {".xz": "xz", ".zst": "zstd", ".gz": "gzip", ".bz2": "bzip2"}
EXTENSIONS = COMPRESSED_EXTENSIONS | {".tar": "tar", ".zip": "zip", ".7z": "7z"}
TAR_BLOCK_BYTES = 512
TAR_CHECKSUM = re.compile(rb"[ \0]*[0-7]+[ \0]|[ \0]*[0-7]{6,}|[\x80\xff]")  # octal, or binary


def archive_kind(name: str, head: bytes) -> str:
    """Return a key of MAGICS, "tar", or "" for a file that is no archive.

    Raises: DataError for an archive that is not supported, and one that is none but in its name.
    """
    if not head.startswith(ALL_MAGICS):
        if _begins_tar(head):
            return "tar"
        _check_extension(name, head)
        return ""
    for magic, (kind, command) in UNSUPPORTED.items():
        if head.startswith(magic):
            raise DataError(
                f"{name}: {kind} is not supported: unpack it with '{command}' and name the folder."
            )
    return next(kind for kind, magics in MAGICS.items() if head.startswith(magics))


def without_extension(name: str) -> str:
    """Return the name of what a compressed file holds."""
    extension = next((e for e in COMPRESSED_EXTENSIONS if name.endswith(e)), "")
    return name.removesuffix(extension)


def _begins_tar(head: bytes) -> bool:
    """Say whether content begins with a tar header whose checksum is right."""
    if len(head) < TAR_BLOCK_BYTES or not TAR_CHECKSUM.match(head, 148):  # as of text hardly ever
        return False
    try:
        header = tarfile.TarInfo.frombuf(head[:TAR_BLOCK_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return bool(header.name)


def _check_extension(name: str, head: bytes) -> None:
    if not name.endswith(tuple(EXTENSIONS)):
        return
    kind = next(kind for extension, kind in EXTENSIONS.items() if name.endswith(extension))
    found = f"begins with {head[:8]!r}" if head else "is empty (0 bytes)"
    raise DataError(
        f"{name}: named as {kind}, but the content is no archive: it {found}. It may be a failed "
        "download: fetch it again, or rename it if it is plain text."
    )
