"""One table of the ops a graph is made of: each with its operands by role, its result, and where it runs.

An operand is written role=kind:sizes. f32, mask, chosen and none are intermediates (see `Tensor`), w is a
weight; a role with ? in front may be left out. Sizes are letters, numbers a row first; a letter has one value in
a node, and those of the result are known from the operands, or with @ in front from an attribute. n tokens give
every intermediate n rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OperandRule:
    """One operand of an op.

    Attributes:
        kind: "w" or an intermediate's dtype.
        sizes: letters; empty where any shape will do.
    """

    role: str
    kind: str
    sizes: tuple[str, ...]
    optional: bool


@dataclass(frozen=True)
class Op:
    """An op's operands in order and its result.

    Attributes:
        text: the operands as the table writes them.
        dtype: of the result.
        size: the letter of its numbers a token, or @ and an attribute; "" for none.
        runs: on which side a node of the op runs, one of the constants below.
    """

    text: str
    operands: tuple[OperandRule, ...]
    dtype: str
    size: str
    runs: str

    @property
    def reading(self) -> tuple[str, ...]:
        """Roles of the matrices that x is multiplied with: their rows are as long as x.

        A down projection's rows may be as long, but they are added, not multiplied with x; so are biases.
        """
        own = {rule.role: rule for rule in self.operands}
        if "x" not in own:
            return ()
        weights = [rule for rule in self.operands if rule.kind == "w" and len(rule.sizes) > 1]
        as_long = [rule.role for rule in weights if rule.sizes[0] == own["x"].sizes[0]]
        return tuple(role for role in as_long if role != "down" and not role.endswith("_bias"))


WITH_WEIGHT = "where its weight is; without one, where its first operand is"
WITH_HEAD = "where the head is"
WITH_CACHE = "where the KV cache of its layer is"
WITH_STORE = "where the next kv_store runs"
WITH_NEXT = "where the next node with a weight runs"


def _op(operands: str, result: str, runs: str = WITH_WEIGHT) -> Op:
    dtype, _, size = result.partition(":")
    return Op(operands, tuple(map(_operand, operands.split())), dtype, size, runs)


def _operand(text: str) -> OperandRule:
    role, _, pattern = text.removeprefix("?").partition("=")
    kind, _, letters = pattern.partition(":")
    return OperandRule(role, kind, tuple(letters.split(",")) if letters else (), text.startswith("?"))


OPS: Mapping[str, Op] = {
    # the rows of the run's token ids
    "embed": _op("weight=w:E,V", "f32:E"),
    # rows of the run's positions, position 0 at row `first`
    "positions": _op("weight=w:E,P", "f32:E"),
    # x / rms(x) * weight; eps
    "rms_norm": _op("x=f32:E weight=w:E", "f32:E"),
    # the same of each head by itself, with one weight for all of them; n_head, eps
    "rms_norm_heads": _op("x=f32:E weight=w:D", "f32:E"),
    # (x - mean(x)) / deviation(x) * weight + bias; eps
    "layer_norm": _op("x=f32:E weight=w:E bias=w:E", "f32:E"),
    # weight . x + bias
    "mul_mat": _op("weight=w:K,N x=f32:K ?bias=w:N", "f32:N"),
    # n_head, head_dim, n_rot, interleaved, table: the number of its rotation, of `Model.rotations`
    "rope": _op("x=f32:E ?rope_freqs=w:P", "f32:E", WITH_STORE),
    # appends to the cache of its layer; gives an order without bytes
    "kv_store": _op("k=f32:G v=f32:G", "none", WITH_CACHE),
    # n_head, n_head_kv, head_dim, scale, window: positions that a token sees, or 0 for all; `stored` orders it
    # behind kv_store, a sink is one more score of a head and has no value
    "attention": _op("q=f32:Q stored=none:Z ?sinks=w:H", "f32:Q", WITH_CACHE),
    # mask of neurons to look at: those whose output reaches `threshold`
    "predictor": _op("x=f32:E fc1=w:E,R fc2=w:R,F", "mask:F"),
    # down . (act(gate . x) * (up . x)), down with a row a neuron, over the neurons that the mask lists and
    # that fire, or whose act(gate . x) reaches its threshold; activation (relu_both: relu(up . x) too)
    "sparse_gated_ffn": _op("x=f32:E ?mask=mask:F gate=w:E,F up=w:E,F down=w:E,F ?threshold=w:F", "f32:E"),
    # the same over all neurons, down either way round: transposed
    "dense_gated_ffn": _op("x=f32:E gate=w:E,F up=w:E,F down=w", "f32:E"),
    # down . act(up . x + up_bias) + down_bias; activation
    "sparse_ffn": _op("x=f32:E ?mask=mask:F up=w:E,F ?up_bias=w:F down=w:E,F ?down_bias=w:E", "f32:E"),
    # the same over all neurons, down either way round: transposed
    "dense_ffn": _op("x=f32:E up=w:E,F ?up_bias=w:F down=w ?down_bias=w:E", "f32:E"),
    # the n_used experts that a router's logits choose, with their weights; gating, normed, scale
    "top_k": _op("logits=f32:X", "chosen:@n_used"),
    # sum of the chosen experts' down_e . (act(gate_e . x) * (up_e . x)) by their weights, each product with its
    # bias if it has one; activation; transposed: down has a row a neuron; skip: neurons without a positive gate,
    # or with one below its threshold
    "expert_ffn": _op(
        "x=f32:E chosen=chosen:K gate=w:E,F,X up=w:E,F,X down=w "
        "?gate_bias=w:F,X ?up_bias=w:F,X ?down_bias=w:E,X ?threshold=w:F,X",
        "f32:E",
    ),
    # x * sigmoid(gate), one gate a token
    "mul_sigmoid": _op("x=f32:E gate=f32:G", "f32:E"),
    # factor * x
    "scale": _op("x=f32:E", "f32:E"),
    # a + b
    "add": _op("a=f32:E b=f32:E", "f32:E", WITH_NEXT),
    # weight . x in the run's own array; where there is a profile, -infinity but where that is positive, or all of it
    # where none is
    "logits": _op("weight=w:E,V x=f32:E ?profile=f32:V", "f32:V", WITH_HEAD),
}

FFN_OPS = ("dense_gated_ffn", "sparse_gated_ffn", "dense_ffn", "sparse_ffn")
