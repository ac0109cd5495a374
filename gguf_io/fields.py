"""The fields of a GGUF header: numbers, strings and arrays, each checked before it is used.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every number becomes a Python int
first, since NumPy's wrap; `Cursor.take` compares with the file's size before any slice, since NumPy's
slices clamp.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from hotcold.errors import printable
from hotcold.gguf_io.errors import CountError, MetadataError, TruncatedError

Bytes = NDArray[np.uint8]

V = GGUFValueType
MAX_DEPTH = 8  # of arrays in arrays; no model has more than one
MAX_KEY_BYTES = 65_535
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
        data: the whole file. starts, sizes: int64, of each string's bytes.
    """

    def __init__(self, data: memoryview, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        self._data, self._starts, self._sizes = data, starts, sizes

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> list[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | list[bytes]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        start = int(self._starts[i])
        return bytes(self._data[start : start + int(self._sizes[i])])

    def __iter__(self) -> Iterator[bytes]:
        data = self._data
        for start, size in zip(self._starts.tolist(), self._sizes.tolist(), strict=True):
            yield bytes(data[start : start + size])


class Cursor:
    """Reads little-endian fields in order and refuses every step past the end."""

    def __init__(self, name: str, data: memoryview) -> None:
        self.name, self.data, self.at = name, data, 0

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
                "the file is cut short: download it again",
            )
        start = self.at
        self.at += n_bytes
        return start

    def number(self, form: str, what: str) -> int:
        """One integer by struct's format letter."""
        start = self.take(struct.calcsize("<" + form), what)
        return int(struct.unpack_from("<" + form, self.data, start)[0])

    def count(self, what: str, smallest: int) -> int:
        """A u64 that counts things of at least `smallest` bytes each, which still follow."""
        value = self.number("Q", what)
        if value * smallest > self.left:
            raise CountError(
                f"{self.name}: {what}",
                value,
                f"at most {self.left // smallest} fit in the {self.left} bytes that follow",
                "the file is damaged: download it again",
            )
        return value

    def string(self, what: str) -> bytes:
        """A u64 length and that many bytes."""
        n = self.count(f"length of {what}", 1)
        start = self.take(n, what)
        return bytes(self.data[start : start + n])

    def text(self, what: str, largest: int) -> str:
        """A name: UTF-8, printable, 1 to `largest` bytes."""
        raw = self.string(what)
        if not 1 <= len(raw) <= largest:
            raise MetadataError(f"{self.name}: {what}", f"{len(raw)} bytes", f"1 to {largest} bytes")
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise MetadataError(f"{self.name}: {what}", repr(raw[:40]), "must be UTF-8") from error
        if printable(name) != name:
            raise MetadataError(f"{self.name}: {what}", name[:80], "must hold no control characters")
        return name

    def value_type(self, what: str) -> GGUFValueType:
        """A value type's id."""
        number = self.number("I", what)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise MetadataError(f"{self.name}: {what}", number, f"0 to {max(V)}") from error

    def value(self, kind: GGUFValueType, what: str, depth: int = 0) -> Any:
        """A value of this type: a Python scalar, str, NumPy view or StringArray.

        A string that is no UTF-8 comes as bytes.
        """
        if kind == V.STRING:
            raw = self.string(what)
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw
        if kind == V.ARRAY:
            return self._array(what, depth)
        return self._numbers(kind, 1, what)[0].item()

    def _array(self, what: str, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            raise MetadataError(
                f"{self.name}: {what}", f"arrays nested over {depth} deep", f"at most {MAX_DEPTH}"
            )
        kind = self.value_type(f"element type of {what}")
        smallest = {V.STRING: 8, V.ARRAY: 12}.get(kind) or np.dtype(SCALARS[kind]).itemsize
        n = self.count(f"length of {what}", smallest)
        if kind == V.STRING:
            return self._strings(n, what)
        if kind == V.ARRAY:
            return [self._array(what, depth + 1) for _ in range(n)]
        return self._numbers(kind, n, what)

    def _numbers(self, kind: GGUFValueType, n: int, what: str) -> NDArray[Any]:
        """A view of n numbers; bools are checked to be 0 or 1."""
        dtype = np.dtype(SCALARS[kind])
        start = self.take(n * dtype.itemsize, what)
        view: NDArray[Any] = np.frombuffer(self.data, dtype, n, start) if n else np.empty(0, dtype)
        if kind != V.BOOL:
            return view
        if n and view.max() > 1:
            raise MetadataError(f"{self.name}: {what}", int(view.max()), "a bool is 0 or 1")
        return view.view(np.bool_)

    def _strings(self, n: int, what: str) -> StringArray:
        starts, sizes = np.empty(n, np.int64), np.empty(n, np.int64)
        data, at, end = self.data, self.at, len(self.data)
        unpack = struct.Struct("<Q").unpack_from
        for i in range(n):
            if at + 8 > end:
                self.at = at
                self.take(8, f"length of string {i} of {what}")
            (size,) = unpack(data, at)
            at += 8
            if size > end - at:
                self.at = at
                raise CountError(
                    f"{self.name}: length of string {i} of {what}",
                    size,
                    f"{end - at} bytes are left in the file",
                    "the file is damaged: download it again",
                )
            starts[i], sizes[i] = at, size
            at += size
        self.at = at
        return StringArray(data, starts, sizes)
