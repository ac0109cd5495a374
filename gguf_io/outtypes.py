"""Which type each tensor of a converted file gets.

The outtype is meant for matrices; a mix gives some of them more bits (see `mixes`). The output head of a block
type loses less: it is Q6_K, or Q8_0 where that does not fit, by the rule of llama.cpp's and PowerInfer's
`quantize`. Where there is none, the embedding is the head, and is treated alike, as llama.cpp does it;
PowerInfer does not, nor its files here. Of a mixture of experts `mxfp4` means the experts alone, and Q8_0 for all
else, as llama.cpp has it. Where a block does not divide a row, llama.cpp's next type with blocks
of 32 takes its place, or F16.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType, LlamaFileType

from hotcold.errors import SettingError
from hotcold.gguf_io import blocks
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.mixes import Depth, count_experts, count_layers, layer_of, mixed_type
from hotcold.gguf_io.writer import OutputTensor

T = GGMLQuantizationType
F = LlamaFileType

OUTTYPES: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (T.F32, F.ALL_F32),
    "f16": (T.F16, F.MOSTLY_F16),
    "bf16": (T.BF16, F.MOSTLY_BF16),
    "q8_0": (T.Q8_0, F.MOSTLY_Q8_0),
    "q6_k": (T.Q6_K, F.MOSTLY_Q6_K),
    "q5_k_m": (T.Q5_K, F.MOSTLY_Q5_K_M),
    "q5_k_s": (T.Q5_K, F.MOSTLY_Q5_K_S),
    "q5_k": (T.Q5_K, F.MOSTLY_Q5_K_S),
    "q5_1": (T.Q5_1, F.MOSTLY_Q5_1),
    "q5_0": (T.Q5_0, F.MOSTLY_Q5_0),
    "q4_k_m": (T.Q4_K, F.MOSTLY_Q4_K_M),
    "q4_k_s": (T.Q4_K, F.MOSTLY_Q4_K_S),
    "q4_k": (T.Q4_K, F.MOSTLY_Q4_K_S),
    "q4_1": (T.Q4_1, F.MOSTLY_Q4_1),
    "q4_0": (T.Q4_0, F.MOSTLY_Q4_0),
    "iq4_nl": (T.IQ4_NL, F.MOSTLY_IQ4_NL),
    "mxfp4": (T.MXFP4, F.MOSTLY_MXFP4_MOE),
    "q3_k_m": (T.Q3_K, F.MOSTLY_Q3_K_M),
    "q3_k": (T.Q3_K, F.MOSTLY_Q3_K_S),
    "q2_k": (T.Q2_K, F.MOSTLY_Q2_K_S),
}
FALL_BACKS = {T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
QUANTIZATION_VERSION = 2
HEAD, TIED_HEAD = "output.weight", "token_embd.weight"
ROUTER = ".ffn_gate_inp"
PREDICTORS = ("fc1.weight", "fc2.weight")
POWERINFER_OUTTYPES = ("f16", "q4_0")
POWERINFER_MIN_NEURONS = 1000


@dataclass(frozen=True)
class Recipe:
    """What a conversion makes of a model's tensors.

    Attributes:
        outtype: a key of OUTTYPES.
        kind: the usual type of matrices.
        predictors: the type of predictors.
        tied: whether the embedding is to be treated as the head.
        n_layer: of the model.
        grouped, n_expert: as in `Depth`.
    """

    outtype: str
    kind: GGMLQuantizationType
    predictors: GGMLQuantizationType
    file_type: LlamaFileType
    architecture: str
    tied: bool
    n_layer: int
    grouped: bool
    n_expert: int = 0


def check_outtype(name: str) -> None:
    """SettingError unless there is such an outtype."""
    if name not in OUTTYPES:
        raise SettingError("outtype", name, f"one of {', '.join(OUTTYPES)}", "choose one of them")


def recipe_of(
    outtype: str, architecture: str, shapes: Mapping[str, tuple[int, ...]], *, tied: bool, requantised: bool
) -> Recipe:
    """How tensors of these names and shapes (NumPy order) are to be written.

    PowerInfer's `quantize` makes predictors Q4_0 where the rest is, else Q5_0. `requantised` says that a file
    is written again, as it does; from a directory, Q8_0 stays the type of predictors too.

    Raises:
        SettingError: there is no such outtype.
    """
    check_outtype(outtype)
    kind, file_type = OUTTYPES[outtype]
    kept = (T.Q4_0,) if requantised else (T.Q4_0, T.Q8_0)
    q, k = (shapes.get(f"blk.0.attn_{x}.weight") for x in "qk")
    return Recipe(
        outtype=outtype,
        kind=kind,
        predictors=T.Q5_0 if is_blocked(kind) and kind not in kept else kind,
        file_type=file_type,
        architecture=architecture,
        tied=tied,
        n_layer=count_layers(shapes),
        grouped=q is not None and k is not None and q[0] != k[0],
        n_expert=count_experts(shapes),
    )


def is_blocked(kind: GGMLQuantizationType) -> bool:
    """Whether the type packs several numbers in a block, with less than each had before."""
    return blocks.block_size(kind) > 1


def output_type(name: str, shape: tuple[int, ...], recipe: Recipe) -> GGMLQuantizationType:
    """The type of tensor `name` of `shape` (NumPy order, as written).

    Norms, other vectors, biases and routers stay F32; where blocks do not divide a row, see FALL_BACKS, or F16.
    """
    if len(shape) < 2 or ROUTER in name or name.endswith(".bias"):
        return T.F32
    kind = intended_type(name, shape[-1], recipe)
    if shape[-1] % blocks.block_size(kind) == 0:
        return kind
    kind = FALL_BACKS.get(kind, T.F16)
    return T.F16 if shape[-1] % blocks.block_size(kind) else kind


def intended_type(name: str, n: int, recipe: Recipe) -> GGMLQuantizationType:
    """The type of matrix `name` with rows of n, whether or not its blocks divide them."""
    if not is_blocked(recipe.kind):
        return recipe.kind
    if recipe.kind is T.MXFP4 and recipe.n_expert:
        return T.MXFP4 if "_exps" in name else T.Q8_0
    if name == (TIED_HEAD if recipe.tied else HEAD):
        return _head_type(n, recipe.kind, recipe.architecture)
    if name.endswith(PREDICTORS):
        return recipe.predictors
    layer = layer_of(name)
    if layer is None:
        return recipe.kind
    depth = Depth(layer, recipe.n_layer, recipe.architecture, recipe.grouped, recipe.n_expert)
    return mixed_type(recipe.outtype, recipe.kind, name, depth)


def _head_type(n_embd: int, wanted: GGMLQuantizationType, architecture: str) -> GGMLQuantizationType:
    table = ARCHITECTURES.get(architecture)
    kind = T.Q6_K if table is None else table.quantised_head
    return kind if n_embd % blocks.block_size(kind) == 0 and wanted is not T.Q8_0 else T.Q8_0


def check_rows(tensors: Iterable[OutputTensor], recipe: Recipe) -> None:
    """SettingError if not one matrix could be of a block type, though the outtype is one."""
    if not is_blocked(recipe.kind):
        return
    matrices = [tensor for tensor in tensors if len(tensor.ne) > 1]
    if matrices and not any(is_blocked(tensor.type) for tensor in matrices):
        lengths = ", ".join(str(n) for n in sorted({tensor.ne[0] for tensor in matrices}))
        bound = f"its blocks divide no row: they have {lengths} numbers"
        raise SettingError("outtype", recipe.outtype, bound, "choose f16")


def powerinfer_warnings(outtype: str, n_ff: int) -> list[str]:
    """What PowerInfer itself would get wrong about a file that hotcold runs.

    Its down product reads every type but Q4_0 as half floats, and up to 1000 neurons a layer it
    takes a routine that follows another mask.
    """
    found = []
    if outtype not in POWERINFER_OUTTYPES:
        found.append(
            f"PowerInfer itself computes NaN from {outtype.upper()} files, hotcold does not; use f16 or q4_0"
        )
    if n_ff <= POWERINFER_MIN_NEURONS:
        found.append(f"PowerInfer itself ignores the mask of layers with {n_ff} neurons, hotcold does not")
    return found
