"""Sizes of hidden_masked.cu."""

from hotcold.kernels.cuda.work import BLOCK, Work, cover


def _listing_bytes(n_tokens: int, n_rows: int, n_ff: int, has_mask: bool) -> int:
    """Bytes that say which neurons count: the words of the mask, and 4 a row."""
    return n_tokens * 4 * -(-n_ff // 32) + 4 * n_rows if has_mask else 0


def hidden_masked_gated(
    n_tokens: int,
    n_rows: int,
    n_ff: int,
    has_mask: bool = True,
    n_listed: int | None = None,
    n_open: int | None = None,
    *,
    has_least: bool = False,
) -> Work:
    """h = act(gate) * up where the mask lists the neuron, else 0; one thread a number.

    Reads the mask of n_ff neurons and 4 n_rows of neuron ids if there is a mask; 4 bytes of gate for
    each of the n_listed numbers, 4 of up for each of the n_open among them whose gate is open (all if
    not given). With thresholds also 4 n_rows of these, and 4 a token. Writes 4 n_rows a token.

    Arguments of the kernel: gate, up, mask, neurons, h, n_rows, words from one token's mask to the
    next's, has_mask, activation (of `formats.ACTIVATIONS`), and least, positions, has_least as
    `sparse_gated_ffn` has them. h may be gate or up. Without a mask any buffer of unsigned is given for it, and
    `neurons` is not read.
    """
    listed = n_tokens * n_rows if n_listed is None else n_listed
    opened = listed if n_open is None else n_open
    reads = _listing_bytes(n_tokens, n_rows, n_ff, has_mask) + 4 * (listed + opened)
    reads += 4 * (n_rows + n_tokens) * has_least
    grid = (cover(n_rows, BLOCK), n_tokens)
    return Work("hidden_masked_gated", grid, BLOCK, reads, 4 * n_tokens * n_rows)


def hidden_of_experts(
    n_tokens: int, n_used: int, n_rows: int, n_here: int | None = None, n_open: int | None = None
) -> Work:
    """h = act(gate) * up of each pair of a token and an expert, 0 where |act(gate)| is below its threshold.

    Reads 4 bytes of gate and of threshold for each row of the n_here pairs whose expert is on the device (all if not
    given), 4 of up for each of their n_open rows that reach it (likewise), 8 a pair and 4 a token. Writes 4 n_rows a
    pair.

    Arguments of the kernel: gate, up, slots, chosen (int32), least [experts that are here, n_rows], positions, h,
    n_rows, n_used, activation. h may be gate or up.
    """
    n_pairs = n_tokens * n_used
    here = n_pairs if n_here is None else n_here
    opened = here * n_rows if n_open is None else n_open
    reads = 4 * (2 * here * n_rows + opened) + 8 * n_pairs + 4 * n_tokens
    return Work("hidden_of_experts", (cover(n_rows, BLOCK), n_pairs), BLOCK, reads, 4 * n_pairs * n_rows)


def hidden_masked(
    n_tokens: int,
    n_rows: int,
    n_ff: int,
    has_mask: bool = True,
    has_bias: bool = True,
    n_listed: int | None = None,
) -> Work:
    """h = act(up + bias) where the mask lists the neuron, else 0; one thread a number.

    Reads what says which neurons count as `hidden_masked_gated` does, 4 bytes of up for each of the n_listed
    numbers (all if not given), and 4 n_rows each of bias and neuron ids, once. Writes 4 n_rows a token.

    Arguments of the kernel: up, bias, mask, neurons, h, n_rows, words from one token's mask to the
    next's, has_mask, has_bias, activation. bias[n_ff] has the numbers of all neurons. h may be up.
    """
    listed = n_tokens * n_rows if n_listed is None else n_listed
    reads = _listing_bytes(n_tokens, n_rows, n_ff, has_mask) + 4 * listed
    reads += 4 * n_rows * (has_bias + (has_bias and not has_mask))
    grid = (cover(n_rows, BLOCK), n_tokens)
    return Work("hidden_masked", grid, BLOCK, reads, 4 * n_tokens * n_rows)
