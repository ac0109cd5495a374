"""What the tables of architectures are made of: a rule a tensor, and the facts of a whole architecture.

A table says of each tensor what the loader calls it, its name in a GGUF file and in a Hugging Face
directory, its shape by names of sizes, and whether a model may lack it. Loader, shapes for planning and
converter read the same table. `{i}` stands for the layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from gguf import GGMLQuantizationType

from hotcold.gguf_io import down_names

Layout = Literal[
    "same",
    "permute_q",
    "permute_k",
    "stack_qkv",
    "transpose",
    "stack_experts",
    "stack_turned",
    "plus_one",
    "one_row",
]
OF_EACH: dict[Layout, Layout] = {"stack_experts": "same", "stack_turned": "transpose"}
"""What happens to one expert's matrix where those of all are stacked."""

RMS_EPS = "attention.layer_norm_rms_epsilon"
LAYER_NORM_EPS = "attention.layer_norm_epsilon"
MAX_EXPERTS = 1 << 14  # what the engine runs


@dataclass(frozen=True)
class TensorRule:
    """One tensor: its role, its name and shape in the file, its name in the source, and what happens on the way.

    permute_q and permute_k: rows of each head go from "first half, second half" to pairs, since
    GGUF's `llama` rotates neighbours (2i, 2i + 1). stack_qkv: rows in groups, the queries of one key
    and value head with that head's key and value, become all queries, all keys, all values.
    transpose: rows become columns. stack_experts: one matrix an expert, `{e}` in the source, becomes one tensor;
    stack_turned: each transposed.
    one_row: a matrix of one row becomes a vector.
    plus_one: 1 is added to every number.

    Attributes:
        role: a field of the engine's `Layer` or `Model`.
        shape: in the file, NumPy order (row length last), in names of sizes (see `sizes_of`).
        optional: whether a model may lack it. A weight and its bias that may both be lacking come together.
        parts: role and rows of the weights that are stacked in it, in order; it has no role of its own then.
    """

    role: str
    name: str
    source: str
    shape: tuple[str, ...]
    layout: Layout = "same"
    optional: bool = False
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def source_shape(self) -> tuple[str, ...]:
        """Its shape in the source, likewise."""
        if self.layout == "one_row":
            return ("one", *self.shape)
        if self.layout == "stack_experts":
            return self.shape[1:]
        if self.layout == "stack_turned":
            return self.shape[:0:-1]
        return self.shape[::-1] if self.layout == "transpose" else self.shape

    @property
    def stem(self) -> str:
        """The name without .weight or .bias."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ExpertFacts:
    """What a mixture of experts of an architecture is like.

    Attributes:
        layer: the tensors of every layer with experts in place of an FFN.
        gating: how the router's logits become weights (`kernels.ref.top_k`); "" where the file's
            expert_gating_func says it.
        normed: whether weights are divided by their sum.
        width: the metadata key of an expert's n_ff, without the architecture.
        shared_width: of the shared expert's, if there is one.
        may_lack_shared: whether a file may be without it.
    """

    layer: tuple[TensorRule, ...]
    gating: str
    normed: bool
    width: str
    shared_width: str = ""
    may_lack_shared: bool = False


@dataclass(frozen=True)
class WindowFacts:
    """Which layers of an architecture see the last positions alone, and how those rotate.

    Attributes:
        period: of so many layers in a row one sees all.
        first_sees_all: it is the first of them, else the last.
        required: whether the window is, too.
        freq_base: of the windowed layers' rotation where the file does not say; 0: that of the others.
        scaled: whether a scaling of the rotation is for them too.
        size: of every window, whatever the file says, which may say 0 for none; 0 where it is the file's.
    """

    period: int
    first_sees_all: bool = False
    required: bool = False
    freq_base: float = 0.0
    scaled: bool = True
    size: int = 0


@dataclass(frozen=True)
class Architecture:
    """The tensors and the facts of one architecture.

    Attributes:
        name: GGUF's general.architecture.
        activations: those that its FFN may have, the one that a file without a word means first.
        norm_eps: the metadata key of the norms' epsilon, without the architecture.
        prefix: begins every source name but the head's; a checkpoint of the bare model leaves it out.
        whole: tensors that occur once, the head (`output`) last: it is absent where it is tied to the embedding.
        layer: tensors of every layer; the down projection has a row an output, as llama.cpp has it.
        ignored: endings of source tensors that carry nothing to convert.
        metadata: further keys, without the architecture, and their text.
        powerinfer_norm_eps: what a file of PowerInfer means that names no epsilon; None where it must.
        powerinfer_ties: whether PowerInfer itself takes the embedding for a missing head.
        quantised_head: the type of the head in a file of block types, by llama.cpp's rule.
        pretokenizers: where a vocabulary's pre-tokenizer has another name in this architecture, both names.
        experts: how its mixtures of experts are, whose layers have their own tensors; None where it has none.
        always_experts: whether all its models are such.
        windows: which of its layers have a window; None for an architecture that has none.
        multipliers: whether embedding, residual, scores and logits have multipliers of their own.
        rotation_may_be_off: whether rope.scaling.finetuned of false means that nothing rotates.
    """

    name: str
    activations: tuple[str, ...]
    norm_eps: str
    prefix: str
    whole: tuple[TensorRule, ...]
    layer: tuple[TensorRule, ...]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    metadata: tuple[tuple[str, str], ...] = ()
    powerinfer_norm_eps: float | None = None
    powerinfer_ties: bool = False
    quantised_head: GGMLQuantizationType = GGMLQuantizationType.Q6_K
    pretokenizers: tuple[tuple[str, str], ...] = ()
    experts: ExpertFacts | None = None
    always_experts: bool = False
    windows: WindowFacts | None = None
    multipliers: bool = False
    rotation_may_be_off: bool = False

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated; else positions are learned."""
        return self.find("position_embd") is None

    def find(self, role: str) -> TensorRule | None:
        """The rule of this role, if there is one."""
        return next((rule for rule in (*self.whole, *self.layer) if rule.role == role), None)

    def rule(self, role: str) -> TensorRule:
        """The rule of this role, which every architecture has."""
        return next(rule for rule in (*self.whole, *self.layer) if rule.role == role)

    def with_sources(self, sources: dict[str, str]) -> "Architecture":
        """The same, with other names in the source for the weights of these roles and their biases."""

        def renamed(rule: TensorRule) -> TensorRule:
            stem = sources.get(rule.role.removesuffix("_bias"))
            return replace(rule, source=f"{stem}.{rule.source.rpartition('.')[2]}") if stem else rule

        return replace(self, layer=tuple(map(renamed, self.layer)))


