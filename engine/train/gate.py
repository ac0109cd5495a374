"""The matrix that decides which neurons fire, some rows at a time: all of it as float32 may not fit the memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Layer, Weight
from hotcold.engine.train.arithmetic import F32
from hotcold.gguf_io.blocks import dequantize

ROWS = 1024  # at once


@dataclass(frozen=True)
class Gate:
    """Gate, or up where there is none, with the weight of the norm before it multiplied in.

    Attributes:
        rows: some of them, float32 [n, n_embd].
        centred: whether its inputs have no mean: the norm is a LayerNorm.
    """

    n_embd: int
    n_ff: int
    rows: Callable[[slice], F32]
    centred: bool = False


def deciding(layer: Layer) -> Weight:
    """The matrix that decides which neurons fire: gate, or up where there is none; of no mixture of experts."""
    return layer.up if layer.ffn_gate is None else layer.ffn_gate


def gate_of(store: HostStore, layer: Layer, read: Callable[[], None] = lambda: None) -> Gate:
    """A layer's.

    Args:
        read: is called behind each reading of the file.
    """
    weight, norm = deciding(layer), layer.ffn_norm if layer.ffn_norm is not None else layer.attn_norm
    bias = layer.ffn_norm_bias if layer.ffn_norm is not None else layer.attn_norm_bias
    factor = dequantize(store.rows(norm), norm.type)

    def rows(some: slice) -> F32:
        numbers = dequantize(store.rows(weight)[some], weight.type) * factor
        read()
        return numbers

    n_embd, n_ff = weight.ne
    return Gate(n_embd, n_ff, rows, centred=bias is not None)


def gate_of_matrix(matrix: F32) -> Gate:
    """A float32 matrix [n_ff, n_embd] as one."""
    n_ff, n_embd = matrix.shape
    return Gate(n_embd, n_ff, lambda some: np.asarray(matrix[some]))
