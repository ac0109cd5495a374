"""What a model thinks before it answers: the marks around it, shown as they are or left out.

Many templates write the opening mark themselves, in front of the answer, so that a model's text begins in
the middle of a thought and only has the closing one.
"""

from collections.abc import Iterable, Iterator

MARKS = {  # what opens a thought, and what closes it
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}


def opened_thought(prompt: str) -> str:
    """The opening mark that a prompt ends with, as it is written there; "" where it opens no thought."""
    text = prompt.rstrip()
    return next((prompt[len(text) - len(mark) :] for mark in MARKS if text.endswith(mark)), "")


def without_thoughts(pieces: Iterable[str], opened: str = "") -> Iterator[str]:
    """An answer in pieces without what stands between marks, and the blank lines behind it.

    Args:
        opened: what `opened_thought` says of the prompt. A thought that nothing closes is left out whole.
    """
    parted = Parted(opened)
    for piece in pieces:
        yield from (text for is_thought, text in parted.feed(piece) if not is_thought)
    yield from (text for is_thought, text in parted.end() if not is_thought)


class Parted:
    """Text in pieces goes in; thoughts and answers come out as (is a thought, text), without their marks.

    Blank lines that a thought begins with, or that stand behind its end, come out of neither.
    """

    def __init__(self, opened: str = "") -> None:
        """Begin inside the thought that `opened` opens, if it is not empty; see `opened_thought`."""
        self._closing = MARKS.get(opened.strip(), "")
        self._held, self._fresh = "", bool(opened)

    def feed(self, piece: str) -> list[tuple[bool, str]]:
        """What is certain now."""
        self._held += piece
        parts = list[tuple[bool, str]]()
        while True:
            if self._fresh:
                self._held = self._held.lstrip("\n")
                self._fresh = not self._held
            marks = [self._closing] if self._closing else list(MARKS)
            mark = min((mark for mark in marks if mark in self._held), key=self._held.index, default="")
            end = self._held.index(mark) if mark else _unsure(self._held, marks)
            if self._held[:end]:
                parts.append((bool(self._closing), self._held[:end]))
            self._held = self._held[end + len(mark) :]
            if not mark:
                return parts
            self._closing, self._fresh = "" if self._closing else MARKS[mark], True

    def end(self) -> list[tuple[bool, str]]:
        """What was held back: no mark can come of it any more."""
        held, self._held = self._held, ""
        return [(bool(self._closing), held)] if held else []


class Unsure:
    """Text in pieces goes in; marks, and the text between them, come out, each whole."""

    def __init__(self, marks: Iterable[str]) -> None:
        """Look for these marks."""
        self._marks, self._held = tuple(marks), ""

    def feed(self, piece: str) -> Iterator[str]:
        """What is certain now."""
        self._held += piece
        while True:
            found = [mark for mark in self._marks if mark in self._held]
            mark = min(found, key=self._held.index, default="")
            end = self._held.index(mark) if mark else _unsure(self._held, self._marks)
            text, self._held = self._held[:end], self._held[end + len(mark) :]
            yield from filter(None, (text, mark))
            if not mark:
                return

    def end(self) -> Iterator[str]:
        """What was held back: no mark can come of it any more."""
        held, self._held = self._held, ""
        yield from filter(None, [held])


def _unsure(text: str, marks: Iterable[str]) -> int:
    """Where in `text` its end begins that may become one of the marks; its length if none may."""
    ends = [len(text) - n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])]
    return min(ends, default=len(text))
