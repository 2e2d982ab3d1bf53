"""Statistics of reading: everything that was left out or changed, and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from common.errors import DataError

MAX_LISTED = 1_000  # by name; beyond that they are only counted, so that memory stays flat


class UnreadableError(DataError):
    """A file that holds no text: left out where it was found, an error where it was named."""


@dataclass
class Stats:
    """Counts that end up in meta.json."""

    skipped: list[dict[str, str]] = field(default_factory=list)  # at most MAX_LISTED
    reasons: Counter[str] = field(default_factory=Counter)  # of everything skipped
    warnings: list[str] = field(default_factory=list)  # sentences; nothing was left out for them
    encodings: Counter[str] = field(default_factory=Counter)  # of files that were not UTF-8
    n_empty: int = 0
    n_bad_bytes: int = 0  # documents that were not UTF-8 (or had lone surrogates)
    n_with_nul: int = 0
    n_crlf: int = 0  # plain files in which CR LF became LF
    n_forced_cuts: int = 0  # places where a run of MAX_CHUNK_BYTES without a border was cut

    def skip(self, name: str, reason: str, detail: str = "") -> None:
        """Record a file or document that is left out; ``reason`` is one of few."""
        self.reasons[reason] += 1
        if len(self.skipped) < MAX_LISTED:
            entry = {"name": name, "reason": reason}
            self.skipped.append(entry | {"detail": detail} if detail else entry)

    def warn(self, sentence: str) -> None:
        """Record what a person should know of though nothing was left out."""
        if len(self.warnings) < MAX_LISTED:
            self.warnings.append(sentence)

    def add(self, other: "Stats") -> None:
        """Add those of a later source."""
        for name, value in vars(other).items():
            total = getattr(self, name) + value
            setattr(self, name, total[:MAX_LISTED] if isinstance(total, list) else total)

    def as_json(self) -> dict[str, Any]:
        """Return it as meta.json holds it."""
        # not asdict: it takes a Counter's items for things to count
        return vars(self) | {"reasons": dict(self.reasons), "encodings": dict(self.encodings)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Stats":
        """Read back what ``as_json`` gave."""
        counters = {name: Counter(value[name]) for name in ("reasons", "encodings")}
        return cls(**value | counters)
