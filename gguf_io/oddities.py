"""What a vocabulary has that it should not, and is read all the same: counted, for one warning."""

from collections.abc import Callable

MAX_SURPLUS = 256  # pieces more than the model has rows: more than padding explains are another model's

REPEATED = "pieces that tokenizer.json or vocab.json lists again, of which the last counts"
EQUAL_PIECES = "pieces with the text of another one, which no text becomes"
ABSENT_MERGES = "merges of or into pieces that are not there, left out"
NO_ROW = "pieces for which the model has no row, left out"
NO_TYPE = "pieces of type 0, taken as normal"
GAPS = "ids without a piece below others, filled"
REPLACED = "pieces of another text than the added one of that id, replaced"
UNMADE = "pieces that no merge makes, which a text may become all the same"
UNNAMED_PAIRS = "pairs that make a piece by no merge, which may be joined all the same"


class Oddities:
    """Counts by what they are of."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count(self, what: str, n: int = 1) -> None:
        """`n` more of it."""
        if n:
            self._counts[what] = self._counts.get(what, 0) + n

    def of(self, what: str) -> Callable[[int], None]:
        """What counts it."""
        return lambda n: self.count(what, n)

    def warnings(self) -> tuple[str, ...]:
        """One line, or none."""
        found = [f"{what}: {n}" for what, n in self._counts.items()]
        return (f"odd vocabulary ({'; '.join(found)})",) if found else ()
