"""Sizes of expert_neurons.cu."""

from hotcold.kernels.cuda.expert_rows import ExpertProducts
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import group_sums_bytes, n_groups

INDEX_BYTES = 12
"""A pair reads its expert's number, and where its rows begin and end."""


def expert_gates(products: ExpertProducts, n_here: int | None = None) -> Work:
    """hidden[pair, i] = gate_i x of each row of a token's experts that is on the device, one warp a row or less.

    Reads those rows, for each token again; the inputs; and of each pair which rows are its. Writes 4 a row.

    Args:
        n_here: rows on the device of all pairs together; all of them if not given.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; starts, chosen (int32), hidden, n_ff, n, n_used.
    """
    here = _all_rows(products) if n_here is None else n_here
    return products.work("expert_gates", products.n_pairs, _bytes_read(products, here), here)


def expert_ups(
    products: ExpertProducts,
    n_here: int | None = None,
    n_open: int | None = None,
    *,
    has_least: bool = False,
) -> Work:
    """hidden[pair, i] = act(hidden[pair, i]) (up_i x); up is read where a gate is open.

    Reads beside what `expert_gates` does 4 bytes a row that is here; with thresholds 4 more, and 4 a token.

    Args:
        n_open: of the n_here rows, those whose hidden value does not end at the gate; all if not given.

    Arguments of the kernel: as `expert_gates`, the activation's number in activations.py, and least, positions,
    has_least as `sparse_gated_ffn` has them, a threshold a row that is here.
    """
    here = _all_rows(products) if n_here is None else n_here
    reads = _bytes_read(products, here if n_open is None else n_open) + 4 * here
    reads += 4 * (here + products.n_tokens) * has_least
    return products.work("expert_ups", products.n_pairs, reads, here)


def _all_rows(products: ExpertProducts) -> int:
    return products.n_pairs * products.n_rows


def _bytes_read(products: ExpertProducts, n_rows: int) -> int:
    """Of so many rows, the inputs and the pairs' indices."""
    inputs = products.input_bytes(products.n_tokens)
    return n_rows * products.row_bytes + inputs + INDEX_BYTES * products.n_pairs


def expert_down(products: ExpertProducts, n_here: int | None = None) -> Work:
    """Sums of hidden[pair, i] down_i, one block of threads a group of a pair's rows; `sum_groups` adds these.

    Reads 4 bytes a row that is here, the down row of each that is not zero, and of each pair which rows are its.
    Writes the groups' sums.

    Args:
        n_here: rows on the device of all pairs together, none of them zero; all if not given.

    Arguments of the kernel: the weight's planes, starts, chosen (int32), hidden, partial, n_ff, n, n_used.
    """
    n_pairs, n_ff = products.n_pairs, products.n_rows
    here = _all_rows(products) if n_here is None else n_here
    reads = here * (products.row_bytes + 4) + INDEX_BYTES * n_pairs
    kernel, grid = kernel_name("expert_down", products.weight_type), (n_groups(n_ff), n_pairs)
    return Work(kernel, grid, BLOCK, reads, group_sums_bytes(n_pairs, n_ff, products.n))
