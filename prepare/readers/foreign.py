"""Files of formats that are no plain text, told by how they begin: what is done with each.

From subtitles, notebooks and what Common Crawl and WikiExtractor write the text is taken out. What
other markup holds is read with it, and said; what is no text at all is refused.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.errors import DataError
from prepare.archives.streams import HEAD_BYTES, Stream, stream_of
from prepare.chunks import END, Chunk, Stats, UnreadableError

Blocks = Iterator[bytes]

MAX_NOTEBOOK_BYTES = 256 << 20
MAX_RECORD_BYTES = 256 << 20  # of a WARC
END_MARKS = (b"<|endoftext|>", b"<|end_of_text|>", b"</s>")
CUE_TIMES = re.compile(rb"\d+:\d\d:\d\d,\d{3}[ \t]+-->")
CUE_TAGS = re.compile(rb"</?(?:[biu]|font[^>]*)>|\{\\an\d\}")


def subtitle_text(blocks: Blocks) -> Blocks:
    """Yield the lines that are spoken in SubRip's subtitles, without numbers, times and tags."""
    held = b""
    for line in stream_of(blocks):
        if CUE_TIMES.match(line):
            held = b"" if held.strip().isdigit() else held
        else:
            yield held
            held = CUE_TAGS.sub(b"", line) if line.strip() else b""
    yield held


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


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of files, and what is done with one."""

    what: str
    begins: bytes  # a pattern
    suffixes: tuple[str, ...] = ()  # of names that tell it, too
    advice: str = ""
    is_text: bool = True  # of some worth though its markup stays in
    text: Callable[[Blocks], Blocks] | None = None  # takes it out
    documents: Callable[[Blocks], Iterator[Chunk]] | None = None  # takes them out


FORMATS = (
    Format(what="subtitles", begins=rb"\d+[ \t]*\r?\n" + CUE_TIMES.pattern, text=subtitle_text),
    Format(what="WikiExtractor", begins=rb"<doc (?:id|url|title)=", documents=doc_elements),
    Format(
        what="RTF, not plain text",
        begins=rb"\{\\rtf\d",
        advice="save it as plain text",
        is_text=False,
    ),
    Format(
        what="PDF, not plain text",
        begins=rb"%PDF-",
        advice="take its text out, as with pdftotext",
        is_text=False,
    ),
    Format(
        what="PostScript, not plain text",
        begins=rb"%!PS",
        advice="take its text out, as with ps2ascii",
        is_text=False,
    ),
    Format(
        what="a dump of MediaWiki",
        begins=rb"<mediawiki\s",
        advice="WikiExtractor takes the text out, and what it writes is read",
    ),
    Format(
        what="HTML",
        begins=rb"(?i:(?:<\?xml[^>]*>\s*)?(?:<!--(?s:.)*?-->\s*)?<(?:!doctype\s+html|html[\s>]))",
        suffixes=("html", "htm", "xhtml"),
        advice="trafilatura takes the text out",
    ),
    Format(what="XML", begins=rb"<\?xml\s", advice="take the text out of it"),
    Format(
        what="an mbox of mail",
        begins=rb"From \S+[ \t]+[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d",
        suffixes=("mbox",),
        advice="Python's mailbox takes the text out",
    ),
    Format(what="a mail", begins=rb"(?!)", suffixes=("eml",), advice="take the text out of it"),
    Format(
        what="subtitles in WebVTT",
        begins=rb"WEBVTT[ \t\r\n]",
        advice="as .srt the text alone is read",
    ),
    Format(
        what="JSON in which no text was found",
        begins=rb'(?:\[\s*)?\{\s*"(?:[^"\\\n]|\\.)*"\s*:',
        advice="--text-key names the key that holds it",
    ),
)
BEGINNINGS = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:%b)" % b"|".join(b"(%b)" % known.begins for known in FORMATS)
)
SUFFIXES = {suffix: known for known in FORMATS for suffix in known.suffixes}


def format_of(name: str, head: bytes, separator: str | None, stats: Stats) -> Format | None:
    """Return the format of a text, by its first bytes or its name; warn of markup that stays in.

    Raise UnreadableError for what is no text. Of a plain text that seems to be many documents say
    how to cut it.
    """
    begins = BEGINNINGS.match(head)
    known = FORMATS[begins.lastindex - 1] if begins and begins.lastindex else None
    known = known or SUFFIXES.get(name.rpartition(".")[2].lower())
    if known and not known.is_text:
        raise UnreadableError(f"{name}: {known.what}: {known.advice}.")
    if known and known.advice:
        stats.warn(f"{name}: {known.what}, read with its markup: {known.advice}.")
    elif not (known or separator):
        for mark in END_MARKS:
            # at the end of lines, where it ends documents; in prose one writes about it
            if (n_marks := head.count(mark + b"\n") + head.count(mark + b"\r\n")) > 1:
                stats.warn(
                    f"{name}: one document, with {n_marks:,} lines that end in {mark.decode()} "
                    f"in its first {len(head):,} bytes: --separator '{mark.decode()}' cuts there."
                )
    return known


def notebook_documents(name: str, stream: Stream) -> Iterator[Chunk]:
    """Yield what was typed into the cells of a Jupyter notebook, a blank line between two.

    Source: nbformat.readthedocs.io, The Notebook file format.
    """
    try:
        cells = json.loads(stream.read(MAX_NOTEBOOK_BYTES))["cells"]
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
