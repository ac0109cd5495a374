"""A model: its hyperparameters and its weights by role, each checked against the other.

Weights are names, types and shapes; where their numbers lie is the stores' business.
"""

from dataclasses import dataclass, fields

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.engine.hyperparameters import MAX_VOCAB, Hyperparameters, read_hyperparameters
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile, TensorInfo

T = GGMLQuantizationType

# Which types have kernels for which role. Rows of a sparse FFN are also picked one by one, shared among
# tokens and added up, scaled.
SPARSE_TYPES = frozenset({T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0})
MATRIX_TYPES = SPARSE_TYPES | {T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K}
NORM_TYPES = frozenset({T.F32})


@dataclass(frozen=True)
class Weight:
    """A tensor of the file.

    Attributes:
        ne: ggml order, numbers a row first.
        n_bytes: of all rows.
    """

    name: str
    type: GGMLQuantizationType
    ne: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True)
class Layer:
    """Weights of one layer. `ffn_down_t` has a row a neuron; a file holds it or `ffn_down`.

    Attributes:
        ffn_gate: `ffn_up` again in an FFN without a gate.
        extras: biases, which go where the layer's attention goes.
    """

    attn_norm: Weight
    attn_q: Weight
    attn_k: Weight
    attn_v: Weight
    attn_output: Weight
    ffn_norm: Weight
    ffn_gate: Weight
    ffn_up: Weight
    ffn_down: Weight | None = None
    ffn_down_t: Weight | None = None
    fc1: Weight | None = None
    fc2: Weight | None = None
    extras: tuple[Weight, ...] = ()

    @property
    def ffn_matrices(self) -> tuple[Weight, ...]:
        """Gate (if there is one), up and down."""
        gate = () if self.ffn_gate is self.ffn_up else (self.ffn_gate,)
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
        output: the head; `token_embd` again in a tied model.
        rope_freqs: factors that divide the rotation's frequencies, float32 [n_rot / 2].
        has_predictors: whether every layer has fc1 and fc2.
        warnings: what a user should know of the file, such as tensors that nothing uses.
        extras: learned positions, and the last norm's bias.
    """

    n_vocab: int
    has_predictors: bool
    token_embd: Weight
    output_norm: Weight
    output: Weight
    rope_freqs: Weight | None
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]
    extras: tuple[Weight, ...] = ()


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
    def name(role: str) -> str:
        return f"blk.{i}.{role}.weight"

    q, kv, embd, n_ff = h.n_head * h.head_dim, h.n_head_kv * h.head_dim, h.n_embd, h.n_ff
    sparse = weights.file.is_powerinfer or weights.has(name("ffn_down_t"))
    ffn_types = SPARSE_TYPES if sparse else MATRIX_TYPES
    fc1, fc2 = _predictor(weights, h, i)
    return Layer(
        attn_norm=weights.take(name("attn_norm"), NORM_TYPES, embd),
        attn_q=weights.take(name("attn_q"), MATRIX_TYPES, embd, q),
        attn_k=weights.take(name("attn_k"), MATRIX_TYPES, embd, kv),
        attn_v=weights.take(name("attn_v"), MATRIX_TYPES, embd, kv),
        attn_output=weights.take(name("attn_output"), MATRIX_TYPES, q, embd),
        ffn_norm=weights.take(name("ffn_norm"), NORM_TYPES, embd),
        ffn_gate=weights.take(name("ffn_gate"), ffn_types, embd, n_ff),
        ffn_up=weights.take(name("ffn_up"), ffn_types, embd, n_ff),
        ffn_down=None if sparse else weights.take(name("ffn_down"), MATRIX_TYPES, n_ff, embd),
        ffn_down_t=weights.take(name("ffn_down_t"), SPARSE_TYPES, embd, n_ff) if sparse else None,
        fc1=fc1,
        fc2=fc2,
    )


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


def _refuse_biases(file: GGUFFile) -> None:
    """Without its biases a model would answer, and answer wrongly."""
    for name in file.tensors:
        if name.endswith(".bias"):
            raise FileError(
                f"{file.path.name}: tensor", name, "no biases can be run", "hotcold cannot run this model"
            )


def load_model(file: GGUFFile) -> Model:
    """Describe the model in an open file.

    Raises:
        FileError: hyperparameters or tensors that are missing, do not fit each other, or cannot run.
    """
    h = read_hyperparameters(file)
    _refuse_biases(file)
    weights = _Weights(file)
    n_vocab = _vocabulary(file, h.n_embd)
    token_embd = weights.take("token_embd.weight", MATRIX_TYPES, h.n_embd, n_vocab)
    output = weights.optional("output.weight", MATRIX_TYPES, h.n_embd, n_vocab) or token_embd
    return Model(
        **{field.name: getattr(h, field.name) for field in fields(h)},
        n_vocab=n_vocab,
        has_predictors=file.is_powerinfer,
        token_embd=token_embd,
        output_norm=weights.take("output_norm.weight", NORM_TYPES, h.n_embd),
        output=output,
        rope_freqs=_rope_freqs(weights, h.n_rot),
        layers=tuple(_layer(weights, h, i) for i in range(h.n_layer)),
        warnings=(*file.warnings, *_unused(file, weights.taken)),
    )


def _unused(file: GGUFFile, taken: set[str]) -> list[str]:
    names = [name for name in file.tensors if name not in taken]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{file.path.name}: nothing uses the tensors {', '.join(names[:3])}{more}"]
