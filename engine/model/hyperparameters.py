"""Hyperparameters of a model, read from a file's metadata and checked before anything is allocated."""

import math
from dataclasses import dataclass

import numpy as np

from hotcold.engine.model.experts import Experts, read_experts
from hotcold.engine.model.multipliers import Multipliers, read_multipliers
from hotcold.engine.model.rope import RopeScaling, Rotation, read_scaling
from hotcold.engine.model.windows import Windows, read_windows
from hotcold.engine.settings import LARGEST_FLOAT32
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.architectures import ARCHITECTURES

MAX_LAYERS = 1024
MAX_EMBD = 1 << 20
MAX_FF = 1 << 23
MAX_CTX = 1 << 30
MAX_VOCAB = 1 << 24
MAX_HEAD_DIM = 1024  # what a thread's scratch memory holds


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes and constants of a model, by GGUF's names.

    Attributes:
        n_rot: numbers of a head that are rotated; 0 for a model with learned positions.
        norm_eps: of RMSNorm or LayerNorm, whichever the architecture has.
        sparse_threshold: predictor outputs at or above it count as active.
        experts: in place of an FFN; None without.
        windows: of layers that see the last positions alone; None without.
        multipliers: of embedding, residual, scores and logits.
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
    rope_scaling: RopeScaling
    ffn_activation: str
    sparse_threshold: float
    experts: Experts | None
    windows: Windows | None
    multipliers: Multipliers

    def window(self, layer: int) -> int:
        """Positions that a token sees in a layer, its own the last; 0 for all."""
        return self.windows.size if self.windows is not None and self.windows.layers[layer] else 0

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """That of layers that see all, and that of layers with a window, if there are some."""
        of_all = Rotation(self.rope_freq_base, self.rope_scaling)
        return (of_all,) if self.windows is None else (of_all, self.windows.rotation)

    @property
    def n_neurons(self) -> int:
        """Neurons of a layer, those of all its experts together."""
        return self.n_ff if self.experts is None else self.experts.n_expert * self.experts.n_ff


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


def _alike(file: GGUFFile, key: str, n_layer: int, largest: int, default: int | None = None) -> int:
    """A number that some files give as an array, one value a layer: all layers must have the same."""
    value = file.metadata.get(key)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return _bounded(file, key, largest, default)
    what = f"{file.path.name}: {key}"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        kind = value.dtype.name if isinstance(value, np.ndarray) else "strings or arrays"
        raise FileError(what, f"an array of {kind}", "integers, one a layer", "the file is damaged")
    if len(value) != n_layer:
        raise FileError(
            what, f"{len(value)} values", f"one for each of {n_layer} layers", "the file is damaged"
        )
    least, most = int(value.min()), int(value.max())
    if least != most:
        raise FileError(what, f"{least} to {most}", "all layers alike", "hotcold cannot run this model")
    if not 1 <= most <= largest:
        raise FileError(what, most, f"1 to {largest}", "the file is damaged")
    return most


def _activation(file: GGUFFile, architecture: str) -> str:
    if file.is_powerinfer:
        return "relu"
    known = ARCHITECTURES[architecture].activations
    name = file.get_str("hotcold.ffn_activation", known[0])
    if name not in known:
        bound = f"known: {', '.join(sorted(known))}"
        raise FileError(f"{file.path.name}: hotcold.ffn_activation", name, bound)
    return name


def _norm_eps(file: GGUFFile, architecture: str) -> float:
    """RMSNorm's or LayerNorm's. PowerInfer neither writes nor reads one for OPT and runs it with 0."""
    table = ARCHITECTURES[architecture]
    key = f"{architecture}.{table.norm_eps}"
    if table.powerinfer_norm_eps is not None and file.is_powerinfer and key not in file.metadata:
        return table.powerinfer_norm_eps
    return _positive(file, key)


