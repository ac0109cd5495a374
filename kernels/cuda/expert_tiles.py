"""Sizes of expert_tiles.cu."""

from hotcold.kernels.cuda.expert_rows import ExpertProducts
from hotcold.kernels.cuda.matmul import TILE_SIDE, shared_bytes, tile_input_bytes
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.cuda.work import BLOCK, Work, cover


def expert_tiles(
    products: ExpertProducts,
    n_expert: int,
    n_here: int | None = None,
    *,
    per_pair: bool = False,
    has_bias: bool = False,
) -> Work:
    """The products of `expert_rows` for many tokens, in tiles of 64 rows of an expert by 64 of its pairs.

    Reads the rows of each expert that is here and chosen once; the inputs; what was chosen; the slots of as many
    experts as may be; and the biases. Writes 4 n_rows a pair.

    Args:
        n_expert: of the layer.
        n_here: experts that are on the device and chosen; all if not given.

    Arguments of the kernel: as `expert_rows`, and the number of pairs.
    """
    n_pairs, here = products.n_pairs, n_expert if n_here is None else n_here
    reads = here * products.n_rows * (products.row_bytes + 4 * has_bias) + 4 * n_pairs
    reads += 4 * min(n_pairs, n_expert)
    reads += (n_pairs if per_pair else products.n_tokens) * tile_input_bytes(products.weight_type, products.n)
    kernel, shared = kernel_name("expert_tiles", products.weight_type), shared_bytes(products.weight_type)
    grid, writes = (cover(products.n_rows, TILE_SIDE), n_expert), 4 * n_pairs * products.n_rows
    return Work(kernel, grid, BLOCK, reads, writes, shared)
