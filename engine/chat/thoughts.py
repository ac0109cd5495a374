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
    closing, held, fresh = MARKS.get(opened.strip(), ""), "", bool(opened)
    for piece in pieces:
        held += piece
        while True:
            if closing:
                before, found, after = held.partition(closing)
                held = after if found else before[_unsure(before, [closing]) :]
                if not found:
                    break
                closing, fresh = "", True
            if fresh:
                held = held.lstrip("\n")
                fresh = not held
            mark = min((mark for mark in MARKS if mark in held), key=held.index, default="")
            end = held.index(mark) if mark else _unsure(held, MARKS)
            if held[:end]:
                yield held[:end]
            if not mark:
                held = held[end:]
                break
            held, closing = held[end + len(mark) :], MARKS[mark]
    if held and not closing:
        yield held


def _unsure(text: str, marks: Iterable[str]) -> int:
    """Where in `text` its end begins that may become one of the marks; its length if none may."""
    ends = [len(text) - n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])]
    return min(ends, default=len(text))
