"""Text for a terminal, which obeys control characters: a network that read such may write them."""

import re
import sys

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape_controls(text: str) -> str:
    r"""Return ``text`` with what a terminal would obey spelled out, such as \x1b."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def write_stdout(text: str) -> None:
    """Write to stdout at once; control characters are escaped where that is a terminal."""
    sys.stdout.write(escape_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
