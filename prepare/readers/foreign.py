"""Files of formats that are no plain text, told by how they begin: what is done with each.

From subtitles, notebooks and what Common Crawl and WikiExtractor write the text is taken out. What
other markup holds is read with it, and said; what is no text at all is refused.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator

from common.errors import DataError
from prepare.archives.streams import HEAD_BYTES, Stream, stream_of
from prepare.chunks import END, MORE, Chunk, Stats, UnreadableError

Blocks = Iterator[bytes]

MAX_RECORD_BYTES = 256 << 20  # of a WARC, or of a notebook
START_BYTES = 200  # enough for the first lines of what is taken out
END_MARKS = (b"<|endoftext|>", b"<|end_of_text|>", b"</s>")
MANY_ENDS = 10  # lines that end in one of them
CUE_TIMES = re.compile(rb"\d+:\d\d:\d\d,\d{3}[ \t]+-->")
CUE_TAGS = re.compile(rb"</?(?:[biu]|font[^>]*)>|\{\\an\d\}")


def subtitle_text(blocks: Blocks) -> Iterator[Chunk]:
    """Yield the lines that are spoken in SubRip's subtitles, without numbers, times and tags."""
    held = b""
    for line in stream_of(blocks):
        if CUE_TIMES.match(line):
            held = b"" if held.strip().isdigit() else held
        else:
            yield held, MORE
            held = CUE_TAGS.sub(b"", line) if line.strip() else b""
    yield held, END


def doc_elements(blocks: Blocks) -> Iterator[Chunk]:
    """Yield the articles that WikiExtractor wrote between <doc ...> and </doc>."""
    lines: list[bytes] = []
    for line in stream_of(blocks):
        if line.startswith((b"<doc ", b"</doc>")):
            if lines:
                text = b"".join(lines).replace(b"&lt;", b"<").replace(b"&gt;", b">")
                yield text.replace(b"&amp;", b"&").strip(b"\n"), END
            lines = []
        else:
            lines.append(line)
    yield b"".join(lines), END


TEXT_TAKEN_OUT = {  # by how they begin
    re.compile(rb"\d+[ \t]*\r?\n" + CUE_TIMES.pattern): subtitle_text,
    re.compile(rb"<doc (?:id|url|title)="): doc_elements,
}
REFUSED = {  # what no person reads as it is -> how it begins, and what to do
    "RTF": (rb"\{\\rtf\d", "save it as plain text"),
    "PDF": (rb"%PDF-", "take its text out, as with pdftotext"),
    "PostScript": (rb"%!PS", "take its text out, as with ps2ascii"),
}
MARKED_UP = {  # what holds text of some worth beside its markup -> how it begins, and what to do
    "a dump of MediaWiki": (rb"<mediawiki\s", "WikiExtractor takes the text out, to be read here"),
    "HTML": (
        rb"(?i:(?:<\?xml[^>]*>\s*)?(?:<!--(?s:.)*?-->\s*)?<(?:!doctype\s+html|html[\s>]))",
        "trafilatura takes the text out",
    ),
    "XML": (rb"<\?xml\s", "take the text out of it"),
    "an mbox of mail": (
        rb"From \S+[ \t]+[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d",
        "Python's mailbox takes the text out",
    ),
    "subtitles in WebVTT": (rb"WEBVTT[ \t\r\n]", "of .srt the text alone is read"),
    "JSON in which no text was found": (
        rb'(?:\[\s*)?\{\s*"(?:[^"\\\n]|\\.)*"\s*:',
        "--text-key names the key that holds it",
    ),
}
SUFFIXES = {"html": "HTML", "htm": "HTML", "xhtml": "HTML", "mbox": "an mbox of mail"}
KNOWN = REFUSED | MARKED_UP
BEGINNINGS = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:%b)" % b"|".join(b"(%b)" % begins for begins, _ in KNOWN.values())
)


