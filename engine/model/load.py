"""A model out of a file: its tensors taken by role, each checked against the hyperparameters."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.engine.model.hyperparameters import MAX_VOCAB, read_hyperparameters
from hotcold.engine.model.model import MATRIX_TYPES, NORM_TYPES, Layer, Model, Weight, weights_by_role
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
from hotcold.gguf_io.names import EXACT_LAYERS, HEAD_PROFILE, threshold_name


class _Tensors:
    """Takes weights out of a file by name, and remembers which have been taken."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.taken, self.exact_layers = file, set[str](), frozenset[int]()

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

    def has_rows_by_neuron(self, rule: TensorRule, sizes: Mapping[str, int]) -> bool:
        """Whether experts' down projections have a row a neuron, as PowerInfer stores them by the same name."""
        info, ne = self.file.tensors.get(rule.name), tuple(sizes[name] for name in reversed(rule.shape))
        return info is not None and info.ne != ne and info.ne == (ne[1], ne[0], *ne[2:])

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
    rules = of_layer(by_neuron(rules) if transposed else rules, i)
    taken = _take(weights, (_as_stored(weights, rule, sizes) for rule in rules), sizes)
    biases = [weight.name for role, weight in taken.items() if role.endswith("_exps_bias")]
    if "ffn_down_exps_t" in taken and biases:
        bound = "no kernel reads biases of experts by neuron"
        raise FileError(
            f"{weights.file.path.name}: tensor", biases[0], bound, "convert it without --sparse-layout"
        )
    return Layer(**taken, **_predictor(weights, sizes, i), ffn_threshold=_threshold(weights, sizes, i))


def _threshold(weights: _Tensors, sizes: Mapping[str, int], i: int) -> Weight | None:
    """A number a neuron, in every layer or in none; of experts one an expert's neuron."""
    has_experts = "n_expert" in sizes
    if not weights.has(threshold_name(0, has_experts)):
        return None
    ne = (sizes["n_ff_exp"], sizes["n_expert"]) if has_experts else (sizes["n_ff"],)
    weight = weights.take(threshold_name(i, has_experts), NORM_TYPES, *ne)
    numbers = weights.file.data(weight.name).view(np.float32)
    if not (numbers >= 0).all() or not np.isfinite(numbers).all():
        bad = numbers[~((numbers >= 0) & np.isfinite(numbers))]
        bound = "finite numbers from 0 on"
        raise FileError(
            f"{weights.file.path.name}: threshold in {weight.name}",
            float(bad[0]),
            bound,
            "calibrate it again",
        )
    return weight


def _as_stored(weights: _Tensors, rule: TensorRule, sizes: Mapping[str, int]) -> TensorRule:
    """The rule, or that of experts' down projections the other way round where the file has them so.

    Ours say so by their name; PowerInfer's have the usual one.
    """
    if rule.role != "ffn_down_exps":
        return rule
    (turned,) = by_neuron((rule,), experts=True)
    if weights.has(turned.name):
        return turned
    return replace(turned, name=rule.name) if weights.has_rows_by_neuron(rule, sizes) else rule


def _predictor(weights: _Tensors, sizes: Mapping[str, int], i: int) -> dict[str, Weight]:
    """fc1 [n_embd, rank] and fc2 [rank, n_ff]; the rank may differ from layer to layer, and some may have none."""
    rules = of_layer(PREDICTOR, i)
    is_exact = weights.file.is_powerinfer and i in weights.exact_layers
    for name in filter(weights.has, (rule.name for rule in rules if is_exact)):
        bound = f"{EXACT_LAYERS} says that there is none"
        raise FileError(
            f"{weights.file.path.name}: predictor of layer {i}", name, bound, "convert the model again"
        )
    if is_exact:
        return {}
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


def _exact_layers(file: GGUFFile, n_layer: int) -> frozenset[int]:
    """Layers of a file with predictors of which it says that they have none; FileError unless it says that well."""
    value = file.metadata.get(EXACT_LAYERS)
    if value is None or not file.is_powerinfer:
        return frozenset()
    what = f"{file.path.name}: {EXACT_LAYERS}"
    numbers = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else [n_layer]
    if numbers != sorted(set(numbers)) or not all(0 <= i < n_layer for i in numbers):
        raise FileError(what, _few(value), f"layers, ascending, each below {n_layer}", "convert it again")
    if len(numbers) == n_layer:
        raise FileError(
            what, f"all {n_layer} layers", "a PWRI file has some predictors", "convert it without"
        )
    return frozenset(numbers)


