"""A model: its hyperparameters and its weights by role, each checked against the other.

Weights are names, types and shapes; where their numbers lie is the stores' business.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.engine.model.hyperparameters import MAX_VOCAB, Hyperparameters, read_hyperparameters
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile, TensorInfo
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.opt import N_UNUSED_POSITIONS
from hotcold.gguf_io.architectures.table import (
    PREDICTOR,
    ROPE_FACTORS,
    Architecture,
    TensorRule,
    by_neuron,
    of_layer,
    sizes_of,
)

T = GGMLQuantizationType

# Which types have kernels for which role.
MATRIX_TYPES = frozenset(
    (
        *(T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.IQ4_NL, T.MXFP4),
        *(T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS, T.IQ3_S, T.IQ3_XXS),
        *(T.IQ2_S, T.IQ2_XS, T.IQ2_XXS, T.IQ1_M, T.IQ1_S, T.TQ2_0, T.TQ1_0),
    )
)
NORM_TYPES = frozenset({T.F32})


@dataclass(frozen=True)
class Weight:
    """A tensor of the file, or some rows of one.

    Attributes:
        ne: ggml order, numbers a row first.
        n_bytes: of all rows.
        first_row: of the tensor `name`; above 0 only where several weights are stacked in one tensor.
        stacked: names of the tensors of an old file that has one an expert, in their order; `name` is the first.
    """

    name: str
    type: GGMLQuantizationType
    ne: tuple[int, ...]
    n_bytes: int
    first_row: int = 0
    stacked: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows of a matrix, or of all matrices that are stacked in it; a vector has one."""
        return math.prod(self.ne[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as the file has it."""
        return self.n_bytes // self.n_rows


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, None where the architecture or the file has none.

    `ffn_down_t` has a row a neuron; a file holds it or `ffn_down`. `ffn_down_bias` belongs to either. A layer with
    experts has their matrices, `_exps`, and their router, `ffn_gate_inp`, in place of an FFN; and it may have an
    FFN that every token goes to, `_shexp`, with a gate of its own.
    """

    attn_norm: Weight
    attn_q: Weight
    attn_k: Weight
    attn_v: Weight
    attn_output: Weight
    ffn_up: Weight | None = None
    ffn_norm: Weight | None = None
    ffn_gate: Weight | None = None
    ffn_down: Weight | None = None
    ffn_down_t: Weight | None = None
    fc1: Weight | None = None
    fc2: Weight | None = None
    attn_norm_bias: Weight | None = None
    attn_norm_2: Weight | None = None
    attn_norm_2_bias: Weight | None = None
    attn_q_norm: Weight | None = None
    attn_k_norm: Weight | None = None
    attn_q_bias: Weight | None = None
    attn_k_bias: Weight | None = None
    attn_v_bias: Weight | None = None
    attn_output_bias: Weight | None = None
    ffn_norm_bias: Weight | None = None
    ffn_up_bias: Weight | None = None
    ffn_down_bias: Weight | None = None
    ffn_gate_inp: Weight | None = None
    ffn_gate_inp_bias: Weight | None = None
    ffn_gate_exps: Weight | None = None
    ffn_up_exps: Weight | None = None
    ffn_down_exps: Weight | None = None
    ffn_gate_exps_bias: Weight | None = None
    ffn_up_exps_bias: Weight | None = None
    ffn_down_exps_bias: Weight | None = None
    ffn_gate_inp_shexp: Weight | None = None
    ffn_gate_shexp: Weight | None = None
    ffn_up_shexp: Weight | None = None
    ffn_down_shexp: Weight | None = None

    @property
    def ffn_matrices(self) -> tuple[Weight, ...]:
        """Gate (if there is one), up and down; of all experts where there are some."""
        found = (self.ffn_gate_exps or self.ffn_gate, self.ffn_up_exps or self.ffn_up, self.down)
        return tuple(weight for weight in found if weight is not None)

    @property
    def n_units(self) -> int:
        """How many neurons, or experts, the FFN has."""
        return self.up.ne[-1]

    @property
    def up(self) -> Weight:
        """The up projection, which every FFN has."""
        return self.ffn_matrices[-2]

    @property
    def down(self) -> Weight:
        """The down projection as the file has it."""
        down = self.ffn_down_exps or self.ffn_down or self.ffn_down_t
        if down is None:
            raise FileError("layer", self.attn_norm.name, "neither ffn_down nor ffn_down_t")
        return down


@dataclass(frozen=True)
class Model(Hyperparameters):
    """Hyperparameters and weights.

    Attributes:
        n_ctx_train: no more than a table of learned positions has room for.
        position_embd: learned positions, whose first two rows belong to none; None with rotation.
        output: the head; `token_embd` again in a tied model.
        rope_freqs: factors that divide the rotation's frequencies, float32 [n_rot / 2].
        rope_factors_long, rope_factors_short: likewise, without rope_freqs; which of them is a matter of n_ctx.
        has_predictors: whether every layer has fc1 and fc2.
        warnings: what a user should know of the file, such as tensors that nothing uses.
    """

    n_vocab: int
    has_predictors: bool
    token_embd: Weight
    position_embd: Weight | None
    output_norm: Weight
    output_norm_bias: Weight | None
    output: Weight
    rope_freqs: Weight | None
    rope_factors_long: Weight | None
    rope_factors_short: Weight | None
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]

    def rope_factors(self, n_ctx: int) -> Weight | None:
        """The factors of the rotation in a context of n_ctx positions."""
        by_length = (
            self.rope_factors_long if n_ctx > self.rope_scaling.n_ctx_orig else self.rope_factors_short
        )
        return self.rope_freqs or by_length

    @property
    def n_positions(self) -> int | None:
        """Learned positions; None with rotation."""
        return None if self.position_embd is None else self.position_embd.n_rows - N_UNUSED_POSITIONS


class _Tensors:
    """Takes weights out of a file by name, and remembers which have been taken."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.taken = file, set[str]()

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def take(self, name: str, types: frozenset[GGMLQuantizationType], *ne: int) -> Weight:
        """The weight, if its type has a kernel and its shape is `ne`."""
        info = self.file.tensors.get(name)
        if info is None:
            raise FileError(
                f"{self.file.path.name}: tensor", name, "missing", "the file is incomplete: convert it again"
            )
        self.taken.add(name)
        if info.ne != ne:
            raise FileError(
                f"{self.file.path.name}: shape of {name}",
                _shape(info.ne),
                f"wanted {_shape(ne)} by the hyperparameters",
                "the file is damaged",
            )
        if info.type not in types:
            raise FileError(
                f"{self.file.path.name}: type of {name}",
                info.type.name,
                f"runs here: {', '.join(sorted(t.name for t in types))}",
                "convert the model to one of these",
            )
        return _weight(info)

    def take_experts(self, name: str, types: frozenset[GGMLQuantizationType], *ne: int) -> Weight:
        """The matrices of all experts: one tensor, or in an old file one an expert, which are alike."""
        role, _, ending = name.partition("_exps")
        names = tuple(f"{role}.{e}{ending}" for e in range(ne[2]))
        if self.has(name) or not self.has(names[0]):
            return self.take(name, types, *ne)
        found = [self.take(each, types, *ne[:2]) for each in names]
        strange = next((weight for weight in found if weight.type != found[0].type), None)
        if strange is not None:
            what, bound = (
                f"{self.file.path.name}: type of {strange.name}",
                f"{found[0].type.name} as the others",
            )
            raise FileError(what, strange.type.name, bound, "convert the model again")
        n_bytes = sum(weight.n_bytes for weight in found)
        return Weight(names[0], found[0].type, ne, n_bytes, stacked=names)


def _weight(info: TensorInfo) -> Weight:
    return Weight(info.name, info.type, info.ne, info.n_bytes)


def _shape(ne: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(n) for n in ne) + "]"


def _vocabulary(file: GGUFFile, n_embd: int) -> int:
    """Rows of token_embd."""
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise FileError(f"{file.path.name}: tensor", "token_embd.weight", "missing", "this is not a model")
    n_vocab = info.ne[1] if len(info.ne) == 2 else 0
    if not 1 <= n_vocab <= MAX_VOCAB:
        raise FileError(
            f"{file.path.name}: shape of token_embd.weight",
            _shape(info.ne),
            f"wanted [{n_embd}, n_vocab], n_vocab at most {MAX_VOCAB}",
            "the file is damaged",
        )
    return n_vocab


def weights_by_role(
    rules: Iterable[TensorRule],
    sizes: Mapping[str, int],
    make: Callable[[TensorRule, tuple[int, ...]], Weight],
) -> dict[str, Weight]:
    """The weights of these rules; one in which others are stacked gives its parts.

    Args:
        make: the weight of a rule, from its shape in ggml's order.
    """
    found: dict[str, Weight] = {}
    for rule in rules:
        weight, first = make(rule, tuple(sizes[name] for name in reversed(rule.shape))), 0
        for role, n_rows in rule.parts:
            found[role] = _some_rows(weight, first, sizes[n_rows])
            first += sizes[n_rows]
        if not rule.parts:
            found[rule.role] = weight
    return found


def _some_rows(weight: Weight, first: int, n: int) -> Weight:
    return replace(weight, ne=(weight.ne[0], n), n_bytes=n * weight.row_bytes, first_row=first)


def _take(weights: _Tensors, rules: Iterable[TensorRule], sizes: Mapping[str, int]) -> dict[str, Weight]:
    """The weights of these rules that the file has, by their roles."""
    rules = tuple(rules)
    there = {rule.stem for rule in rules if rule.optional and weights.has(rule.name)}

    def take(rule: TensorRule, ne: tuple[int, ...]) -> Weight:
        is_matrix = len(ne) > 1 and not rule.name.endswith(".bias")
        take = weights.take_experts if rule.layout == "stack_experts" else weights.take
        return take(rule.name, MATRIX_TYPES if is_matrix else NORM_TYPES, *ne)

    return weights_by_role((r for r in rules if not r.optional or r.stem in there), sizes, take)


def _layer(weights: _Tensors, rules: tuple[TensorRule, ...], sizes: Mapping[str, int], i: int) -> Layer:
    """A layer; the file has its down projection with a row an output or with a row a neuron."""
    name = next((rule.name for rule in by_neuron(rules) if rule.role == "ffn_down_t"), "").format(i=i)
    transposed = weights.file.is_powerinfer or weights.has(name)
    taken = _take(weights, of_layer(by_neuron(rules) if transposed else rules, i), sizes)
    return Layer(**taken, **_predictor(weights, sizes, i))


def _predictor(weights: _Tensors, sizes: Mapping[str, int], i: int) -> dict[str, Weight]:
    """fc1 [n_embd, rank] and fc2 [rank, n_ff]; the rank may differ from layer to layer."""
    rules = of_layer(PREDICTOR, i)
    if weights.file.is_powerinfer:
        rank = _rank(weights.file, rules[0].name, sizes["n_embd"])
        return _take(weights, rules, {**sizes, "rank": rank})
    for name in filter(weights.has, (rule.name for rule in rules)):
        raise FileError(
            f"{weights.file.path.name}: predictor of layer {i}",
            name,
            "only a file with PowerInfer's magic PWRI has predictors",
            "convert the model again with its predictors",
        )
    return {}


def _rank(file: GGUFFile, name: str, n_embd: int) -> int:
    """Rows of fc1."""
    info = file.tensors.get(name)
    if info is None:
        raise FileError(
            f"{file.path.name}: tensor",
            name,
            "missing: a PWRI file has a predictor in every layer",
            "convert the model again with its predictors",
        )
    if len(info.ne) != 2:
        bound = f"wanted [{n_embd}, rank]"
        raise FileError(f"{file.path.name}: shape of {name}", _shape(info.ne), bound, "the file is damaged")
    return info.ne[1]


def _rope_factors(weights: _Tensors, n_rot: int) -> dict[str, Weight]:
    """The optional factors, each of which divides a frequency: one set, or one a length of context."""
    taken = _take(weights, ROPE_FACTORS if n_rot else (), {"n_pairs": n_rot // 2})
    by_length = [rule for rule in ROPE_FACTORS if rule.role != "rope_freqs"]
    if len(missing := [rule.name for rule in by_length if rule.role not in taken]) == 1:
        bound = "missing: the factors of long and of short contexts come together"
        raise FileError(f"{weights.file.path.name}: tensor", missing[0], bound, "convert the model again")
    for weight in taken.values():
        factors = weights.file.data(weight.name).view(np.float32).reshape(-1)
        bad = factors[~(np.isfinite(factors) & (factors > 0))]
        if bad.size:
            raise FileError(
                f"{weights.file.path.name}: factor in {weight.name}",
                float(bad[0]),
                "finite numbers above 0",
                "the file is damaged",
            )
    return taken


def _n_positions(file: GGUFFile, architecture: Architecture) -> int:
    """Rows of position_embd, which has some for no position in front; 0 with a rotation."""
    rule = architecture.find("position_embd")
    if rule is None:
        return 0
    info = file.tensors.get(rule.name)
    n = info.ne[1] if info is not None and len(info.ne) == 2 else 0
    return max(n, N_UNUSED_POSITIONS + 1)


def load_model(file: GGUFFile) -> Model:
    """Describe the model in an open file.

    Raises:
        FileError: hyperparameters or tensors that are missing, do not fit each other, or cannot run.
    """
    h = read_hyperparameters(file)
    architecture, weights = ARCHITECTURES[h.architecture], _Tensors(file)
    n_vocab, n_positions = _vocabulary(file, h.n_embd), _n_positions(file, architecture)
    sizes = sizes_of(
        n_embd=h.n_embd, n_ff=h.n_ff, n_head=h.n_head, n_head_kv=h.n_head_kv, head_dim=h.head_dim
    )
    once = _take(weights, architecture.whole, {**sizes, "n_vocab": n_vocab, "n_positions": n_positions})
    if n_positions:
        h = replace(h, n_ctx_train=min(h.n_ctx_train, n_positions - N_UNUSED_POSITIONS))
    layer = architecture.layer
    if h.experts is not None and architecture.experts is not None:
        layer, sizes = architecture.experts.layer, sizes | h.experts.sizes
    factors = _rope_factors(weights, h.n_rot)
    model = Model(
        **{field.name: getattr(h, field.name) for field in fields(h)},
        n_vocab=n_vocab,
        has_predictors=file.is_powerinfer,
        token_embd=once["token_embd"],
        position_embd=once.get("position_embd"),
        output_norm=once["output_norm"],
        output_norm_bias=once.get("output_norm_bias"),
        output=once.get("output", once["token_embd"]),
        rope_freqs=factors.get("rope_freqs"),
        rope_factors_long=factors.get("rope_factors_long"),
        rope_factors_short=factors.get("rope_factors_short"),
        layers=tuple(_layer(weights, layer, sizes, i) for i in range(h.n_layer)),
        warnings=file.warnings,
    )
    unused = [name for name in file.tensors if name not in weights.taken]
    _refuse_biases(file, unused)
    return replace(model, warnings=(*file.warnings, *_warnings(file, unused)))


def _refuse_biases(file: GGUFFile, unused: list[str]) -> None:
    """Without its biases a model would answer, and answer wrongly."""
    for name in unused:
        if name.endswith(".bias"):
            raise FileError(
                f"{file.path.name}: tensor",
                name,
                "no such bias can be run in this architecture",
                "hotcold cannot run this model",
            )


def _warnings(file: GGUFFile, unused: list[str]) -> list[str]:
    if not unused:
        return []
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    return [f"{file.path.name}: nothing uses the tensors {', '.join(unused[:3])}{more}"]
