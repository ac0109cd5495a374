"""Ends a text at the first of some strings, and holds back what may become one of them."""

from collections.abc import Iterator, Sequence

from hotcold.errors import SettingError


def checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings as a tuple; one string stands for itself.

    Raises:
        SettingError: one that is empty or no text.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise SettingError("stop string", repr(text), "text of at least one character", "leave it out")
    return stops


class StopStrings:
    """Text in pieces goes in, text in pieces comes out, without the stop string and what follows it.

    The stop string that is complete first counts, so it does not matter how the text is cut. It may stand
    in what is shown, or in that with the control pieces, which are hidden.

    Attributes:
        found: whether a stop string has been met; nothing comes out after it.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self.found = stops, False
        self._held, self._shown = "", list[int]()  # what is held back, and where in it a character is shown

    def feed(self, text: str, *, hidden: bool = False) -> str:
        """What can be shown now; of a hidden text nothing is shown."""
        if self.found or not text:
            return ""
        if not self._stops:
            return "" if hidden else text
        if not hidden:
            self._shown += range(len(self._held), len(self._held) + len(text))
        self._held += text
        shown = "".join(self._held[at] for at in self._shown)
        whole = range(len(self._held))
        places = [*self._places(self._held, whole), *self._places(shown, self._shown)]
        if places:
            self.found = True
            text = self._take(min(places)[1])
            self.end()
            return text
        return self._take(min(self._beginning(self._held, whole), self._beginning(shown, self._shown)))

    def end(self) -> str:
        """What was held back: no stop string can come of it any more."""
        return self._take(len(self._held))

    def _take(self, n: int) -> str:
        """The first n characters held back, without those that are hidden."""
        text = "".join(self._held[at] for at in self._shown if at < n)
        self._held, self._shown = self._held[n:], [at - n for at in self._shown if at >= n]
        return text

    def _places(self, text: str, at: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Where stop strings end and start, `at` being where the characters of `text` are held."""
        for stop in self._stops:
            if (start := text.find(stop)) >= 0:
                yield at[start + len(stop) - 1], at[start]

    def _beginning(self, text: str, at: Sequence[int]) -> int:
        """Where the longest end of `text` is held that begins a stop string; behind all, if there is none."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return at[-n]
        return len(self._held)
