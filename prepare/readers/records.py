"""A record, of JSON or a table, -> its text."""

from typing import Any

from common.errors import DataError

MAX_KEYS = 10  # of a record, that are shown
NOTHING = object()  # None stands for JSON's null


class NoTextError(DataError):
    """A record that has no text under the key."""


def record_text(record: Any, text_key: str, where: str) -> str:
    """Return the text of an object: under the key itself, else under a.b as b in a.

    It is a string, a list of strings, joined by a blank line, or null, which is empty.

    Raises: NoTextError.
    """
    value = value_at(record, text_key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n\n".join(value)
    if not isinstance(record, dict):
        found = f"a {type(record).__name__} instead of an object"
    elif record:
        found = "the keys " + ", ".join(map(repr, list(record)[:MAX_KEYS]))
    else:
        found = "an empty object"
    raise NoTextError(
        f"{where}: no text under the key {text_key!r}; found {found}. "
        "Name the right one: --text-key."
    )


def value_at(record: Any, text_key: str) -> Any:
    """Return what stands under the key, whole or as a path, or NOTHING."""
    if not isinstance(record, dict):
        return NOTHING
    if text_key in record:
        return record[text_key]
    first, _, others = text_key.partition(".")
    return value_at(record.get(first), others) if others else NOTHING


def to_utf8(text: str) -> tuple[bytes, bool]:
    """Encode; return also whether lone surrogates, which JSON can write, became U+FFFD."""
    try:
        return text.encode("utf-8"), False
    except UnicodeEncodeError:
        pairs = text.encode("utf-16", "surrogatepass")
        return pairs.decode("utf-16", "replace").encode("utf-8"), True
