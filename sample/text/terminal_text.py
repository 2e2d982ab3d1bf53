"""Text for a terminal, which obeys control characters: a network that read such may write them."""

import re
import sys

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape_controls(text: str) -> str:
    r"""Return ``text`` with what a terminal would obey spelled out, such as \x1b."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def for_stdout(text: str) -> str:
    """Return ``text`` as stdout may have it: controls are escaped where that is a terminal."""
    return escape_controls(text) if sys.stdout.isatty() else text
