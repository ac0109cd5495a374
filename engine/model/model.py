"""A model: its hyperparameters and its weights by role, each checked against the other.

Weights are names, types and shapes; where their numbers lie is the stores' business.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.engine.model.hyperparameters import GATED, MAX_VOCAB, Hyperparameters, read_hyperparameters
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile, TensorInfo

T = GGMLQuantizationType

# Which types have kernels for which role.
MATRIX_TYPES = frozenset(
    {T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K}
)
NORM_TYPES = frozenset({T.F32})

N_UNUSED_POSITIONS = 2  # rows of position_embd in front of position 0


@dataclass(frozen=True)
class Weight:
    """A tensor of the file, or some rows of one.

    Attributes:
        ne: ggml order, numbers a row first.
        n_bytes: of all rows.
        first_row: of the tensor `name`; above 0 only where several weights are stacked in one tensor.
    """

    name: str
    type: GGMLQuantizationType
    ne: tuple[int, ...]
    n_bytes: int
    first_row: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of a matrix; a vector has one."""
        return self.ne[1] if len(self.ne) > 1 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as the file has it."""
        return self.n_bytes // self.n_rows


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, None where the architecture or the file has none.

    `ffn_down_t` has a row a neuron; a file holds it or `ffn_down`. `ffn_down_bias` belongs to either.
    """

    attn_norm: Weight
    attn_q: Weight
    attn_k: Weight
    attn_v: Weight
    attn_output: Weight
    ffn_up: Weight
    ffn_norm: Weight | None = None
    ffn_gate: Weight | None = None
    ffn_down: Weight | None = None
    ffn_down_t: Weight | None = None
    fc1: Weight | None = None
    fc2: Weight | None = None
    attn_norm_bias: Weight | None = None
    attn_norm_2: Weight | None = None
    attn_norm_2_bias: Weight | None = None
    attn_q_bias: Weight | None = None
    attn_k_bias: Weight | None = None
    attn_v_bias: Weight | None = None
    attn_output_bias: Weight | None = None
    ffn_norm_bias: Weight | None = None
    ffn_up_bias: Weight | None = None
    ffn_down_bias: Weight | None = None

    @property
    def ffn_matrices(self) -> tuple[Weight, ...]:
        """Gate (if there is one), up and down."""
        gate = () if self.ffn_gate is None else (self.ffn_gate,)
        return (*gate, self.ffn_up, self.down)

    @property
    def down(self) -> Weight:
        """The down projection as the file has it."""
        down = self.ffn_down or self.ffn_down_t
        if down is None:
            raise FileError("layer", self.ffn_up.name, "neither ffn_down nor ffn_down_t")
        return down


