"""A line of the table: what was done, how often, and what went wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Cases of one kind, and a sentence for each that went wrong."""

    what: str
    n_cases: int
    detail: str
    wrong: list[str]
