"""Sizes of expert_rows.cu."""

from dataclasses import dataclass

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import blocks_of_rows, kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.weight_table import device_row_bytes


@dataclass(frozen=True)
class ExpertProducts:
    """Products of experts' matrices with the tokens that go to them.

    Attributes:
        weight_type: of the matrices, with `n_rows` rows of `n` numbers each.
        n_used: experts a token.
    """

    weight_type: GGMLQuantizationType
    n_tokens: int
    n_used: int
    n_rows: int
    n: int

    @property
    def n_pairs(self) -> int:
        """Tokens with one of their experts."""
        return self.n_tokens * self.n_used

    @property
    def row_bytes(self) -> int:
        """Of a row on the device."""
        return device_row_bytes(self.weight_type, self.n)

    def input_bytes(self, n_inputs: int) -> int:
        """Of so many vectors as the matrices want them."""
        return input_bytes(self.weight_type, n_inputs, self.n)

    def work(self, kernel: str, per_row: int, bytes_read: int, n_written: int) -> Work:
        """A warp, or less, a row of each of `per_row` pairs or experts, which writes `n_written` numbers in all."""
        grid = (blocks_of_rows(self.n_rows, self.n, self.weight_type), per_row)
        return Work(kernel_name(kernel, self.weight_type), grid, BLOCK, bytes_read, 4 * n_written)


def expert_rows(
    products: ExpertProducts, n_here: int | None = None, *, per_pair: bool = False, has_bias: bool = False
) -> Work:
    """y[pair] = W_e x + bias_e of each token's experts that are on the device, one warp a row and pair, or less.

    Reads the rows of those experts, for each token again; the inputs; what was chosen and the experts' slots, once
    a pair; and the biases. Writes 4 n_rows a pair.

    Args:
        n_here: pairs whose expert is on the device; all if not given.
        per_pair: whether each pair has an input of its own.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; slots, chosen (int32), bias, y, n_rows, n,
    n_used, per_pair, has_bias, and the floats from one expert's bias to the next one's.
    """
    n_pairs = products.n_pairs
    here = n_pairs if n_here is None else n_here
    reads = here * products.n_rows * (products.row_bytes + 4 * has_bias) + 8 * n_pairs
    reads += products.input_bytes(here if per_pair else products.n_tokens)
    return products.work("expert_rows", n_pairs, reads, n_pairs * products.n_rows)
