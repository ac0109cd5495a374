"""Well-known models without their files: a header's worth of shapes, for planning.

    falcon-40b:q4_0    a shape and the type of its matrices
    @shape.json        any shape: the fields of `Shape`, and "type"

Sizes are those that the models' authors published in their configurations. Shapes whose FFN is ReLU are
the sparse models that PowerInfer uses: they have a predictor of rank 1024 in Q4_0 in each layer.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.engine.model.known_shapes import SHAPES
from hotcold.engine.model.model import Layer, Model, Weight, weights_by_role
from hotcold.engine.model.multipliers import Multipliers
from hotcold.engine.model.rope import RopeScaling
from hotcold.engine.model.shape import FREQ_BASE, Shape, check_shape, whole
from hotcold.engine.model.shape_types import TypeOf, check_type, converted, kind_of, one_type
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import PREDICTOR, TensorRule, by_neuron, of_layer, sizes_of

DEFAULT_TYPE, PREDICTOR_TYPE, DEFAULT_RANK = "q4_0", GGMLQuantizationType.Q4_0, 1024
MAX_RANK = 1 << 16
MAX_JSON_BYTES = 1 << 20
GRANITES = Multipliers(12.0, 0.22, 0.015625, 8.0)


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
        name, colon, type_name = text.partition(":")
        if name not in SHAPES:
            near = ", ".join(get_close_matches(name, SHAPES, 4, 0.5))
            bound = f"known, and near it: {near}" if near else "no known model"
            raise SettingError("--like", name, bound, "docs/offload-dump.md lists all; or give @FILE.json")
        if colon and not type_name:
            raise SettingError(
                "type of --like", "", "behind the colon", f"such as --like {name}:{DEFAULT_TYPE}"
            )
        shape = SHAPES[name]
    type_name = check_type(type_name or DEFAULT_TYPE, DEFAULT_TYPE)
    return build(name, shape, kind_of(type_name), predictor_rank)


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
        raise FileError(
            f"--like file {path}: field", strange[0], f"known: type, {', '.join(known)}", "leave it out"
        )
    type_name = data.pop("type", DEFAULT_TYPE)
    required = [field.name for field in fields(Shape) if field.default is MISSING]
    if missing := [name for name in required if name not in data]:
        raise FileError(f"--like file {path}: field", missing[0], "missing", "see docs/offload-dump.md")
    shape = Shape(**data)
    try:
        check_shape(shape)
    except (SettingError, TypeError) as error:
        raise FileError(f"--like file {path}", error, "", "see docs/offload-dump.md") from error
    return shape, str(type_name)


def build(
    name: str, shape: Shape, kind: GGMLQuantizationType | str, predictor_rank: int | None = None
) -> Model:
    """A model of this shape; every matrix has the type, or the outtype's, and vectors are F32."""
    check_shape(shape)
    rank = predictor_rank
    if rank is None:
        rank = DEFAULT_RANK if shape.activation == "relu" and not shape.n_expert else 0
    such_as = f"such as --predictor-rank {DEFAULT_RANK}"
    whole("--predictor-rank", rank, 0, MAX_RANK, such_as)
    if rank and shape.n_expert:
        raise SettingError(
            "--predictor-rank", rank, "0 for a model with experts, whose router is the predictor"
        )
    if rank:
        shape = replace(shape, ffn_activation="relu")
    head_dim = shape.dim_of_heads
    if not isinstance(kind, str):
        _check_blocks(name, shape, kind)
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
    rules, types = architecture.layer, _types_of(shape, kind)
    if shape.experts is not None and architecture.experts is not None:
        rules, sizes = architecture.experts.layer, sizes | shape.experts.sizes
    has = {role for role, there in _optional(shape).items() if there}
    once = _weights((r for r in architecture.whole if not r.optional or r.role in has), sizes, types)
    layer = tuple(rule for rule in rules if not rule.optional or rule.role in has)
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
        experts=shape.experts,
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
        layers=tuple(_layer(rules, sizes, types, i) for i in range(shape.n_layer)),
        warnings=(),
    )


def _types_of(shape: Shape, kind: GGMLQuantizationType | str) -> TypeOf:
    """The types of its tensors."""
    if not isinstance(kind, str):
        return one_type(kind)
    return converted(kind, shape)


def _check_blocks(name: str, shape: Shape, kind: GGMLQuantizationType) -> None:
    block = GGML_QUANT_SIZES[kind][0]
    widths = ("n_embd", "n_ff_exp", "n_ff_shexp") if shape.n_expert else ("n_embd", "n_ff")
    for what in widths:
        if getattr(shape, what) % block:
            bound = f"{kind.name} needs a multiple of {block}"
            raise SettingError(f"{what} of {name}", getattr(shape, what), bound, "take f16")


def _optional(shape: Shape) -> dict[str, bool]:
    """Which roles that a model of its architecture may lack this one has."""
    return {
        "output": not shape.tied,
        "attn_norm_2": shape.two_norms,
        "attn_norm_2_bias": shape.two_norms,
        **dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"), shape.n_ff_shexp > 0),
    }


def _layer(rules: Iterable[TensorRule], sizes: Mapping[str, int], types: TypeOf, i: int) -> Layer:
    predictor, of_predictor = of_layer(PREDICTOR, i) if sizes["rank"] else (), one_type(PREDICTOR_TYPE)
    return Layer(**_weights(of_layer(rules, i), sizes, types), **_weights(predictor, sizes, of_predictor))


def _weights(rules: Iterable[TensorRule], sizes: Mapping[str, int], types: TypeOf) -> dict[str, Weight]:
    """The weights of these rules by their roles."""

    def make(rule: TensorRule, ne: tuple[int, ...]) -> Weight:
        type_ = types(rule.name, ne)
        block, size = GGML_QUANT_SIZES[type_]
        return Weight(rule.name, type_, ne, math.prod(ne) // block * size)

    return weights_by_role(rules, sizes, make)
