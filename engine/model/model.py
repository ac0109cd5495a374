"""A model: its hyperparameters and its weights by role.

Weights are names, types and shapes; where their numbers lie is the stores' business.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from gguf import GGMLQuantizationType

from hotcold.engine.model.hyperparameters import Hyperparameters
from hotcold.errors import FileError
from hotcold.gguf_io.architectures.opt import N_UNUSED_POSITIONS
from hotcold.gguf_io.architectures.table import TensorRule
from hotcold.kernels.weight_table import WEIGHT_TYPES

T = GGMLQuantizationType

# Which types have kernels for which role.
MATRIX_TYPES = frozenset(WEIGHT_TYPES)
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
    def names(self) -> tuple[str, ...]:
        """Of the tensors that it lies in."""
        return self.stacked or (self.name,)

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
    FFN that every token goes to, `_shexp`, with a gate of its own. `ffn_threshold` has a number a neuron, of all
    experts where there are some.
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
    ffn_threshold: Weight | None = None
    attn_norm_bias: Weight | None = None
    attn_norm_2: Weight | None = None
    attn_norm_2_bias: Weight | None = None
    attn_q_norm: Weight | None = None
    attn_k_norm: Weight | None = None
    attn_sinks: Weight | None = None
    post_attention_norm: Weight | None = None
    post_ffw_norm: Weight | None = None
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
    ffn_down_exps_t: Weight | None = None
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
        """How many parts of the FFN are placed by themselves: see `Model.unit`."""
        return self.up.n_rows if self.ffn_down_exps is None else self.n_expert

    @property
    def n_expert(self) -> int:
        """How many experts the layer has; 1 without."""
        return self.up.ne[2] if len(self.up.ne) > 2 else 1

    @property
    def up(self) -> Weight:
        """The up projection, which every FFN has."""
        return self.ffn_matrices[-2]

    @property
    def down(self) -> Weight:
        """The down projection as the file has it."""
        down = self.ffn_down_exps or self.ffn_down_exps_t or self.ffn_down or self.ffn_down_t
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
        head_fc1, head_fc2: of SmallThinker's profile of the head: rows of `output` that matter to a vector x are those
            where head_fc2 (head_fc1 x) is positive.
        sparse_head: whether a token by itself computes those alone.
        rope_freqs: factors that divide the rotation's frequencies, float32 [n_rot / 2].
        rope_factors_long, rope_factors_short: likewise, without rope_freqs; which of them is a matter of n_ctx.
        has_predictors: whether layers have fc1 and fc2; one without runs in the exact mode where others use theirs.
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
    head_fc1: Weight | None = None
    head_fc2: Weight | None = None
    sparse_head: bool = True

    @property
    def exact_layers(self) -> tuple[int, ...]:
        """Layers of a model with predictors that have none."""
        return tuple(i for i, layer in enumerate(self.layers) if self.has_predictors and layer.fc1 is None)

    @property
    def head_profile(self) -> tuple[Weight, ...]:
        """Both matrices of the profile of the head; none without one."""
        return tuple(weight for weight in (self.head_fc1, self.head_fc2) if weight is not None)

    @property
    def lists_head_rows(self) -> bool:
        """Whether a token by itself computes some rows of the head alone."""
        return self.sparse_head and self.head_fc1 is not None

    @property
    def has_thresholds(self) -> bool:
        """Whether every layer has a threshold for each of its neurons."""
        return all(layer.ffn_threshold is not None for layer in self.layers)

    def rope_factors(self, n_ctx: int) -> Weight | None:
        """The factors of the rotation in a context of n_ctx positions."""
        by_length = (
            self.rope_factors_long if n_ctx > self.rope_scaling.n_ctx_orig else self.rope_factors_short
        )
        return self.rope_freqs or by_length

    @property
    def unit(self) -> str:
        """What of an FFN is placed by itself: "neuron", or "expert".

        Experts go by neurons too where each neuron has a row of the down projection: expert e's row r is neuron
        e n_ff + r.
        """
        return "neuron" if self.experts is None or self.experts_by_neuron else "expert"

    @property
    def experts_by_neuron(self) -> bool:
        """Whether there are experts whose down projections have a row a neuron."""
        return any(layer.ffn_down_exps_t is not None for layer in self.layers)

    @property
    def n_units(self) -> int:
        """How many parts of a layer's FFN are placed by themselves: neurons, or experts."""
        experts = self.experts
        return self.n_neurons if experts is None or self.experts_by_neuron else experts.n_expert

    @property
    def n_positions(self) -> int | None:
        """Learned positions; None with rotation."""
        return None if self.position_embd is None else self.position_embd.n_rows - N_UNUSED_POSITIONS


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
