"""Sizes of sparse_gated_ffn.cu."""

from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.compact import listing_bytes
from hotcold.kernels.cuda.matvec import input_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work
from hotcold.kernels.formats import group_sums_bytes, n_groups
from hotcold.kernels.weight_table import device_row_bytes

Types = tuple[GGMLQuantizationType, GGMLQuantizationType, GGMLQuantizationType]


def sparse_gated_ffn(
    weight_types: Types,
    n_tokens: int,
    n_rows: int,
    n: int,
    n_ff: int,
    n_active: int | None = None,
    n_open: int | None = None,
    *,
    has_least: bool = False,
) -> Work:
    """One block of threads a group and token.

    Reads, a token: the input, a gate row for each of the n_active rows, an up and a down row
    for each of the n_open whose hidden value is not zero (all of them if not given; silu opens all but those below
    their thresholds). With thresholds 4 bytes more for each active row and each token's position. And
    `listing_bytes`. Writes the workspace, and 4 bytes that the rows found are added to. (Each token reads its
    rows anew: this kernel is for few tokens.)

    Args:
        weight_types: of gate, up and down; gate and up both quantised, or none.
        n_ff: neurons of the masks.

    Arguments of the kernel: the planes of gate, up and down; x, or q, d and sum; mask, held, total (uint32),
    partial, mask_words(n_ff), n, activation (relu, silu or relu_both of `formats.ACTIVATIONS`), least,
    positions, has_least. least[n_rows] is what |act(gate)| has to reach for up and down to be read, but at
    the first `EXACT_POSITIONS` of positions[n_tokens]; without thresholds any float and int buffers are given
    for both. mask and held: see `compact`.
    """
    active = n_rows if n_active is None else n_active
    opened = active if n_open is None else n_open
    of_gate, of_up, of_down = (device_row_bytes(kind, n) for kind in weight_types)
    rows = active * of_gate + opened * (of_up + of_down)
    reads = n_tokens * (rows + (4 * active + 4) * has_least) + listing_bytes(n_tokens, n_ff)
    reads += max(input_bytes(kind, n_tokens, n) for kind in weight_types[:2])
    grid = (n_groups(n_rows), n_tokens)
    writes = group_sums_bytes(n_tokens, n_rows, n) + 4
    return Work(kernel_name("sparse_gated_ffn", *weight_types), grid, BLOCK, reads, writes)
