"""Typed access to a config.json: every field is checked when it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotcold.errors import FileError

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 4096
SMALLEST, LARGEST = 1e-30, 1e30  # far inside what a float32 holds


@dataclass(frozen=True)
class Fields:
    """A config.json, or an object inside it. A null is as good as nothing."""

    path: Path
    values: dict[str, Any]

    def wrong(self, name: str, bound: str, next_step: str = "correct config.json") -> FileError:
        """The refusal of a field."""
        value = repr(self.values[name])[:100] if self.values.get(name) is not None else "missing"
        return FileError(f"{self.path}: {name}", value, bound, next_step)

    def named(self, *names: str) -> str:
        """The first of these names that has a value, else the first of all."""
        return next((name for name in names if self.values.get(name) is not None), names[0])

    def size(self, name: str, default: int | None = None, largest: int = MAX_SIZE) -> int:
        """A whole number from 1 to `largest`."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= largest:
            raise self.wrong(name, f"a whole number from 1 to {largest}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not SMALLEST < value < LARGEST:
            raise self.wrong(name, f"a number from {SMALLEST} to {LARGEST}")
        return float(value)

    def positives(self, name: str, n: int) -> tuple[float, ...]:
        """A list of n numbers above 0."""
        values = self.values.get(name)
        if not isinstance(values, list) or len(values) != n:
            raise self.wrong(name, f"a list of {n} numbers")
        each = Fields(self.path, {f"{name}[{i}]": value for i, value in enumerate(values)})
        return tuple(each.positive(key) for key in each.values)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def only(self, name: str, wanted: bool, why: str) -> None:
        """Refuses a flag that says the opposite of `wanted`; without a word it says `wanted`."""
        if self.flag(name, wanted) is not wanted:
            raise self.wrong(name, why, "use another model")

    def choice(self, name: str, known: dict[str, str], default: str | None = None) -> str:
        """What one of the words in `known` stands for."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in known:
            raise self.wrong(name, f"supported: {', '.join(known)}", "use a model with one of them")
        return known[value]

    def token_ids(self) -> dict[str, int]:
        """bos, eos and pad; of several ids the first counts."""
        ids = {}
        for name in ("bos", "eos", "pad"):
            value = self.values.get(f"{name}_token_id")
            value = value[0] if isinstance(value, list) and value else value
            if type(value) is int and value >= 0:
                ids[name] = value
        return ids
