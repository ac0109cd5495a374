"""Sizes of expert_neurons.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover
from hotcold.kernels.formats import group_sums_bytes, n_groups
from hotcold.kernels.weight_table import device_row_bytes

INDEX_BYTES = 12
"""A pair reads its expert's number, and where its rows begin and end."""


def expert_gates(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_used: int,
    n_ff: int,
    n: int,
    n_here: int | None = None,
) -> Work:
    """hidden[pair, i] = gate_i x of each row of a token's experts that is on the device, one warp a row.

    Reads those rows, for each token again; the inputs; and of each pair which rows are its. Writes 4 a row.

    Args:
        n_here: rows on the device of all pairs together; all of them if not given.

    Arguments of the kernel: the weight's planes; x, or q, d and sum; starts, chosen (int32), hidden, n_ff, n, n_used.
    """
    return _products(
        kernel_name("expert_gates", weight_type), weight_type, n_tokens, n_used, n_ff, n, n_here, n_here
    )


def expert_ups(
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_used: int,
    n_ff: int,
    n: int,
    n_here: int | None = None,
    n_open: int | None = None,
) -> Work:
    """hidden[pair, i] = act(hidden[pair, i]) (up_i x); up is read where a gate is open.

    Reads beside what `expert_gates` does 4 bytes a row that is here.

    Args:
        n_open: of the n_here rows, those whose hidden value does not end at the gate; all if not given.

    Arguments of the kernel: as `expert_gates`, and the activation's number in activations.py.
    """
    here = n_tokens * n_used * n_ff if n_here is None else n_here
    opened = here if n_open is None else n_open
    work = _products(
        kernel_name("expert_ups", weight_type), weight_type, n_tokens, n_used, n_ff, n, here, opened
    )
    return Work(work.kernel, work.grid, work.block, work.bytes_read + 4 * here, work.bytes_written)


def _products(
    kernel: str,
    weight_type: GGMLQuantizationType,
    n_tokens: int,
    n_used: int,
    n_ff: int,
    n: int,
    n_here: int | None,
    n_read: int | None,
) -> Work:
    n_pairs = n_tokens * n_used
    here = n_pairs * n_ff if n_here is None else n_here
    read = here if n_read is None else n_read
    reads = (
        read * device_row_bytes(weight_type, n)
        + input_bytes(weight_type, n_tokens, n)
        + INDEX_BYTES * n_pairs
    )
    return Work(kernel, (cover(n_ff, BLOCK // 32), n_pairs), BLOCK, reads, 4 * here)


def expert_down(
    weight_type: GGMLQuantizationType,
    n_pairs: int,
    n_ff: int,
    n: int,
    n_here: int | None = None,
    n_live: int | None = None,
) -> Work:
    """Sums of hidden[pair, i] down_i, one block of threads a group of a pair's rows; `sum_groups` adds these.

    Reads 4 bytes a row that is here, the down row of each that is not zero, and of each pair which rows are its.
    Writes the groups' sums.

    Args:
        n_here, n_live: rows on the device of all pairs together, and those that are not zero; all if not given.

    Arguments of the kernel: the weight's planes, starts, chosen (int32), hidden, partial, n_ff, n, n_used.
    """
    here = n_pairs * n_ff if n_here is None else n_here
    live = here if n_live is None else n_live
    reads = live * device_row_bytes(weight_type, n) + 4 * here + INDEX_BYTES * n_pairs
    grid = (n_groups(n_ff), n_pairs)
    return Work(
        kernel_name("expert_down", weight_type), grid, BLOCK, reads, group_sums_bytes(n_pairs, n_ff, n)
    )
