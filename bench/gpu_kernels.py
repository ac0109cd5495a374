"""Every kernel of the device once, at the sizes of a model: what it takes, and what its oracle says."""

from collections.abc import Callable, Iterator
from functools import partial

from gguf import GGMLQuantizationType
from gpu_bed import Bed, Weights
from gpu_case import Case, Sizes
from gpu_expert_kernels import expert_cases, expert_neuron_cases, expert_product_cases
from gpu_vector_kernels import attention_cases, mask_cases, vector_cases
from gpu_weight_kernels import ffn_cases, product_cases

from hotcold.kernels.formats import KV_TYPES
from hotcold.kernels.weight_table import WEIGHT_TYPES

COMMON = [
    getattr(GGMLQuantizationType, name) for name in ("F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")
]
"""Types that people have: they come first, so that a short loan of a card has them."""


def groups_of_cases(sizes: Sizes) -> Iterator[tuple[str, Callable[[Bed], Iterator[Case]]]]:
    """Names, and what makes the cases: those of one group are on the device together."""
    yield "vectors", partial(vector_cases, sizes=sizes)
    yield "masks", partial(mask_cases, sizes=sizes)
    yield "experts", partial(expert_cases, sizes=sizes)
    for kv_type in KV_TYPES:
        yield f"attention, {kv_type} cache", partial(attention_cases, sizes=sizes, kv_type=kv_type)
    for kind in sorted(WEIGHT_TYPES, key=lambda kind: kind not in COMMON):
        yield kind.name, partial(_typed_cases, sizes=sizes, kind=kind)


def _typed_cases(bed: Bed, sizes: Sizes, kind: GGMLQuantizationType) -> Iterator[Case]:
    weights = Weights(bed, kind, sizes.n_ff, sizes.n_embd)
    yield from product_cases(bed, sizes, weights)
    yield from ffn_cases(bed, sizes, weights)
    yield from expert_product_cases(bed, weights)
    yield from expert_neuron_cases(bed, weights)
