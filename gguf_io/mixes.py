"""Mixes of types by llama.cpp's rules: more bits for values and the down projection, in some layers.

The names end in _s, _m for small and medium. Where a rule speaks of layers, it is the first ones and the last
ones, where an error does most, and every third between. The facts are those of llama.cpp's llama-quant.cpp.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType

T = GGMLQuantizationType
ALONE = re.compile(r"blk\.0\.ffn_up\.\d+\.weight")  # an old file's matrix of an expert
LAYER = re.compile(r"blk\.(\d+)\.")
FEW_EXPERTS = 8
OF_ONE_TYPE = (
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "iq4_nl",
)  # which are no file types of llama.cpp, or not by its rules
N_LAYER_70B = 80  # its eight query heads a key head make values small: they may be finer


@dataclass(frozen=True)
class Depth:
    """Where in which model a matrix is.

    Attributes:
        layer: its layer's number.
        n_layer: of the model.
        grouped: whether there are fewer key and value heads than query heads.
        n_expert: of each layer; 0 without.
    """

    layer: int
    n_layer: int
    architecture: str
    grouped: bool
    n_expert: int = 0

    @property
    def is_falcon(self) -> bool:
        """Whose rules are its own."""
        return self.architecture == "falcon"

    def among_first(self, share: int) -> bool:
        """Whether the layer is in the first n_layer / share."""
        return self.layer < self.n_layer // share

    @property
    def more_bits(self) -> bool:
        """Whether the layer is in the first or last eighth, or every third between."""
        last, after = 7 * self.n_layer // 8, self.layer - self.n_layer // 8
        return self.among_first(8) or self.layer >= last or (after >= 0 and after % 3 == 2)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to."""
    found = LAYER.match(name)
    return int(found[1]) if found else None


def count_layers(names: Iterable[str]) -> int:
    """How many layers tensors of these names make."""
    return max((layer + 1 for name in names if (layer := layer_of(name)) is not None), default=0)


def count_experts(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many experts a layer has whose tensors have these shapes, NumPy order; 0 without.

    They are stacked in one tensor, or in an old file one tensor each.
    """
    stacked = (shape[0] for name, shape in shapes.items() if "_exps" in name and len(shape) > 2)
    alone = sum(ALONE.fullmatch(name) is not None for name in shapes)
    return max(alone, *stacked, 0)


def mixed_type(outtype: str, usual: T, name: str, depth: Depth) -> T:
    """The type of a layer's matrix whose other matrices are `usual`: by a mix of MIXES, or by the number of experts.

    Beside eight experts attention is so small a part that finer keys and values cost next to nothing.
    """
    small = depth.n_expert == FEW_EXPERTS and outtype not in OF_ONE_TYPE
    if small and any(f"{role}.weight" in name for role in ("attn_k", "attn_v", "attn_qkv")):
        return T.Q8_0
    if outtype not in MIXES:
        return usual
    if small and "attn_output.weight" in name:
        return T.Q5_K if usual in (T.Q3_K, T.Q4_K) else usual
    values, down, attn_output = MIXES[outtype]
    if "attn_v.weight" in name or "attn_qkv.weight" in name:
        kind = values(depth) or usual
        large = depth.n_layer == N_LAYER_70B and depth.grouped and depth.architecture in ("llama", "qwen2")
        return T.Q5_K if large and kind in (T.Q3_K, T.Q4_K) else kind
    if "ffn_down" in name:
        return down(depth) or usual
    if "attn_output.weight" in name:
        return attn_output(depth) or usual
    return usual


Rule = Callable[[Depth], T | None]  # None: as usual


def _usual(_: Depth) -> None:
    return None


def _q6_k_by_depth(depth: Depth) -> T | None:
    return T.Q6_K if depth.more_bits else None


def _q4_k_m_down(depth: Depth) -> T | None:
    if not depth.is_falcon:
        return _q6_k_by_depth(depth)
    if depth.among_first(16):
        return T.Q6_K
    return T.Q5_K if depth.more_bits else None


def _q4_k_s_values(depth: Depth) -> T | None:
    return T.Q5_K if depth.layer < 4 else None


def _q4_k_s_down(depth: Depth) -> T | None:
    return T.Q5_K if depth.among_first(8) and not depth.is_falcon else None


def _q3_k_m_values(depth: Depth) -> T | None:
    return T.Q5_K if depth.layer < 2 else T.Q4_K


def _q3_k_m_down(depth: Depth) -> T | None:
    if depth.among_first(16):
        return T.Q5_K
    return T.Q4_K if depth.more_bits or not depth.is_falcon else None


def _q3_k_m_attn_output(depth: Depth) -> T | None:
    return None if depth.is_falcon else T.Q4_K


# of each mix: values (fused queries, keys and values too), down projection, attention's output
MIXES: dict[str, tuple[Rule, Rule, Rule]] = {
    "q3_k_m": (_q3_k_m_values, _q3_k_m_down, _q3_k_m_attn_output),
    "q4_k_s": (_q4_k_s_values, _q4_k_s_down, _usual),
    "q4_k_m": (_q6_k_by_depth, _q4_k_m_down, _usual),
    "q5_k_s": (_usual, _usual, _usual),
    "q5_k_m": (_q6_k_by_depth, _q6_k_by_depth, _usual),
}
