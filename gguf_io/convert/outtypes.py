"""Which type each tensor of a converted file gets.

The outtype is meant for matrices. The output head of a block type loses less: it is Q6_K, or Q8_0 where
that does not fit, by the rule of llama.cpp's and PowerInfer's `quantize`. Where there is none, the
embedding is the head, and is treated alike, as llama.cpp does it; PowerInfer does not, nor its files here.
"""

from gguf import GGMLQuantizationType, LlamaFileType

from hotcold.errors import SettingError
from hotcold.gguf_io import blocks
from hotcold.gguf_io.architectures import ARCHITECTURES

T = GGMLQuantizationType

OUTTYPES: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (T.F32, LlamaFileType.ALL_F32),
    "f16": (T.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (T.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (T.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (T.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
QUANTIZATION_VERSION = 2
HEAD, TIED_HEAD = "output.weight", "token_embd.weight"
POWERINFER_OUTTYPES = ("f16", "q4_0")
POWERINFER_MIN_NEURONS = 1000


def outtype_of(name: str) -> tuple[GGMLQuantizationType, LlamaFileType]:
    """The type of matrices and the file type that `name` stands for.

    Raises:
        SettingError: there is no such outtype.
    """
    if name not in OUTTYPES:
        raise SettingError("outtype", name, f"one of {', '.join(OUTTYPES)}", "choose one of them")
    return OUTTYPES[name]


def is_blocked(kind: GGMLQuantizationType) -> bool:
    """Whether the type packs several numbers in a block, with less than each had before."""
    return blocks.block_size(kind) > 1


def output_type(
    name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType, architecture: str, tied: bool
) -> GGMLQuantizationType:
    """The type of tensor `name` of `shape` (NumPy order, as written) when matrices become `wanted`.

    `tied` says that the embedding is to be treated as the head. Norms and other vectors stay F32; a row that the type's block does not divide stays F16.
    """
    if len(shape) < 2:
        return T.F32
    is_head = name == (TIED_HEAD if tied else HEAD)
    kind = _head_type(shape[-1], wanted, architecture) if is_head and is_blocked(wanted) else wanted
    return T.F16 if shape[-1] % blocks.block_size(kind) else kind


def _head_type(n_embd: int, wanted: GGMLQuantizationType, architecture: str) -> GGMLQuantizationType:
    table = ARCHITECTURES.get(architecture)
    kind = T.Q6_K if table is None else table.quantised_head
    return kind if n_embd % blocks.block_size(kind) == 0 and wanted is not T.Q8_0 else T.Q8_0


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
