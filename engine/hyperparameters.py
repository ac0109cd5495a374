"""Hyperparameters of a model, read from a file's metadata and checked before anything is allocated."""

import math
from dataclasses import dataclass

from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile

ARCHITECTURES = ("llama",)
MAX_LAYERS = 1024
MAX_EMBD = 1 << 20
MAX_CTX = 1 << 30
MAX_VOCAB = 1 << 24
MAX_HEAD_DIM = 1024  # what a thread's scratch memory holds


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes and constants of a llama-like model, by GGUF's names.

    Attributes:
        rope_freq_scale: 1 / factor of linear scaling, which divides positions.
        sparse_threshold: predictor outputs at or above it count as active.
    """

    architecture: str
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int
    n_ff: int
    norm_eps: float
    rope_freq_base: float
    rope_freq_scale: float
    ffn_activation: str
    sparse_threshold: float


def _bounded(file: GGUFFile, key: str, largest: int, default: int | None = None) -> int:
    value = file.get_int(key, default)
    if not 1 <= value <= largest:
        raise FileError(f"{file.path.name}: {key}", value, f"1 to {largest}", "the file is damaged")
    return value


def _positive(file: GGUFFile, key: str, default: float | None = None) -> float:
    value = file.get_float(key, default)
    if not (math.isfinite(value) and value > 0):
        raise FileError(f"{file.path.name}: {key}", value, "a finite number above 0", "the file is damaged")
    return value


def _divides(file: GGUFFile, what: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        bound = f"a multiple of {by} = {divisor}"
        raise FileError(f"{file.path.name}: {what}", value, bound, "the file is damaged")


def _scalar_int(file: GGUFFile, key: str, largest: int, default: int | None = None) -> int:
    """A number that some files give as an array, one a layer: only arrays of one value run."""
    value = file.metadata.get(key)
    if value is not None and not isinstance(value, bool | int | float | str):
        distinct = {int(v) for v in value}
        if len(distinct) != 1:
            raise FileError(
                f"{file.path.name}: {key}", f"{len(distinct)} different values", "layers must be alike"
            )
        value = distinct.pop()
        if not 1 <= value <= largest:
            raise FileError(f"{file.path.name}: {key}", value, f"1 to {largest}", "the file is damaged")
        return value
    return _bounded(file, key, largest, default)


def _freq_scale(file: GGUFFile, architecture: str) -> float:
    kind = file.get_str(f"{architecture}.rope.scaling.type", "none")
    old = f"{architecture}.rope.scale_linear"
    if kind == "none":
        return 1 / _positive(file, old, 1.0)
    if kind != "linear":
        raise FileError(
            f"{file.path.name}: rope scaling", kind, "known: none, linear", "this model cannot run here yet"
        )
    return 1 / _positive(file, f"{architecture}.rope.scaling.factor", 1.0)


def _activation(file: GGUFFile) -> str:
    if file.is_powerinfer:
        return "relu"
    name = file.get_str("hotcold.ffn_activation", "silu")
    if name not in ("relu", "silu"):
        raise FileError(f"{file.path.name}: hotcold.ffn_activation", name, "known: relu, silu")
    return name


def _threshold(file: GGUFFile) -> float:
    value = file.get_float("powerinfer.sparse_threshold", 0.0)
    if not math.isfinite(value):
        raise FileError(f"{file.path.name}: powerinfer.sparse_threshold", value, "a finite number")
    return value


def read_hyperparameters(file: GGUFFile) -> Hyperparameters:
    """All hyperparameters, each checked.

    Raises:
        FileError: a key that is missing, of the wrong type, or whose value makes no sense.
    """
    architecture = file.get_str("general.architecture")
    if architecture not in ARCHITECTURES:
        raise FileError(
            f"{file.path.name}: architecture",
            architecture,
            f"known: {', '.join(ARCHITECTURES)}",
            "hotcold cannot run this model",
        )
    if file.get_int("split.count", 1) > 1:
        raise FileError(
            f"{file.path.name}: split.count",
            file.get_int("split.count"),
            "a model in one file",
            "join the parts first: llama-gguf-split --merge",
        )
    key = f"{architecture}.{{}}".format
    n_embd = _bounded(file, key("embedding_length"), MAX_EMBD)
    n_head = _scalar_int(file, key("attention.head_count"), n_embd)
    n_head_kv = _scalar_int(file, key("attention.head_count_kv"), n_head, n_head)
    _divides(file, key("attention.head_count"), n_head, "attention.head_count_kv", n_head_kv)
    if key("attention.key_length") not in file.metadata:
        _divides(file, key("embedding_length"), n_embd, "attention.head_count", n_head)
    head_dim = _bounded(file, key("attention.key_length"), MAX_HEAD_DIM, n_embd // n_head)
    n_rot = _bounded(file, key("rope.dimension_count"), head_dim, head_dim)
    _divides(file, key("rope.dimension_count"), n_rot, "pairs", 2)
    return Hyperparameters(
        architecture=architecture,
        n_ctx_train=_bounded(file, key("context_length"), MAX_CTX),
        n_embd=n_embd,
        n_layer=_bounded(file, key("block_count"), MAX_LAYERS),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_rot=n_rot,
        n_ff=_scalar_int(file, key("feed_forward_length"), MAX_EMBD * 8),
        norm_eps=_positive(file, key("attention.layer_norm_rms_epsilon")),
        rope_freq_base=_positive(file, key("rope.freq_base"), 10000.0),
        rope_freq_scale=_freq_scale(file, architecture),
        ffn_activation=_activation(file),
        sparse_threshold=_threshold(file),
    )
