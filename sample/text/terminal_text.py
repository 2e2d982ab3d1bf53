"""What goes to a terminal: text with its control characters escaped, and notices."""

import os
import re
import shutil
import sys
import textwrap

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Around what is marked in a notice: code points that no text holds (Unicode 16, section 23.7).
MARK, MARK_END = "\ufdd0", "\ufdd1"


def escape_controls(text: str) -> str:
    r"""Return ``text`` with what a terminal would obey spelled out, such as \x1b."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def write_stdout(text: str) -> None:
    """Write to stdout at once; control characters are escaped where that is a terminal."""
    sys.stdout.write(escape_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def notify(notice: str) -> None:
    """Write a notice to stderr, after all text so far; marks are underlined, or in brackets."""
    sys.stdout.flush()
    notice = escape_controls(notice)
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns
        notice = "\n".join(
            textwrap.fill(line, columns, break_on_hyphens=False) for line in notice.split("\n")
        )
    begin, end = ("\x1b[4m", "\x1b[24m") if _can_underline() else ("[", "]")
    marked = re.sub(f"{MARK}([^{MARK}]*){MARK_END}", rf"{begin}\1{end}", notice)
    sys.stderr.write(marked + "\n")
    sys.stderr.flush()


def _can_underline() -> bool:
    # Source: no-color.org
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stderr.isatty() and not plain
