"""Harmony's channels, as gpt-oss writes them: what it thinks, and its answer, in messages of one text.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

Only what the final channel says is the answer; analysis, and commentary to tools, are thoughts (OpenAI's Harmony
response format).
"""

from collections.abc import Iterable, Iterator

from hotcold.engine.chat.thoughts import Unsure

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
FINAL = "final"
OPENING, CLOSING = "<think>", "</think>"


def writes_channels(template: str) -> bool:
    """Whether a chat template is of a model that answers in channels."""
    return CHANNEL in template and MESSAGE in template


def as_thoughts(pieces: Iterable[str], control: Iterable[str] = ()) -> Iterator[str]:
    """An answer in pieces, its control pieces shown, with the marks of a thought in place of channels.

    Args:
        control: texts of all control pieces; those that are no part of channels are left out.
    """
    channels = Channels(control)
    for piece in pieces:
        yield from filter(None, [channels.feed(piece)])
    yield from filter(None, [channels.end()])


class Channels:
    """Text with channels goes in, text with marks of thoughts comes out."""

    def __init__(self, control: Iterable[str] = ()) -> None:
        """Begin with an answer that has said no channel yet; `control`: see `as_thoughts`."""
        self._others = {*control} - {START, CHANNEL, MESSAGE, *ENDS}
        self._held = Unsure((START, CHANNEL, MESSAGE, *ENDS, *self._others))
        self._header: str | None = None  # what has been read of a header; None outside
        self._thinks = False

    def feed(self, piece: str) -> str:
        """What is certain now."""
        return "".join(map(self._take, self._held.feed(piece)))

    def end(self) -> str:
        """What was held back: no mark can come of it any more."""
        return "".join(map(self._take, self._held.end()))

    def _take(self, part: str) -> str:
        """A mark, or text between two."""
        if part in (START, CHANNEL):
            self._header = ""
        elif part == MESSAGE:
            was, self._thinks = self._thinks, not (self._header or FINAL).startswith(FINAL)
            self._header = None
            return (CLOSING if was else "") + (OPENING if self._thinks else "")
        elif part in ENDS:
            closing, self._thinks, self._header = CLOSING + "\n\n" if self._thinks else "", False, None
            return closing
        elif part in self._others:
            return ""
        elif self._header is None:
            return part
        else:
            self._header += part
        return ""
