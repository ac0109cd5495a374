"""A Hugging Face model: its hyperparameters and the table of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotcold.gguf_io.architectures.opt import N_UNUSED_POSITIONS
from hotcold.gguf_io.architectures.table import Architecture, TensorRule, sizes_of
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.rope import Rope

MAX_HEAD_DIM = 1024  # what the engine runs


@dataclass(frozen=True)
class HFModel:
    """What the conversion needs of config.json; sizes in elements.

    Attributes:
        rope: the rotation, or None for learned positions.
        ffn_activation: "relu", "silu" or "gelu".
        tied: the output head is the embedding; None where that shows in the weights.
        token_ids: bos, eos and pad ids of the config, those that it has.
        optional: roles that an architecture's model may lack and that this one has; the head is told by `tied`.
        n_rot: numbers of a head that rotate; 0 for all.
        keys: further metadata, without the architecture: whole numbers, floats, or truth values.
        expert_sizes: sizes of a mixture of experts that shapes name; none without.
        renamed: what names of tensors begin with, and what they begin with in the architecture's table.
        stacks: how experts are stacked in the directory, see `stacked.taken_apart`; "" where they are not.
        beside: what names of tensors begin with that are another model's, such as one of images.
        warnings: one line each.
        powerinfer_warnings: those for a file with predictors.
    """

    architecture: Architecture
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    norm_eps: float
    rope: Rope | None
    ffn_activation: str
    tied: bool | None
    token_ids: dict[str, int]
    optional: frozenset[str] = frozenset()
    n_rot: int = 0
    keys: Mapping[str, int | float | tuple[bool, ...]] = field(default_factory=dict)
    expert_sizes: Mapping[str, int] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    beside: tuple[str, ...] = ()
    stacks: str = ""
    warnings: tuple[str, ...] = ()
    powerinfer_warnings: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Every size that the shapes of the architecture name."""
        sizes = sizes_of(
            n_embd=self.n_embd,
            n_ff=self.n_ff,
            n_head=self.n_head,
            n_head_kv=self.n_head_kv,
            head_dim=self.head_dim,
        )
        sizes |= {"n_vocab": self.n_vocab, "n_positions": self.n_ctx_train + N_UNUSED_POSITIONS}
        return {**sizes, **self.expert_sizes}

    @property
    def n_units(self) -> int:
        """How many neurons of a layer, or experts of a mixture's, are counted."""
        return self.expert_sizes.get("n_expert", self.n_ff)

    @property
    def layer_rules(self) -> tuple[TensorRule, ...]:
        """The tensors of a layer."""
        experts = self.architecture.experts
        return experts.layer if experts is not None and self.expert_sizes else self.architecture.layer


def head_sizes(
    fields: Fields, n_embd: int, names: tuple[str, ...], names_kv: tuple[str, ...]
) -> tuple[int, int, int]:
    """n_head, n_head_kv and head_dim, by the first of their names that is given.

    n_head_kv is n_head by default, and head_dim n_embd / n_head.

    Raises:
        FileError: they do not divide n_embd or each other, or a head is too large.
    """
    name, name_kv = fields.named(*names), fields.named(*names_kv)
    n_head = fields.size(name)
    n_head_kv = fields.size(name_kv, n_head)
    if n_embd % n_head and fields.values.get("head_dim") is None:
        raise fields.wrong(name, f"must divide hidden_size {n_embd}")
    if n_head % n_head_kv:
        raise fields.wrong(name_kv, f"must divide {name} {n_head}")
    return n_head, n_head_kv, fields.size("head_dim", n_embd // n_head, largest=MAX_HEAD_DIM)


def context_length(fields: Fields, default: int | None = None) -> int:
    """Positions that the model was trained on."""
    return fields.size(fields.named("max_position_embeddings", "max_sequence_length"), default)
