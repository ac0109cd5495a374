"""The fields of a GGUF header: numbers, strings and arrays, each checked before it is used.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every number becomes a Python int
first, since NumPy's wrap; `Cursor.take` compares with the file's size before any slice, since NumPy's
slices clamp. Strings are copied only up to a bound, arrays never.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from hotcold.errors import printable
from hotcold.gguf_io.errors import (
    CUT,
    DAMAGED,
    CountError,
    GGUFError,
    MetadataError,
    TruncatedError,
    excerpt,
)

Bytes = NDArray[np.uint8]

V = GGUFValueType
MAX_DEPTH = 8  # of arrays in arrays; no model has more than one
MAX_NESTED = 4_096  # arrays inside arrays in one file; each is an object of its own
MAX_STRINGS = 1 << 22  # in all arrays of one file; the largest vocabularies have 300,000
MAX_KEY_BYTES = 65_535
LARGEST_FILE = 1 << 48  # bytes; file systems and address spaces end there
MAX_STRING_BYTES = 1 << 26  # of all strings that stand alone, which are copied; tokenizers take a few MB
SCALARS: dict[GGUFValueType, str] = {
    V.UINT8: "<u1",
    V.INT8: "<i1",
    V.UINT16: "<u2",
    V.INT16: "<i2",
    V.UINT32: "<u4",
    V.INT32: "<i4",
    V.FLOAT32: "<f4",
    V.UINT64: "<u8",
    V.INT64: "<i8",
    V.FLOAT64: "<f8",
    V.BOOL: "<u1",
}


class StringArray(Sequence[bytes]):
    """Strings of a metadata array, cut out of the map when asked for.

    Args:
        data: the whole file.
        starts: int64 [n + 1], where each string's bytes begin; 8 bytes of length lie between two.
    """

    def __init__(self, data: memoryview, starts: NDArray[np.int64]) -> None:
        self._data, self._starts = data, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> list[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | list[bytes]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return bytes(self._data[int(self._starts[i]) : int(self._starts[i + 1]) - 8])

    def __iter__(self) -> Iterator[bytes]:
        starts = self._starts.tolist()
        for start, following in pairwise(starts):
            yield bytes(self._data[start : following - 8])


class Cursor:
    """Reads little-endian fields in order and refuses every step past the end."""

    def __init__(self, name: str, data: memoryview) -> None:
        self.name, self.data, self.at = name, data, 0
        self._n_nested = self._n_strings = self._n_string_bytes = 0

    @property
    def left(self) -> int:
        """Bytes behind the cursor."""
        return len(self.data) - self.at

    def take(self, n_bytes: int, what: str) -> int:
        """Step over n bytes; where they begin."""
        if n_bytes > self.left:
            raise TruncatedError(
                f"{self.name}: {what} at byte {self.at}",
                f"{n_bytes} bytes",
                f"{self.left} bytes are left in the file",
                CUT,
            )
        start = self.at
        self.at += n_bytes
        return start

    def number(self, form: str, what: str) -> int:
        """One integer by struct's format letter."""
        start = self.take(struct.calcsize("<" + form), what)
        return int(struct.unpack_from("<" + form, self.data, start)[0])

    def count(self, what: str, smallest: int, limit: int | None = None, used: int = 0) -> int:
        """A u64 that counts things of at least `smallest` bytes each, which still follow.

        `limit` bounds what a hostile file can cost where each thing takes memory; `used` of it are gone.
        """
        value = self.number("Q", what)
        left = None if limit is None else limit - used
        if value * smallest > self.left:
            bound = f"at most {self.left // smallest} fit in the {self.left} bytes that follow"
            possible = value * smallest <= LARGEST_FILE and (left is None or value <= left)
            raise self._past_the_end(what, value, bound, possible)
        if left is not None and value > left:
            bound = f"at most {left}" + (f" more, {limit} in one file" if used else "")
            raise CountError(f"{self.name}: {what}", value, bound, DAMAGED)
        return value

    def _past_the_end(self, what: str, value: int, bound: str, possible: bool) -> GGUFError:
        """A number that a whole file may have says that this one is cut; any other, that it is damaged."""
        kind, next_step = (TruncatedError, CUT) if possible else (CountError, DAMAGED)
        return kind(f"{self.name}: {what}", value, bound, next_step)

    def string(self, what: str) -> str | bytes:
        """A u64 length and that many bytes: str, or bytes where they are no UTF-8."""
        n = self.count(f"length of {what}", 1, MAX_STRING_BYTES, self._n_string_bytes)
        self._n_string_bytes += n
        start = self.take(n, what)
        raw = self.data[start : start + n]
        try:
            return str(raw, "utf-8")  # straight from the map: no second copy
        except UnicodeDecodeError:
            return bytes(raw)

    def text(self, what: str, largest: int, refusal: type[GGUFError]) -> str:
        """A name: UTF-8, printable (it reaches terminals and pages), 1 to `largest` bytes."""
        n = self.number("Q", f"length of {what}")
        if not 1 <= n <= largest:
            raise refusal(f"{self.name}: length of {what}", n, f"1 to {largest} bytes", DAMAGED)
        start = self.take(n, what)
        raw = bytes(self.data[start : start + n])
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise refusal(f"{self.name}: {what}", excerpt(raw), "must be UTF-8", DAMAGED) from error
        if printable(name) != name:
            raise refusal(f"{self.name}: {what}", excerpt(name), "printable characters only", DAMAGED)
        return name

    def entry_follows(self) -> bool:
        """Whether the next bytes read like one more metadata pair or tensor: a name and a small number."""
        probe = Cursor(self.name, self.data)
        probe.at = self.at
        try:
            probe.text("name", MAX_KEY_BYTES, CountError)
            return probe.number("I", "number") <= max(V)
        except GGUFError:
            return False

    def value_type(self, what: str) -> GGUFValueType:
        """A value type's id."""
        number = self.number("I", what)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise MetadataError(f"{self.name}: {what}", number, f"0 to {max(V)}", DAMAGED) from error

    def value(self, kind: GGUFValueType, what: str, depth: int = 0) -> Any:
        """A value of this type: a Python scalar, str, NumPy view or StringArray.

        A string that is no UTF-8 comes as bytes.
        """
        if kind == V.STRING:
            return self.string(what)
        if kind == V.ARRAY:
            return self._array(what, depth)
        return self._numbers(kind, 1, what)[0].item()

    def element_type(self, start: int) -> GGUFValueType:
        """The element type of an array that has been read from byte `start`."""
        return GGUFValueType(int.from_bytes(self.data[start : start + 4], "little"))

    def _array(self, what: str, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            raise MetadataError(
                f"{self.name}: nesting of {what}",
                f"over {depth} arrays deep",
                f"at most {MAX_DEPTH}",
                DAMAGED,
            )
        kind = self.value_type(f"element type of {what}")
        smallest = {V.STRING: 8, V.ARRAY: 12}.get(kind) or np.dtype(SCALARS[kind]).itemsize
        limits = {V.STRING: (MAX_STRINGS, self._n_strings), V.ARRAY: (MAX_NESTED, self._n_nested)}
        n = self.count(f"length of {what}", smallest, *limits.get(kind, ()))
        if kind == V.STRING:
            self._n_strings += n
            return self._strings(n, what)
        if kind == V.ARRAY:
            self._n_nested += n
            return [self._array(what, depth + 1) for _ in range(n)]
        return self._numbers(kind, n, what)

    def _numbers(self, kind: GGUFValueType, n: int, what: str) -> NDArray[Any]:
        """A view of n numbers; bools are checked to be 0 or 1."""
        dtype = np.dtype(SCALARS[kind])
        start = self.take(n * dtype.itemsize, what)
        view: NDArray[Any] = np.frombuffer(self.data, dtype, n, start)
        if kind != V.BOOL:
            return view
        if n and view.max() > 1:
            raise MetadataError(f"{self.name}: {what}", int(view.max()), "a bool is 0 or 1", DAMAGED)
        return view.view(np.bool_)

    def _strings(self, n: int, what: str) -> StringArray:
        starts = array("q")
        record = starts.append
        unpack = struct.Struct("<Q").unpack_from
        data, at, end = self.data, self.at, len(self.data)
        for i in range(n):
            if at + 8 > end:
                self.at = at
                self.take(8, f"length of string {i} of {what}")
            (size,) = unpack(data, at)
            at += 8
            if size > end - at:
                bound = f"{end - at} bytes are left in the file"
                possible = size <= MAX_STRING_BYTES
                raise self._past_the_end(f"length of string {i} of {what}", size, bound, possible)
            record(at)
            at += size
        self.at = at
        record(at + 8)
        return StringArray(data, np.frombuffer(starts, np.int64))
