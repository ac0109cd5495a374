"""Sizes of expert_tiles.cu, and which of its tiles a batch has."""

from dataclasses import replace

from hotcold.kernels.cuda.expert_rows import ExpertProducts
from hotcold.kernels.cuda.matmul import TILE_SIDE, shared_bytes, tile_input_bytes
from hotcold.kernels.cuda.matmul_few import FEW_SHARED, FEW_SIDE
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


def expert_few(
    products: ExpertProducts,
    n_expert: int,
    n_here: int | None = None,
    *,
    per_pair: bool = False,
    has_bias: bool = False,
) -> Work:
    """`expert_tiles` in the tiles of 16 rows by 16 pairs that `matmul_few` has."""
    large = expert_tiles(products, n_expert, n_here, per_pair=per_pair, has_bias=has_bias)
    kernel, grid = (
        kernel_name("expert_few", products.weight_type),
        (cover(products.n_rows, FEW_SIDE), n_expert),
    )
    return replace(large, kernel=kernel, grid=grid, shared=FEW_SHARED)


def batch_of_experts(
    products: ExpertProducts, n_expert: int, *, per_pair: bool = False, has_bias: bool = False
) -> Work:
    """`expert_few` or `expert_tiles`: where experts have 16 pairs each on average, both read most rows once."""
    is_few = products.n_pairs <= FEW_SIDE * n_expert
    return (expert_few if is_few else expert_tiles)(products, n_expert, per_pair=per_pair, has_bias=has_bias)