def _few(value: object) -> str:
    """An array, cut short."""
    return ", ".join(map(str, list(value)[:8])) if isinstance(value, np.ndarray) else "strings"


def _rank(file: GGUFFile, name: str, n_embd: int) -> int:
    """Rows of fc1."""
    info = file.tensors.get(name)
    if info is None:
        raise FileError(
            f"{file.path.name}: tensor",
            name,
            f"missing: a PWRI file has a predictor in every layer that {EXACT_LAYERS} does not name",
            "convert the model again with its predictors",
        )
    if len(info.ne) != 2:
        bound = f"wanted [{n_embd}, rank]"
        raise FileError(f"{file.path.name}: shape of {name}", _shape(info.ne), bound, "the file is damaged")
    return info.ne[1]


def _rope_factors(weights: _Tensors, n_rot: int) -> dict[str, Weight]:
    """The optional factors, each of which divides a frequency: one set, or one a length of context."""
    taken = _take(weights, ROPE_FACTORS if n_rot else (), {"n_pairs": n_rot // 2})
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
    by_length = [rule for rule in ROPE_FACTORS if rule.role != "rope_freqs"]
    if len(missing := [rule.name for rule in by_length if rule.role not in taken]) == 1:
        bound = "missing: the factors of long and of short contexts come together"
        raise FileError(f"{weights.file.path.name}: tensor", missing[0], bound, "convert the model again")
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
    weights.exact_layers = _exact_layers(file, h.n_layer)
    once = _take(weights, architecture.whole, {**sizes, "n_vocab": n_vocab, "n_positions": n_positions})
    if n_positions:
        h = replace(h, n_ctx_train=min(h.n_ctx_train, n_positions - N_UNUSED_POSITIONS))
    layer = architecture.layer
    if h.experts is not None and architecture.experts is not None:
        layer, sizes = architecture.experts.layer, sizes | h.experts.sizes
    factors = _rope_factors(weights, h.n_rot)
    head_fc1, head_fc2 = _head_profile(weights, h.n_embd, n_vocab)
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
        head_fc1=head_fc1,
        head_fc2=head_fc2,
    )
    unused = [name for name in file.tensors if name not in weights.taken]
    _refuse_biases(file, unused)
    _refuse_both_ways_round(file, model)
    return replace(model, warnings=(*file.warnings, *_warnings(file, unused)))


def _head_profile(weights: _Tensors, n_embd: int, n_vocab: int) -> tuple[Weight | None, Weight | None]:
    """SmallThinker's profile of the head: H rows of n_embd and then n_vocab rows of H, in one tensor."""
    info = weights.file.tensors.get(HEAD_PROFILE)
    if info is None:
        return None, None
    rank, rest = divmod(math.prod(info.ne), n_embd + n_vocab)
    block, size = GGML_QUANT_SIZES[info.type]
    if rest or not rank or rank % block or n_embd % block:
        bound = f"rows of n_embd = {n_embd}, then n_vocab = {n_vocab} rows of as many numbers"
        what = f"{weights.file.path.name}: shape of {HEAD_PROFILE}"
        raise FileError(what, _shape(info.ne), bound, "the file is damaged")
    whole = weights.take(HEAD_PROFILE, MATRIX_TYPES, *info.ne)
    n_bytes = [rank * n // block * size for n in (n_embd, n_vocab)]
    fc1 = replace(whole, ne=(n_embd, rank), n_bytes=n_bytes[0])
    return fc1, replace(whole, ne=(rank, n_vocab), n_bytes=n_bytes[1], first_row=n_embd)


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


def _refuse_both_ways_round(file: GGUFFile, model: Model) -> None:
    """Experts are placed by neurons in all layers or in none."""
    by_neuron = [layer.ffn_down_exps_t is not None for layer in model.layers]
    if any(by_neuron) and not all(by_neuron):
        one, other = by_neuron.index(True), by_neuron.index(False)
        what, bound = (
            f"{file.path.name}: experts' down projections of layer {one}",
            f"as those of layer {other}",
        )
        raise FileError(what, "the other way round", bound, "convert the model again")


def _warnings(file: GGUFFile, unused: list[str]) -> list[str]:
    if not unused:
        return []
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    return [f"{file.path.name}: nothing uses the tensors {', '.join(unused[:3])}{more}"]