def weight(
    role: str,
    source: str,
    *shape: str,
    layout: Layout = "same",
    optional: bool = False,
    parts: tuple[tuple[str, str], ...] = (),
) -> TensorRule:
    """A matrix, or the weight of a norm."""
    return TensorRule(role, f"{role}.weight", f"{source}.weight", shape, layout, optional, parts)


def expert_matrices(source: str, gate: str, up: str, down: str) -> tuple[TensorRule, ...]:
    """Gate, up and down of all experts, stacked; in the source one matrix an expert, `{e}` in the name."""
    table = (
        ("ffn_gate_exps", gate, "n_ff_exp", "n_embd"),
        ("ffn_up_exps", up, "n_ff_exp", "n_embd"),
        ("ffn_down_exps", down, "n_embd", "n_ff_exp"),
    )
    return tuple(
        weight(role, f"{source}.{{{{e}}}}.{name}", "n_expert", *shape, layout="stack_experts")
        for role, name, *shape in table
    )


def bias(role: str, source: str, n: str, layout: Layout = "same", optional: bool = False) -> TensorRule:
    """The bias of the weight of this role."""
    return TensorRule(f"{role}_bias", f"{role}.bias", f"{source}.bias", (n,), layout, optional)


def with_bias(role: str, source: str, *shape: str, optional: bool = False) -> tuple[TensorRule, TensorRule]:
    """A weight and its bias, which has a number a row; a norm has as many of both."""
    return (
        weight(role, source, *shape, optional=optional),
        bias(role, source, shape[0], optional=optional),
    )


def in_layer(prefix: str, rules: Iterable[TensorRule]) -> tuple[TensorRule, ...]:
    """Rules of every layer, by names inside it."""
    return tuple(
        replace(rule, name=f"blk.{{i}}.{rule.name}", source=f"{prefix}{rule.source}") for rule in rules
    )


def of_layer(rules: Iterable[TensorRule], i: int) -> tuple[TensorRule, ...]:
    """The rules of layer i."""
    return tuple(replace(rule, name=rule.name.format(i=i), source=rule.source.format(i=i)) for rule in rules)


def by_neuron(rules: Iterable[TensorRule], experts: bool = False) -> tuple[TensorRule, ...]:
    """The same rules with a down projection that has a row a neuron, as sparse models want it.

    Args:
        experts: whether those of experts have one too.
    """
    return tuple(_by_neuron(rule, experts) for rule in rules)


def _by_neuron(rule: TensorRule, experts: bool) -> TensorRule:
    if rule.role == "ffn_down_exps" and experts:
        n_expert, *rest = rule.shape
        shape, name = (n_expert, *rest[::-1]), down_names.by_neuron(rule.name)
        return replace(rule, role="ffn_down_exps_t", name=name, shape=shape, layout="stack_turned")
    name = down_names.by_neuron(rule.name)
    if rule.role == "ffn_down":
        return replace(rule, role="ffn_down_t", name=name, shape=rule.shape[::-1], layout="transpose")
    return replace(rule, name=name) if rule.role == "ffn_down_bias" else rule


def sizes_of(*, n_embd: int, n_ff: int, n_head: int, n_head_kv: int, head_dim: int) -> dict[str, int]:
    """The sizes that shapes name and that hyperparameters say.

    n_vocab and n_positions are for the caller to add: they are known from the file's tensors alone.
    """
    n_head_dim, n_head_kv_dim = n_head * head_dim, n_head_kv * head_dim
    return {
        "n_embd": n_embd,
        "head_dim": head_dim,
        "n_ff": n_ff,
        "n_gate_up": 2 * n_ff,
        "one": 1,
        "n_head": n_head,
        "n_head_dim": n_head_dim,
        "n_head_kv_dim": n_head_kv_dim,
        "n_qkv_dim": n_head_dim + 2 * n_head_kv_dim,
    }


PREDICTOR = in_layer("", (weight("fc1", "fc1", "rank", "n_embd"), weight("fc2", "fc2", "n_ff", "rank")))
"""A predictor, in every layer of a file with PowerInfer's magic; the rank may differ from layer to layer."""
ROPE_FACTORS = tuple(
    weight(role, "", "n_pairs", optional=True)
    for role in ("rope_freqs", "rope_factors_long", "rope_factors_short")
)
"""Factors that divide the frequencies of a rotation, for any context, for long ones, for short ones; no
directory has them as a tensor."""
