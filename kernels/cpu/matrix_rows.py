"""Rows of a matrix, as the emitters of dot products take them."""

from dataclasses import dataclass

from hotcold.kernels.cpu.simd import I64, Builder, Value, load, room


@dataclass(frozen=True)
class MatrixRows:
    """Some rows in order, or those of a list.

    Attributes:
        w: address of the first, or of row 0 where there is a list.
        stride: bytes from row to row.
        n_rows: how many.
        k: numbers of a row.
        ahead: bytes from what is read to what is asked for meanwhile; with a list how many of its rows lie between.
        listed: address of the rows' numbers, int64, or 0 for rows in order; None where there is never a list.
    """

    w: Value
    stride: Value
    n_rows: Value
    k: Value
    ahead: Value
    listed: Value | None = None

    def row(self, b: Builder, i: Value) -> tuple[Value, Value]:
        """The address of the i-th row, and how many bytes from there lies what is asked for."""
        if self.listed is None:
            return b.add(self.w, b.mul(self.stride, i)), self.ahead
        has_list = b.icmp_signed("!=", self.listed, I64(0))
        # without a list a cell of the stack is read, and not looked at
        cells = b.select(has_list, self.listed, room(b, I64))
        last = b.sub(self.n_rows, I64(1))
        later = b.add(i, self.ahead)
        later = b.select(b.icmp_signed("<", later, last), later, last)
        r, then = (
            load(b, b.add(cells, b.select(has_list, b.mul(j, I64(8)), I64(0))), I64, align=8)
            for j in (i, later)
        )
        ahead = b.select(has_list, b.mul(b.sub(then, r), self.stride), self.ahead)
        return b.add(self.w, b.mul(self.stride, b.select(has_list, r, i))), ahead
