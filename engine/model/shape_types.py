"""The type of each tensor of a shape: as `hotcold convert` chooses it, or one for all matrices.

Routers, biases and norms are F32, as llama.cpp leaves them. Types that nothing here writes are those of all matrices.
"""

from collections.abc import Callable

from gguf import GGMLQuantizationType

from hotcold.engine.model.model import MATRIX_TYPES
from hotcold.engine.model.shape import Shape
from hotcold.errors import SettingError
from hotcold.gguf_io.mixes import MIXES
from hotcold.gguf_io.outtypes import OUTTYPES, Recipe, output_type

T = GGMLQuantizationType
TYPES = {t.name.lower(): t for t in sorted(MATRIX_TYPES)}
TypeOf = Callable[[str, tuple[int, ...]], GGMLQuantizationType]
"""From a tensor's name and sizes, numbers a row first, to its type."""


def check_type(name: str, such_as: str) -> str:
    """The name of a type or a mix in lower case; SettingError if there is none of it."""
    if name.lower() not in (*TYPES, *MIXES):
        bound = f"known: {', '.join((*TYPES, *MIXES))}"
        raise SettingError("type of --like", name, bound, f"such as --like llama-2-7b:{such_as}")
    return name.lower()


def _stays_f32(name: str, ne: tuple[int, ...]) -> bool:
    return len(ne) == 1 or name.endswith(".bias") or ".ffn_gate_inp" in name


def one_type(kind: GGMLQuantizationType) -> TypeOf:
    """Matrices of this type."""

    def type_of(name: str, ne: tuple[int, ...]) -> GGMLQuantizationType:
        return T.F32 if _stays_f32(name, ne) else kind

    return type_of


def kind_of(name: str) -> GGMLQuantizationType | str:
    """The outtype of this name where its rules choose, or the type of all matrices."""
    return name if name in OUTTYPES else TYPES[name]


def converted(outtype: str, shape: Shape) -> TypeOf:
    """Matrices of a model of this shape as a conversion to the outtype has them."""
    kind, file_type = OUTTYPES[outtype]
    model = shape.architecture, shape.tied, shape.n_layer, shape.n_head != shape.n_head_kv, shape.n_expert
    recipe = Recipe(outtype, kind, T.Q4_0, file_type, *model)

    def type_of(name: str, ne: tuple[int, ...]) -> GGMLQuantizationType:
        return T.F32 if _stays_f32(name, ne) else output_type(name, ne[::-1], recipe)

    return type_of
