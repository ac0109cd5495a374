"""Hyperparameters out of a Hugging Face config.json, each one checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotcold.errors import FileError
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.names import ARCHITECTURES, ArchitectureNames

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 4096
SMALLEST, LARGEST = 1e-30, 1e30  # far inside what a float32 holds
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu"}


@dataclass(frozen=True)
class HFConfig:
    """What the conversion needs of config.json; sizes in elements.

    Attributes:
        names: the tensors of this architecture.
        rope_linear_factor: positions are divided by it; 1.0 without scaling.
        ffn_activation: "relu" or "silu".
        tied: the output head is the embedding.
        token_ids: bos, eos and pad ids of the config, those that it has.
    """

    names: ArchitectureNames
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_ff: int
    n_head: int
    n_head_kv: int
    norm_eps: float
    rope_freq_base: float
    rope_linear_factor: float
    ffn_activation: str
    tied: bool
    token_ids: dict[str, int]

    @property
    def head_dim(self) -> int:
        """Elements a head."""
        return self.n_embd // self.n_head

    def size(self, symbol: str) -> int:
        """The size that a shape in `names` calls `symbol`."""
        derived = {"n_head_dim": self.n_head * self.head_dim, "n_head_kv_dim": self.n_head_kv * self.head_dim}
        return derived[symbol] if symbol in derived else int(getattr(self, symbol))


def read_config(path: Path) -> HFConfig:
    """Reads `path`, a config.json.

    Raises:
        FileError: unreadable, an unsupported architecture, activation, bias or rope scaling, or a
            hyperparameter that is missing, of the wrong type or out of bounds.
    """
    fields = _Fields(path, read_json_object(path))
    names = _architecture(fields)
    _refuse_biases(fields)
    rope = _rope_settings(fields)
    n_head = fields.size("num_attention_heads")
    config = HFConfig(
        names=names,
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=_context_length(fields),
        n_embd=fields.size("hidden_size"),
        n_layer=fields.size("num_hidden_layers", largest=MAX_LAYERS),
        n_ff=fields.size("intermediate_size"),
        n_head=n_head,
        n_head_kv=fields.size("num_key_value_heads", n_head),
        norm_eps=fields.positive("rms_norm_eps"),
        rope_freq_base=rope.positive("rope_theta", 10000.0),
        rope_linear_factor=_linear_factor(rope),
        ffn_activation=_activation(fields),
        tied=fields.flag("tie_word_embeddings", False),
        token_ids=_token_ids(fields),
    )
    _check_heads(fields, config)
    return config


@dataclass(frozen=True)
class _Fields:
    """Typed access to config.json, or to an object inside it."""

    path: Path
    values: dict[str, Any]

    def wrong(self, name: str, bound: str, next_step: str = "correct config.json") -> FileError:
        value = repr(self.values[name])[:100] if self.values.get(name) is not None else "missing"
        return FileError(f"{self.path}: {name}", value, bound, next_step)

    def size(self, name: str, default: int | None = None, largest: int = MAX_SIZE) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= largest:
            raise self.wrong(name, f"a whole number from 1 to {largest}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not SMALLEST < value < LARGEST:
            raise self.wrong(name, f"a number from {SMALLEST} to {LARGEST}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value


def _architecture(fields: _Fields) -> ArchitectureNames:
    model_type = fields.values.get("model_type")
    names = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if names is None:
        raise fields.wrong(
            "model_type", f"supported: {', '.join(ARCHITECTURES)}", "use a model of that architecture"
        )
    return names


def _activation(fields: _Fields) -> str:
    name = fields.values.get("hidden_act")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.wrong(
            "hidden_act", f"supported: {', '.join(ACTIVATIONS)}", "use a model with one of them"
        )
    return ACTIVATIONS[name]


def _refuse_biases(fields: _Fields) -> None:
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name, False):
            raise fields.wrong(name, "projections with a bias are not supported", "use a model without them")


def _context_length(fields: _Fields) -> int:
    names = [name for name in ("max_position_embeddings", "max_sequence_length") if name in fields.values]
    return fields.size(names[0] if names else "max_position_embeddings")


def _rope_settings(fields: _Fields) -> _Fields:
    """rope_theta and the scaling, which newer configs keep together in rope_parameters."""
    settings: dict[str, Any] = {
        name: fields.values[name] for name in ("rope_theta", "partial_rotary_factor") if name in fields.values
    }
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise fields.wrong(name, "null or an object")
        settings.update(value or {})
    return _Fields(fields.path, settings)


def _linear_factor(rope: _Fields) -> float:
    name = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.values.get(name) or "default"
    if rope.values.get("partial_rotary_factor", 1.0) != 1.0:
        raise rope.wrong("partial_rotary_factor", "must be 1", "use a model that rotates whole heads")
    if kind == "default":
        return 1.0
    if kind != "linear":
        raise rope.wrong(name, "rope scaling: supported is linear", "use a model without other scaling")
    return rope.positive("factor")


def _token_ids(fields: _Fields) -> dict[str, int]:
    """bos, eos and pad; of several ids the first counts."""
    ids = {}
    for name in ("bos", "eos", "pad"):
        value = fields.values.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and value >= 0:
            ids[name] = value
    return ids


def _check_heads(fields: _Fields, config: HFConfig) -> None:
    if config.n_embd % config.n_head:
        raise fields.wrong("num_attention_heads", f"must divide hidden_size {config.n_embd}")
    if config.n_head % config.n_head_kv:
        raise fields.wrong("num_key_value_heads", f"must divide num_attention_heads {config.n_head}")
    if config.head_dim % 2:
        raise fields.wrong(
            "num_attention_heads", f"a head of {config.head_dim} elements cannot rotate in pairs"
        )
    if fields.size("head_dim", config.head_dim) != config.head_dim:
        raise fields.wrong(
            "head_dim", f"hidden_size / num_attention_heads = {config.head_dim}", "use another model"
        )
