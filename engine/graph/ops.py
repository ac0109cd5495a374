"""One table of the ops a graph is made of: each with its operands by role, and its result.

An operand is written role=kind:sizes. f32, mask and none are intermediates (see `Tensor`), w is a weight;
a role with ? in front may be left out. Sizes are letters, numbers a row first; a letter has one value in a
node, and those of the result are known from the operands. n tokens give every intermediate n rows.

    embed             the rows of the run's token ids
    positions         rows of the run's positions, position 0 at row `first`
    rms_norm          x / rms(x) * weight; eps
    rms_norm_heads    the same of each head by itself, with one weight for all of them; n_head, eps
    layer_norm        (x - mean(x)) / deviation(x) * weight + bias; eps
    mul_mat           weight . x + bias
    rope              n_head, head_dim, n_rot, interleaved
    kv_store          appends to the cache of its layer; gives an order without bytes
    attention         n_head, n_head_kv, head_dim; `stored` orders it behind kv_store
    predictor         mask of neurons to look at: those whose output reaches `threshold`
    sparse_gated_ffn  down . (act(gate . x) * (up . x)), down with a row a neuron, over the neurons that the
                      mask lists and that fire; activation (relu_both: relu(up . x) too)
    dense_gated_ffn   the same over all neurons, down either way round: transposed
    sparse_ffn        down . act(up . x + up_bias) + down_bias; activation
    dense_ffn         the same over all neurons, down either way round: transposed
    add               a + b
    logits            weight . x in the run's own array
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
        size: the letter of its numbers a token; "" for none.
    """

    text: str
    operands: tuple[OperandRule, ...]
    dtype: str
    size: str


def _op(operands: str, result: str) -> Op:
    dtype, _, size = result.partition(":")
    return Op(operands, tuple(map(_operand, operands.split())), dtype, size)


def _operand(text: str) -> OperandRule:
    role, _, pattern = text.removeprefix("?").partition("=")
    kind, _, letters = pattern.partition(":")
    return OperandRule(role, kind, tuple(letters.split(",")) if letters else (), text.startswith("?"))


OPS: Mapping[str, Op] = {
    "embed": _op("weight=w:E,V", "f32:E"),
    "positions": _op("weight=w:E,P", "f32:E"),
    "rms_norm": _op("x=f32:E weight=w:E", "f32:E"),
    "rms_norm_heads": _op("x=f32:E weight=w:D", "f32:E"),
    "layer_norm": _op("x=f32:E weight=w:E bias=w:E", "f32:E"),
    "mul_mat": _op("weight=w:K,N x=f32:K ?bias=w:N", "f32:N"),
    "rope": _op("x=f32:E ?rope_freqs=w:P", "f32:E"),
    "kv_store": _op("k=f32:G v=f32:G", "none"),
    "attention": _op("q=f32:Q stored=none:Z", "f32:Q"),
    "predictor": _op("x=f32:E fc1=w:E,R fc2=w:R,F", "mask:F"),
    "sparse_gated_ffn": _op("x=f32:E ?mask=mask:F gate=w:E,F up=w:E,F down=w:E,F", "f32:E"),
    "dense_gated_ffn": _op("x=f32:E gate=w:E,F up=w:E,F down=w", "f32:E"),
    "sparse_ffn": _op("x=f32:E ?mask=mask:F up=w:E,F ?up_bias=w:F down=w:E,F ?down_bias=w:E", "f32:E"),
    "dense_ffn": _op("x=f32:E up=w:E,F ?up_bias=w:F down=w ?down_bias=w:E", "f32:E"),
    "add": _op("a=f32:E b=f32:E", "f32:E"),
    "logits": _op("weight=w:E,V x=f32:E", "f32:V"),
}

FFN_OPS = ("dense_gated_ffn", "sparse_gated_ffn", "dense_ffn", "sparse_ffn")
