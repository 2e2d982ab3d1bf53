"""What is left out: a file, or the rest of one, whose error does not end the run."""

import re
from collections.abc import Iterator

from common.errors import DataError
from prepare.config import PrepareConfig
from prepare.readers.chunks import DROP, Chunk
from prepare.stats import Stats, UnreadableError


def skip_errors(
    name: str, chunks: Iterator[Chunk], config: PrepareConfig, stats: Stats, *, is_found: bool
) -> Iterator[Chunk]:
    """Yield ``chunks``; an error ends them, and is listed, where --on-error is skip.

    So does a file without text that was found in a folder or an archive, and not named.

    Raises: DataError, for what cannot be read too, where it is not to be skipped.
    """
    try:
        yield from chunks
        return
    except OSError as error:
        message = f"{name}: cannot be read ({error.strerror or error})."
        if config.on_error == "fail":
            raise DataError(message) from error
    except DataError as error:
        message = error.message
        if config.on_error == "fail" and not (is_found and isinstance(error, UnreadableError)):
            raise
    yield b"", DROP
    # a reason ends before any number, so that alike ones are one
    _, _, what = message.removeprefix(name).partition(": ")
    reason = re.split(r",? (?:at|before) byte|,? \d|[:;.(]", what)[0].strip()
    stats.skip(name, reason, message)
