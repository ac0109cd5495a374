"""Well-known models without their files: a header's worth of shapes, for planning.

    falcon-40b:q4_0    a shape and the type of its matrices
    @shape.json        any shape: the fields of `Shape`, and "type"

Sizes are those that the models' authors published in their configurations. Shapes whose FFN is ReLU are
the sparse models that PowerInfer uses: they have a predictor of rank 1024 in Q4_0 in each layer.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.engine.model.hyperparameters import (
    MAX_CTX,
    MAX_EMBD,
    MAX_FF,
    MAX_HEAD_DIM,
    MAX_LAYERS,
    MAX_VOCAB,
)
from hotcold.engine.model.model import MATRIX_TYPES, Layer, Model, Weight, weights_by_role
from hotcold.engine.model.multipliers import Multipliers
from hotcold.engine.model.rope import RopeScaling, Rotation
from hotcold.engine.model.windows import Windows, windowed_layers
from hotcold.engine.settings import one_of
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import PREDICTOR, TensorRule, by_neuron, of_layer, sizes_of

DEFAULT_TYPE, PREDICTOR_TYPE, DEFAULT_RANK = "q4_0", GGMLQuantizationType.Q4_0, 1024
F32 = GGMLQuantizationType.F32
MAX_RANK = 1 << 16
MAX_JSON_BYTES = 1 << 20
FREQ_BASE = 10000.0
GRANITES = Multipliers(12.0, 0.22, 0.015625, 8.0)
TYPES = {t.name.lower(): t for t in sorted(MATRIX_TYPES)}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        architecture: a name of `ARCHITECTURES`.
        ffn_activation: one that the architecture may have; "" means what its files mean without a word.
        tied: the head is the embedding.
        n_positions: rows of learned positions, 0 if there are none.
        head_dim: numbers of a head; 0 for n_embd / n_head.
        window: positions that windowed layers see; 0 without such layers.
        two_norms: whether Falcon's attention has a norm of its own; in others it has one anyway.
    """

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx_train: int
    ffn_activation: str = ""
    tied: bool = False
    n_positions: int = 0
    two_norms: bool = True
    head_dim: int = 0
    window: int = 0

    @property
    def activation(self) -> str:
        """Of the FFN."""
        return self.ffn_activation or ARCHITECTURES[self.architecture].activations[0]

    @property
    def dim_of_heads(self) -> int:
        """Numbers of a head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def windows(self) -> Windows | None:
        """Of its windowed layers, as a file without a pattern has them."""
        facts = ARCHITECTURES[self.architecture].windows
        if facts is None or not self.window:
            return None
        layers = windowed_layers(self.n_layer, facts.period, facts.first_sees_all)
        return Windows(self.window, layers, Rotation(FREQ_BASE))


SHAPES = {
    "llama-2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-2-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096),
    "llama-3-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128256, 8192),
    "llama-3-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128256, 8192),
    "mistral-7b": Shape("llama", 32, 4096, 14336, 32, 8, 32000, 32768),
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, 8192, tied=True),
    "relullama-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096, "relu"),
    "relullama-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096, "relu"),
    "relullama-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096, "relu"),
    "bamboo-7b": Shape("bamboo", 32, 4096, 14336, 32, 8, 32000, 32768, "relu"),
    "falcon-7b": Shape("falcon", 32, 4544, 18176, 71, 1, 65024, 2048, "gelu", two_norms=False),
    "falcon-40b": Shape("falcon", 60, 8192, 32768, 128, 8, 65024, 2048, "relu"),
    "falcon-180b": Shape("falcon", 80, 14848, 59392, 232, 8, 65024, 2048, "gelu"),
    "opt-125m": Shape("opt", 12, 768, 3072, 12, 12, 50272, 2048, "relu", True, 2050),
    "opt-1.3b": Shape("opt", 24, 2048, 8192, 32, 32, 50272, 2048, "relu", True, 2050),
    "opt-2.7b": Shape("opt", 32, 2560, 10240, 32, 32, 50272, 2048, "relu", True, 2050),
    "opt-6.7b": Shape("opt", 32, 4096, 16384, 32, 32, 50272, 2048, "relu", True, 2050),
    "opt-13b": Shape("opt", 40, 5120, 20480, 40, 40, 50272, 2048, "relu", True, 2050),
    "opt-30b": Shape("opt", 48, 7168, 28672, 56, 56, 50272, 2048, "relu", True, 2050),
    "opt-66b": Shape("opt", 64, 9216, 36864, 72, 72, 50272, 2048, "relu", True, 2050),
    "opt-175b": Shape("opt", 96, 12288, 49152, 96, 96, 50272, 2048, "relu", True, 2050),
    "qwen2-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 151936, 32768, tied=True),
    "qwen2-1.5b": Shape("qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, tied=True),
    "qwen2-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 32768),
    "qwen2-72b": Shape("qwen2", 80, 8192, 29568, 64, 8, 152064, 32768),
}

_BOUNDS = {
    "n_layer": MAX_LAYERS,
    "n_embd": MAX_EMBD,
    "n_ff": MAX_FF,
    "n_head": MAX_EMBD,
    "n_head_kv": MAX_EMBD,
    "n_vocab": MAX_VOCAB,
    "n_ctx_train": MAX_CTX,
}


def like(text: str, predictor_rank: int | None = None) -> Model:
    """The model of a --like setting.

    Args:
        predictor_rank: rank of every layer's predictor; 0 for none; None for 1024 where the FFN is ReLU.
            A rank above 0 makes the FFN ReLU, as predictors need it.

    Raises:
        SettingError: an unknown shape or type, or sizes that do not fit each other.
        FileError: @FILE that cannot be read or is no shape.
    """
    if text.startswith("@"):
        shape, type_name = read_shape(Path(text[1:]))
        name = Path(text[1:]).stem
    else:
        name, _, type_name = text.partition(":")
        if name not in SHAPES:
            near = ", ".join(get_close_matches(name, SHAPES, 4, 0.5))
            bound = f"known, and near it: {near}" if near else "no known model"
            raise SettingError("--like", name, bound, "docs/offload-dump.md lists all; or give @FILE.json")
        shape = SHAPES[name]
    return build(name, shape, weight_type(type_name or DEFAULT_TYPE), predictor_rank)


def weight_type(name: str) -> GGMLQuantizationType:
    """A type by ggml's name, in either case."""
    if name.lower() not in TYPES:
        raise SettingError(
            "type of --like", name, f"known: {', '.join(TYPES)}", f"such as --like llama-2-7b:{DEFAULT_TYPE}"
        )
    return TYPES[name.lower()]