@dataclass(frozen=True)
class Model(Hyperparameters):
    """Hyperparameters and weights.

    Attributes:
        n_ctx_train: no more than a table of learned positions has room for.
        position_embd: learned positions, whose first two rows belong to none; None with rotation.
        output: the head; `token_embd` again in a tied model.
        rope_freqs: factors that divide the rotation's frequencies, float32 [n_rot / 2].
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
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]


class _Weights:
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

    def optional(self, name: str, types: frozenset[GGMLQuantizationType], *ne: int) -> Weight | None:
        return self.take(name, types, *ne) if self.has(name) else None


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


def _layer(weights: _Weights, h: Hyperparameters, i: int) -> Layer:
    down, down_t = _down(weights, h, i)
    fc1, fc2 = _predictor(weights, h, i)
    roles: dict[str, Any] = {
        **_norms(weights, h, i),
        **(_stacked_attention if h.architecture == "falcon" else _attention)(weights, h, i),
        "ffn_up": weights.take(f"blk.{i}.ffn_up.weight", MATRIX_TYPES, h.n_embd, h.n_ff),
        "ffn_down": down,
        "ffn_down_t": down_t,
        "fc1": fc1,
        "fc2": fc2,
        **_biases(weights, h, i, "ffn_down_t" if down_t else "ffn_down"),
    }
    if h.architecture in GATED:
        roles["ffn_gate"] = weights.take(f"blk.{i}.ffn_gate.weight", MATRIX_TYPES, h.n_embd, h.n_ff)
    return Layer(**roles)


def _down(weights: _Weights, h: Hyperparameters, i: int) -> tuple[Weight | None, Weight | None]:
    """ffn_down [n_ff, n_embd] or ffn_down_t [n_embd, n_ff]."""
    name = f"blk.{i}.ffn_down_t.weight"
    if weights.file.is_powerinfer or weights.has(name):
        return None, weights.take(name, MATRIX_TYPES, h.n_embd, h.n_ff)
    return weights.take(f"blk.{i}.ffn_down.weight", MATRIX_TYPES, h.n_ff, h.n_embd), None


def _norms(weights: _Weights, h: Hyperparameters, i: int) -> dict[str, Weight | None]:
    """Norms in front of attention and FFN, with a bias where they are LayerNorm.

    Falcon has one for both, or attn_norm for the FFN and attn_norm_2 for attention.
    """
    names = ["attn_norm", "ffn_norm"]
    if h.architecture == "falcon":
        second = weights.has(f"blk.{i}.attn_norm_2.weight") or weights.has(f"blk.{i}.attn_norm_2.bias")
        names[1:] = ["attn_norm_2"] if second else []
    taken: dict[str, Weight | None] = {}
    for name in names:
        taken[name] = weights.take(f"blk.{i}.{name}.weight", NORM_TYPES, h.n_embd)
        taken[f"{name}_bias"] = _norm_bias(weights, h, f"blk.{i}.{name}.bias")
    return taken


def _norm_bias(weights: _Weights, h: Hyperparameters, name: str) -> Weight | None:
    return None if h.architecture in GATED else weights.take(name, NORM_TYPES, h.n_embd)


def _attention(weights: _Weights, h: Hyperparameters, i: int) -> dict[str, Weight]:
    q, kv, embd = h.n_head * h.head_dim, h.n_head_kv * h.head_dim, h.n_embd
    sizes = {"attn_q": (embd, q), "attn_k": (embd, kv), "attn_v": (embd, kv), "attn_output": (q, embd)}
    return {role: weights.take(f"blk.{i}.{role}.weight", MATRIX_TYPES, *ne) for role, ne in sizes.items()}


def _stacked_attention(weights: _Weights, h: Hyperparameters, i: int) -> dict[str, Weight]:
    """attn_qkv [n_embd, (n_head + 2 n_head_kv) head_dim]: rows of q, of k, of v; and the output."""
    q, kv = h.n_head * h.head_dim, h.n_head_kv * h.head_dim
    whole = weights.take(f"blk.{i}.attn_qkv.weight", MATRIX_TYPES, h.n_embd, q + 2 * kv)
    return {
        "attn_q": _some_rows(whole, 0, q),
        "attn_k": _some_rows(whole, q, kv),
        "attn_v": _some_rows(whole, q + kv, kv),
        "attn_output": weights.take(f"blk.{i}.attn_output.weight", MATRIX_TYPES, q, h.n_embd),
    }


def _some_rows(weight: Weight, first: int, n: int) -> Weight:
    return replace(weight, ne=(weight.ne[0], n), n_bytes=n * weight.row_bytes, first_row=first)


def _biases(weights: _Weights, h: Hyperparameters, i: int, down: str) -> dict[str, Weight | None]:
    """Biases of the matrices: all of OPT's, three of Qwen2's, those of attention that a llama file has."""
    q, kv = h.n_head * h.head_dim, h.n_head_kv * h.head_dim
    sizes = {"attn_q": q, "attn_k": kv, "attn_v": kv, "attn_output": h.n_embd}
    if h.architecture == "opt":
        sizes |= {"ffn_up": h.n_ff, down: h.n_embd}
    if h.architecture == "qwen2":
        del sizes["attn_output"]
    take = {"opt": weights.take, "qwen2": weights.take, "llama": weights.optional}.get(h.architecture)
    if take is None:
        return {}
    return {
        f"{role.removesuffix('_t')}_bias": take(f"blk.{i}.{role}.bias", NORM_TYPES, n)
        for role, n in sizes.items()
    }


def _predictor(weights: _Weights, h: Hyperparameters, i: int) -> tuple[Weight | None, Weight | None]:
    """fc1 [n_embd, rank] and fc2 [rank, n_ff]; the rank may differ from layer to layer."""
    first, second = f"blk.{i}.fc1.weight", f"blk.{i}.fc2.weight"
    if not weights.file.is_powerinfer:
        for name in filter(weights.has, (first, second)):
            raise FileError(
                f"{weights.file.path.name}: predictor of layer {i}",
                name,
                "only a file with PowerInfer's magic PWRI has predictors",
                "convert the model again with its predictors",
            )
        return None, None
    rank = _rank(weights.file, first, h.n_embd)
    fc1 = weights.take(first, MATRIX_TYPES, h.n_embd, rank)
    return fc1, weights.take(second, MATRIX_TYPES, rank, h.n_ff)


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


def _rope_freqs(weights: _Weights, n_rot: int) -> Weight | None:
    """The optional factors, each of which divides a frequency."""
    name = "rope_freqs.weight"
    weight = weights.optional(name, NORM_TYPES, n_rot // 2)
    if weight is None:
        return None
    factors = weights.file.data(name).view(np.float32).reshape(-1)
    bad = factors[~(np.isfinite(factors) & (factors > 0))]
    if bad.size:
        raise FileError(
            f"{weights.file.path.name}: factor in {name}",
            float(bad[0]),
            "finite numbers above 0",
            "the file is damaged",
        )
    return weight


def _position_embd(weights: _Weights, h: Hyperparameters) -> Weight | None:
    """OPT's learned positions [n_embd, 2 + positions]."""
    name = "position_embd.weight"
    if h.architecture != "opt":
        return None
    info = weights.file.tensors.get(name)
    n = info.ne[1] if info is not None and len(info.ne) == 2 else 0
    return weights.take(name, MATRIX_TYPES, h.n_embd, max(n, N_UNUSED_POSITIONS + 1))


def load_model(file: GGUFFile) -> Model:
    """Describe the model in an open file.

    Raises:
        FileError: hyperparameters or tensors that are missing, do not fit each other, or cannot run.
    """
    h = read_hyperparameters(file)
    weights = _Weights(file)
    n_vocab = _vocabulary(file, h.n_embd)
    token_embd = weights.take("token_embd.weight", MATRIX_TYPES, h.n_embd, n_vocab)
    position_embd = _position_embd(weights, h)
    if position_embd is not None:
        h = replace(h, n_ctx_train=min(h.n_ctx_train, position_embd.ne[1] - N_UNUSED_POSITIONS))
    output = weights.optional("output.weight", MATRIX_TYPES, h.n_embd, n_vocab) or token_embd
    model = Model(
        **{field.name: getattr(h, field.name) for field in fields(h)},
        n_vocab=n_vocab,
        has_predictors=file.is_powerinfer,
        token_embd=token_embd,
        position_embd=position_embd,
        output_norm=weights.take("output_norm.weight", NORM_TYPES, h.n_embd),
        output_norm_bias=_norm_bias(weights, h, "output_norm.bias"),
        output=output,
        rope_freqs=_rope_freqs(weights, h.n_rot) if h.n_rot else None,
        layers=tuple(_layer(weights, h, i) for i in range(h.n_layer)),
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
