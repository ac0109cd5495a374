"""Rows of a weight on a device."""

from dataclasses import dataclass

from hotcold.engine.model.model import Weight
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.weights import weight_planes


@dataclass(frozen=True)
class DeviceMatrix:
    """Rows of a weight on the device.

    Attributes:
        weight: of the file.
        n_rows: on the device.
        planes: as kernels take them.
    """

    weight: Weight
    n_rows: int
    planes: tuple[Buffer, ...]

    @property
    def n(self) -> int:
        """Length of a row."""
        return self.weight.ne[0]


def matrix_at(packed: Buffer, weight: Weight, n_rows: int) -> DeviceMatrix:
    """n rows of a weight whose planes lie in these bytes."""
    return DeviceMatrix(weight, n_rows, weight_planes(packed, weight.type, n_rows, weight.ne[0]))
