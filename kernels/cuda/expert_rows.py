"""Sizes of expert_rows.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.weight_table import device_row_bytes


def expert_rows(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_used: int,
    n_rows: int,
    n: int,
    n_here: int | None = None,
    *,
    per_pair: bool = False,
    has_bias: bool = False,
) -> Work:
    """y[pair] = W_e x + bias_e of each token's experts that are on the device, one warp a row and pair.

    Reads the rows of those experts, for each token again; the inputs; what was chosen and the experts' slots, once
    a pair; and the biases. Writes 4 n_rows a pair.

    Args:
        n_here: pairs whose expert is on the device; all if not given.
        per_pair: whether each pair has an input of its own.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; slots, chosen (int32), bias, y, n_rows, n,
    n_used, per_pair, has_bias, and the floats from one expert's bias to the next one's.
    """
    n_pairs = n_tokens * n_used
    here = n_pairs if n_here is None else n_here
    reads = here * n_rows * (device_row_bytes(weight_type, n) + 4 * has_bias) + 8 * n_pairs
    reads += input_bytes(weight_type, here if per_pair else n_tokens, n)
    grid = (cover(n_rows, BLOCK // 32), n_pairs)
    return Work(kernel_name("expert_rows", weight_type), grid, BLOCK, reads, 4 * n_pairs * n_rows)


def expert_rows_of_batch(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    choice: tuple[int, int],
    n_rows: int,
    n: int,
    n_here: int | None = None,
    *,
    per_pair: bool = False,
    has_bias: bool = False,
) -> Work:
    """The products of `expert_rows`, one warp a row and expert, which takes the expert's pairs in turn.

    Reads the rows of each expert that is here and chosen once; the inputs; what was chosen; the slots of as many
    experts as may be; and the biases. Writes 4 n_rows a pair.

    Args:
        choice: n_used and n_expert.
        n_here: experts that are on the device and chosen; all if not given.

    Arguments of the kernel: as `expert_rows`, and the number of pairs.
    """
    n_used, n_expert = choice
    n_pairs, here = n_tokens * n_used, n_expert if n_here is None else n_here
    reads = here * n_rows * (device_row_bytes(weight_type, n) + 4 * has_bias) + 4 * n_pairs
    reads += 4 * min(n_pairs, n_expert)
    reads += input_bytes(weight_type, n_pairs if per_pair else n_tokens, n)
    grid = (cover(n_rows, BLOCK // 32), n_expert)
    return Work(kernel_name("expert_rows_of_batch", weight_type), grid, BLOCK, reads, 4 * n_pairs * n_rows)
