"""Ends a text at the first of some strings, and holds back what may become one of them."""

from collections.abc import Sequence

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

    The stop string that is complete first counts, so it does not matter how the text is cut.

    Attributes:
        found: whether a stop string has been met; nothing comes out after it.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held, self.found = stops, "", False

    def feed(self, text: str) -> str:
        """What can be shown now."""
        if self.found:
            return ""
        text = self._held + text
        places = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        shown = len(text) - self._longest_beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def end(self) -> str:
        """What was held back: no stop string can come of it any more."""
        text, self._held = self._held, ""
        return text

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0
