"""A Hugging Face model: its hyperparameters and the names of its tensors."""

from dataclasses import dataclass

from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.rope import Rope
from hotcold.gguf_io.names import ArchitectureNames

N_UNUSED_POSITIONS = 2  # rows of OPT's position table in front of position 0


@dataclass(frozen=True)
class HFModel:
    """What the conversion needs of config.json; sizes in elements.

    Attributes:
        rope: the rotation, or None for learned positions.
        ffn_activation: "relu", "silu" or "gelu".
        tied: the output head is the embedding; None where that shows in the weights.
        token_ids: bos, eos and pad ids of the config, those that it has.
        warnings: one line each. powerinfer_warnings: those for a file with predictors.
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
    rope: Rope | None
    ffn_activation: str
    tied: bool | None
    token_ids: dict[str, int]
    warnings: tuple[str, ...] = ()
    powerinfer_warnings: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        """Elements a head."""
        return self.n_embd // self.n_head

    def size(self, symbol: str) -> int:
        """The size that a shape in `names` calls `symbol`."""
        n_head_kv_dim = self.n_head_kv * self.head_dim
        derived = {
            "n_head_dim": self.n_head * self.head_dim,
            "n_head_kv_dim": n_head_kv_dim,
            "n_qkv_dim": self.n_head * self.head_dim + 2 * n_head_kv_dim,
            "n_positions": self.n_ctx_train + N_UNUSED_POSITIONS,
        }
        return derived[symbol] if symbol in derived else int(getattr(self, symbol))


def head_sizes(
    fields: Fields, n_embd: int, names: tuple[str, ...], names_kv: tuple[str, ...]
) -> tuple[int, int]:
    """n_head and n_head_kv, by the first of their names that is given; n_head_kv is n_head by default.

    Raises:
        FileError: they do not divide n_embd or each other, or head_dim says something else.
    """
    name, name_kv = fields.named(*names), fields.named(*names_kv)
    n_head = fields.size(name)
    n_head_kv = fields.size(name_kv, n_head)
    if n_embd % n_head:
        raise fields.wrong(name, f"must divide hidden_size {n_embd}")
    if n_head % n_head_kv:
        raise fields.wrong(name_kv, f"must divide {name} {n_head}")
    if fields.size("head_dim", n_embd // n_head) != n_embd // n_head:
        raise fields.wrong("head_dim", f"hidden_size / {name} = {n_embd // n_head}", "use another model")
    return n_head, n_head_kv


def context_length(fields: Fields, default: int | None = None) -> int:
    """Positions that the model was trained on."""
    return fields.size(fields.named("max_position_embeddings", "max_sequence_length"), default)