def text_taker(head: bytes) -> Callable[[Blocks], Iterator[Chunk]] | None:
    """Return what takes the documents out of the blocks of a file that begins so."""
    start = head.removeprefix(codecs.BOM_UTF8)[:START_BYTES].lstrip()
    return next((take for begins, take in TEXT_TAKEN_OUT.items() if begins.match(start)), None)


def warn_of_markup(name: str, head: bytes, separator: str | None, stats: Stats) -> None:
    """Record what is known of a text by its first bytes, or its name, and stays in it.

    Of a plain text that seems to be many documents say how to cut it. Raise UnreadableError for
    what is no text.
    """
    begins = BEGINNINGS.match(head)
    what = list(KNOWN)[begins.lastindex - 1] if begins and begins.lastindex else ""
    what = what or SUFFIXES.get(name.rpartition(".")[2].lower(), "")
    if what in REFUSED:
        raise UnreadableError(f"{name}: {what}, not plain text: {REFUSED[what][1]}.")
    if what:
        stats.warn(f"{name}: {what}, read with its markup: {MARKED_UP[what][1]}.")
        return
    for mark in () if separator else END_MARKS:
        if mark not in head:
            continue
        text = b"\n%b\n" % head.replace(b"\r\n", b"\n")
        n_lines, n_ends = (text.count(before + mark + b"\n") for before in (b"\n", b""))
        if n_lines > 1 or n_ends >= MANY_ENDS:  # less may be prose about it
            stats.warn(
                f"{name}: one document, with {n_ends:,} lines that end in {mark.decode()} "
                f"in its first {len(head):,} bytes: --separator '{mark.decode()}' cuts there."
            )


def special_reader(
    name: str, head: bytes
) -> Callable[[str, Stream, Stats], Iterator[Chunk]] | None:
    """Return what reads a notebook or a WARC, or None for any other file."""
    if name.endswith(".ipynb"):
        return notebook_documents
    return warc_documents if head.startswith(b"WARC/1.") else None


def notebook_documents(name: str, stream: Stream, stats: Stats) -> Iterator[Chunk]:
    """Yield what was typed into the cells of a Jupyter notebook, a blank line between two.

    Source: nbformat.readthedocs.io, The Notebook file format.
    """
    try:
        cells = json.loads(stream.read(MAX_RECORD_BYTES))["cells"]
        texts = ("".join(cell["source"]) for cell in cells)
        yield "\n\n".join(text for text in texts if text).encode("utf-8", "replace"), END
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"named as a notebook, but it is none ({error!r}): mend it, or rename it."
        raise UnreadableError(f"{name}: {message}") from error


def warc_documents(name: str, stream: Stream, stats: Stats) -> Iterator[Chunk]:
    """Yield the texts in a WET file of Common Crawl: the records of type conversion of a WARC.

    Source: IIPC, The WARC Format 1.1, section 4. Raise UnreadableError where it holds web pages.
    """
    while line := next((line for line in stream if line.strip()), b""):
        where = f"{name}, byte {stream.tell() - len(line):,}"
        fields = [line, *iter(lambda: stream.readline(HEAD_BYTES).strip(), b"")]
        known = {key.lower(): value for key, _, value in (f.partition(b":") for f in fields)}
        size = known.get(b"content-length", b"").strip()
        if not line.startswith(b"WARC/") or not size.isdigit() or int(size) > MAX_RECORD_BYTES:
            raise DataError(f"{where}: damaged: no header of a WARC's record. Fetch it again.")
        content = stream.read(int(size))
        if len(content) < int(size):
            raise DataError(f"{where}: cut short: {len(content):,} of {int(size):,} bytes of it.")
        kind = known.get(b"warc-type", b"").strip().decode("ascii", "replace")
        if kind == "conversion":
            text = content.decode("utf-8", "replace")
            stats.n_bad_bytes += "\ufffd" in text and text.encode() != content
            yield text.encode(), END
        elif kind != "warcinfo":
            raise UnreadableError(
                f"{name}: a WARC of web pages, with records of type {kind}: name the WET files of "
                "that crawl, which hold their text, or take it out, as with resiliparse."
            )