def read_shape(path: Path) -> tuple[Shape, str]:
    """A shape of a JSON file, and the name of its type.

    Raises:
        FileError: no such file, no JSON object, or fields that are missing, unknown or out of bounds.
    """
    try:
        with path.open("rb") as stream:
            data = json.loads(stream.read(MAX_JSON_BYTES))
    except OSError as error:
        raise FileError(
            "--like file", path, error.strerror or "cannot be read", "name a JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FileError("--like file", path, "no JSON", "see docs/offload-dump.md") from error
    known = [field.name for field in fields(Shape)]
    if not isinstance(data, dict):
        raise FileError("--like file", path, "no JSON object", f"fields: {', '.join(known)}")
    if strange := sorted(set(data) - {*known, "type"}):
        raise FileError(f"--like file {path}: field", strange[0], f"known: type, {', '.join(known)}")
    type_name = data.pop("type", DEFAULT_TYPE)
    required = [field.name for field in fields(Shape) if field.default is MISSING]
    if missing := [name for name in required if name not in data]:
        raise FileError(f"--like file {path}: field", missing[0], "missing")
    shape = Shape(**data)
    try:
        check_shape(shape)
    except (SettingError, TypeError) as error:
        raise FileError(f"--like file {path}", error, "", "see docs/offload-dump.md") from error
    return shape, str(type_name)


def check_shape(shape: Shape) -> None:
    """Refuse sizes out of their bounds, or that do not divide each other; SettingError."""
    for name, largest in _BOUNDS.items():
        _whole(name, getattr(shape, name), 1, largest)
    _whole("n_positions", shape.n_positions, 0, MAX_CTX)
    if shape.architecture not in ARCHITECTURES:
        raise SettingError("architecture", shape.architecture, f"known: {', '.join(ARCHITECTURES)}")
    _whole("head_dim", shape.head_dim, 0, MAX_HEAD_DIM)
    _whole("window", shape.window, 0, MAX_CTX)
    for flag in ("tied", "two_norms"):
        if not isinstance(getattr(shape, flag), bool):
            raise SettingError(flag, getattr(shape, flag), "true or false")
    architecture = ARCHITECTURES[shape.architecture]
    if not shape.two_norms and architecture.find("attn_norm_2") is None:
        names = [name for name, other in ARCHITECTURES.items() if other.find("attn_norm_2")]
        raise SettingError("two_norms", shape.two_norms, f"true but for {', '.join(names)}")
    if architecture.rotates == (shape.n_positions > 0):
        names = [name for name, other in ARCHITECTURES.items() if not other.rotates]
        raise SettingError(
            "n_positions", shape.n_positions, f"above 0 for {', '.join(names)}, and for no other"
        )
    one_of("ffn_activation", shape.activation, architecture.activations)
    if (not shape.head_dim and shape.n_embd % shape.n_head) or shape.n_head % shape.n_head_kv:
        raise SettingError("n_head", shape.n_head, f"divides n_embd {shape.n_embd}, multiple of n_head_kv")
    if shape.dim_of_heads > MAX_HEAD_DIM or shape.dim_of_heads % 2:
        raise SettingError("head_dim", shape.dim_of_heads, f"even, up to {MAX_HEAD_DIM}")
    _check_window(shape)


def _check_window(shape: Shape) -> None:
    facts = ARCHITECTURES[shape.architecture].windows
    if facts is None and shape.window:
        names = [name for name, other in ARCHITECTURES.items() if other.windows]
        raise SettingError("window", shape.window, f"0 but for {', '.join(names)}")
    if facts is not None and facts.required and not shape.window:
        raise SettingError("window", 0, f"1 or more for {shape.architecture}")


def _whole(name: str, value: Any, least: int, most: int, next_step: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingError(name, value, f"a whole number from {least} to {most}", next_step)


def build(name: str, shape: Shape, kind: GGMLQuantizationType, predictor_rank: int | None = None) -> Model:
    """A model of this shape; every matrix has the type, vectors are F32."""
    check_shape(shape)
    rank = predictor_rank
    if rank is None:
        rank = DEFAULT_RANK if shape.activation == "relu" else 0
    such_as = f"such as --predictor-rank {DEFAULT_RANK}"
    _whole("--predictor-rank", rank, 0, MAX_RANK, such_as)
    if rank:
        shape = replace(shape, ffn_activation="relu")
    block = GGML_QUANT_SIZES[kind][0]
    head_dim = shape.dim_of_heads
    for what, n in (("n_embd", shape.n_embd), ("n_ff", shape.n_ff)):
        if n % block:
            raise SettingError(f"{what} of {name}", n, f"{kind.name} needs a multiple of {block}", "take f16")
    if rank % GGML_QUANT_SIZES[PREDICTOR_TYPE][0]:
        raise SettingError("--predictor-rank", rank, "a multiple of 32", such_as)
    if rank and shape.n_embd % GGML_QUANT_SIZES[PREDICTOR_TYPE][0]:
        raise SettingError(f"n_embd of {name}", shape.n_embd, "a predictor needs a multiple of 32")
    architecture = ARCHITECTURES[shape.architecture]
    sizes = sizes_of(
        n_embd=shape.n_embd,
        n_ff=shape.n_ff,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        head_dim=head_dim,
    )
    sizes |= {"n_vocab": shape.n_vocab, "n_positions": shape.n_positions, "rank": rank}
    has = {role for role, there in _optional(shape).items() if there}
    once = _weights((r for r in architecture.whole if not r.optional or r.role in has), sizes, kind)
    layer = tuple(rule for rule in architecture.layer if not rule.optional or rule.role in has)
    rules = by_neuron(layer) if shape.activation == "relu" else layer
    return Model(
        architecture=shape.architecture,
        n_ctx_train=shape.n_ctx_train,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        head_dim=head_dim,
        n_rot=head_dim if architecture.rotates else 0,
        n_ff=shape.n_ff,
        norm_eps=1e-5,
        rope_freq_base=FREQ_BASE,
        rope_scaling=RopeScaling(),
        ffn_activation=shape.activation,
        sparse_threshold=0.0,
        experts=None,
        windows=shape.windows,
        multipliers=GRANITES if architecture.multipliers else Multipliers(),
        n_vocab=shape.n_vocab,
        has_predictors=rank > 0,
        token_embd=once["token_embd"],
        position_embd=once.get("position_embd"),
        output_norm=once["output_norm"],
        output_norm_bias=once.get("output_norm_bias"),
        output=once.get("output", once["token_embd"]),
        rope_freqs=None,
        rope_factors_long=None,
        rope_factors_short=None,
        layers=tuple(_layer(rules, sizes, kind, i) for i in range(shape.n_layer)),
        warnings=(),
    )


def _optional(shape: Shape) -> dict[str, bool]:
    """Which roles that a model of its architecture may lack this one has."""
    return {
        "output": not shape.tied,
        "attn_norm_2": shape.two_norms,
        "attn_norm_2_bias": shape.two_norms,
    }


def _layer(
    rules: Iterable[TensorRule], sizes: Mapping[str, int], kind: GGMLQuantizationType, i: int
) -> Layer:
    predictor = of_layer(PREDICTOR, i) if sizes["rank"] else ()
    return Layer(**_weights(of_layer(rules, i), sizes, kind), **_weights(predictor, sizes, PREDICTOR_TYPE))


def _weights(
    rules: Iterable[TensorRule], sizes: Mapping[str, int], kind: GGMLQuantizationType
) -> dict[str, Weight]:
    """The weights of these rules by their roles; matrices have the type, vectors are F32."""

    def make(rule: TensorRule, ne: tuple[int, ...]) -> Weight:
        type_ = kind if len(ne) > 1 else F32
        block, size = GGML_QUANT_SIZES[type_]
        return Weight(rule.name, type_, ne, math.prod(ne) // block * size)

    return weights_by_role(rules, sizes, make)
