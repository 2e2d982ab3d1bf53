"""Stop texts: a text that comes in pieces ends before the first of them, which is never shown.

They are matched on the text, so it does not matter where pieces or tokens begin; only what may yet
turn out to be the beginning of one is held back.
"""

from collections.abc import Sequence


class StopFilter:
    """What of a text may be shown so far; ``stopped`` once a stop text has come."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("an empty stop text is everywhere")
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next piece; return what may be shown now."""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            # the first that is complete, however the text is cut; of several the longest
            end, stop = min(found, key=lambda each: (each[0], -len(each[1])))
            return text[: end - len(stop)]
        n_shown = len(text) - self._n_held(text)
        self._held = text[n_shown:]
        return text[:n_shown]

    def end(self) -> str:
        """Return what was held back: nothing comes after it."""
        rest, self._held = self._held, ""
        return rest

    def _n_held(self, text: str) -> int:
        """Return how many of the last characters may be the beginning of a stop text."""
        longest = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:n]):
                    longest = n
                    break
        return longest