def _n_rot(file: GGUFFile, architecture: str, head_dim: int) -> int:
    table = ARCHITECTURES[architecture]
    if not table.rotates:
        return 0
    if table.rotation_may_be_off and file.metadata.get(f"{architecture}.rope.scaling.finetuned") is False:
        return 0
    key = f"{architecture}.rope.dimension_count"
    n_rot = _bounded(file, key, head_dim, head_dim)
    if n_rot % 2:
        what = f"{file.path.name}: {key}"
        raise FileError(what, n_rot, "an even number: pairs are rotated", "the file is damaged")
    return n_rot


def _threshold(file: GGUFFile) -> float:
    value = file.get_float("powerinfer.sparse_threshold", 0.0)
    if not abs(value) <= LARGEST_FLOAT32:
        raise FileError(
            f"{file.path.name}: powerinfer.sparse_threshold", value, "a finite number, as float32 holds it"
        )
    return value


def _architecture(file: GGUFFile) -> str:
    name = file.get_str("general.architecture")
    if name not in ARCHITECTURES:
        raise FileError(
            f"{file.path.name}: architecture",
            name,
            f"known: {', '.join(ARCHITECTURES)}",
            "hotcold cannot run this model",
        )
    return name


def _refuse_soft_caps(file: GGUFFile, architecture: str) -> None:
    """Refuse scores or logits that are c tanh(x / c); no model of an architecture here has them."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if cap := file.get_float(f"{architecture}.{name}", 0.0):
            what = f"{file.path.name}: {architecture}.{name}"
            raise FileError(what, cap, "0: soft caps are not supported", "hotcold cannot run this model")


def _head_dim(file: GGUFFile, architecture: str, n_embd: int, n_head: int) -> int:
    """Numbers a head, the same for queries, keys and values."""
    k, v = f"{architecture}.attention.key_length", f"{architecture}.attention.value_length"
    if k not in file.metadata:
        _divides(
            file, f"{architecture}.embedding_length", n_embd, f"{architecture}.attention.head_count", n_head
        )
    head_dim = _bounded(file, k, MAX_HEAD_DIM, n_embd // n_head)
    if file.get_int(v, head_dim) != head_dim:
        raise FileError(
            f"{file.path.name}: {v}",
            file.get_int(v),
            f"keys have {head_dim}",
            "hotcold cannot run this model",
        )
    return head_dim


def read_hyperparameters(file: GGUFFile) -> Hyperparameters:
    """All hyperparameters, each checked.

    Raises:
        FileError: a key that is missing, of the wrong type, or whose value makes no sense.
    """
    architecture = _architecture(file)
    _refuse_soft_caps(file, architecture)
    key = f"{architecture}.{{}}".format
    n_layer = _bounded(file, key("block_count"), MAX_LAYERS)
    n_embd = _bounded(file, key("embedding_length"), MAX_EMBD)
    n_head = _alike(file, key("attention.head_count"), n_layer, n_embd)
    n_head_kv = _alike(file, key("attention.head_count_kv"), n_layer, n_head, n_head)
    _divides(file, key("attention.head_count"), n_head, key("attention.head_count_kv"), n_head_kv)
    head_dim = _head_dim(file, architecture, n_embd, n_head)
    n_ctx_train = _bounded(file, key("context_length"), MAX_CTX)
    freq_base = _positive(file, key("rope.freq_base"), 10000.0)
    scaling = read_scaling(file, architecture, n_ctx_train)
    return Hyperparameters(
        architecture=architecture,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_rot=_n_rot(file, architecture, head_dim),
        n_ff=_alike(file, key("feed_forward_length"), n_layer, MAX_FF),
        norm_eps=_norm_eps(file, architecture),
        rope_freq_base=freq_base,
        rope_scaling=scaling,
        ffn_activation=_activation(file, architecture),
        sparse_threshold=_threshold(file),
        experts=read_experts(file, architecture),
        windows=read_windows(file, architecture, n_layer, Rotation(freq_base, scaling)),
        multipliers=read_multipliers(file, architecture),
    )
