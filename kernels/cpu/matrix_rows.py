"""Rows of a matrix, as the emitters of dot products take them."""

from dataclasses import dataclass

from hotcold.kernels.cpu.simd import Builder, Value


@dataclass(frozen=True)
class MatrixRows:
    """Some rows in order.

    Attributes:
        w: address of the first.
        stride: bytes from row to row.
        n_rows: how many.
        k: numbers of a row.
        ahead: bytes from what is read to what is asked for meanwhile.
    """

    w: Value
    stride: Value
    n_rows: Value
    k: Value
    ahead: Value

    def row(self, b: Builder, r: Value) -> Value:
        """The address of row r."""
        return b.add(self.w, b.mul(self.stride, r))
