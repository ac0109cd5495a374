"""From the nodes of a mixture of experts to launches: of each token those of its experts that are on the device."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hotcold.engine.device.records import DeviceLowering, Input
from hotcold.engine.graph.graph import Node, ffn_matrices
from hotcold.engine.model.model import Weight
from hotcold.engine.plan.device_workspace import FFN_TOKENS, NEURON_TOKENS
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.expert_neurons import expert_down, expert_gates, expert_ups
from hotcold.kernels.cuda.expert_rows import ExpertProducts, expert_rows
from hotcold.kernels.cuda.expert_sum import expert_sum
from hotcold.kernels.cuda.expert_sum import mul_sigmoid as mul_sigmoid_work
from hotcold.kernels.cuda.expert_tiles import batch_of_experts
from hotcold.kernels.cuda.hidden_masked import hidden_masked_gated, hidden_of_experts
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.top_k import top_k as top_k_work
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import ACTIVATIONS, GATINGS, group_sums_bytes, mask_words, n_groups
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes


def top_k(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    logits, how = nodes[0].tensor("logits"), nodes[0].attributes
    n_expert, n_used = logits.shape[1], nodes[0].output.shape[1]
    gating = GATINGS[how["gating"]], int(how["normed"]), how["scale"]
    work = top_k_work(low.n_tokens, n_expert, n_used)
    low.launch(work, low.vector(logits), low.chosen(nodes[0].output), n_expert, n_used, *gating)
    return 1


def mul_sigmoid(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    x, gate, n = nodes[0].tensor("x"), nodes[0].tensor("gate"), nodes[0].output.shape[1]
    vectors = low.vector(x), low.vector(gate), low.vector(nodes[0].output)
    low.launch(mul_sigmoid_work(low.n_tokens, n), *vectors, n)
    return 1


class _Pairs:
    """Some tokens of one node, each with its experts, and the launches for them."""

    def __init__(self, low: DeviceLowering, node: Node, first: int, count: int) -> None:
        self.low, self.node, self.first, self.count = low, node, first, count
        chosen, self.n_used = node.tensor("chosen"), node.tensor("chosen").shape[1]
        self.chosen = low.view(chosen, 8 * self.n_used * first, 2 * self.n_used * count, np.int32)
        self.slots, self.n_pairs = low.neurons(node), count * self.n_used

    def multiply(self, role: str, x: Input, y: Buffer, per_pair: bool) -> None:
        """y[pair] = the matrix of this role of the pair's expert . x + its bias."""
        weight, bias = self.node.weight(role), self.node.find_weight(f"{role}_bias")
        n, n_rows, n_expert = weight.ne
        products = self._products_of(weight)
        kind = {"per_pair": per_pair, "has_bias": bias is not None}
        biases, stride = (y, 0) if bias is None else self._biases(bias)
        rest = biases, y, n_rows, n, self.n_used, int(per_pair), int(bias is not None), stride
        given = *self.low.matrix(self.node, weight).planes, *x, self.slots, self.chosen, *rest
        if self.n_pairs > n_expert:  # then some experts have several
            self.low.launch(batch_of_experts(products, n_expert, **kind), *given, self.n_pairs)
        else:
            self.low.launch(expert_rows(products, **kind), *given)

    def _products_of(self, weight: Weight) -> ExpertProducts:
        n, n_rows, _ = weight.ne
        return ExpertProducts(weight.type, self.count, self.n_used, n_rows, n)

    def _biases(self, bias: Weight) -> tuple[Buffer, int]:
        """All experts' biases, and the floats from one to the next."""
        return self.low.store.vector(bias, self.node.rows), device_row_bytes(bias.type, bias.ne[0]) // 4

    def hidden(self, gates: Buffer, ups: Buffer, n_ff: int) -> None:
        """gates = act(gates) * ups, 0 below a threshold."""
        low, activation = self.low, ACTIVATIONS[self.node.attributes["activation"]]
        *least, has_least = low.least(self.node, self.first, self.count)
        if has_least:
            work = hidden_of_experts(self.count, self.n_used, n_ff)
            given = gates, ups, self.slots, self.chosen, *least, gates, n_ff, self.n_used, activation
            low.launch(work, *given)
            return
        work = hidden_masked_gated(self.n_pairs, n_ff, n_ff, has_mask=False)
        unread = low.area("all", mask_words(n_ff), np.uint32), low.positions()
        low.launch(work, gates, ups, *unread, gates, n_ff, 0, 0, activation, *least, 0)

    def rounded(self, h: Buffer, n_ff: int) -> Input:
        """Hidden vectors as `down` wants them."""
        if self.node.weight("down").type not in QUANTISED:
            return (h,)
        low, n, blocks = self.low, self.n_pairs * n_ff, self.n_pairs * n_ff // 32
        to = (
            low.area("hidden", n, np.int8),
            low.area("hidden", blocks, np.float32, n),
            low.area("hidden", blocks, np.int32, n + 4 * blocks),
        )
        low.launch(quantise(self.n_pairs, n_ff), h, *to, blocks)
        return to

    def sum(self, sums: Buffer, n: int) -> None:
        """The sum of each token's experts by their weights."""
        y = self.low.view(self.node.output, 4 * n * self.first, n * self.count, np.float32)
        work = expert_sum(self.count, self.n_used, n)
        self.low.launch(work, sums, self.slots, self.chosen, y, n, self.n_used)

    # Where single neurons of an expert are here

    def neurons(self, hidden: Buffer) -> None:
        """hidden = act(gate x) (up x) of the neurons that are here."""
        gate, up, _ = ffn_matrices(self.node)
        self._products(expert_gates, gate, hidden)
        least = self.low.least(self.node, self.first, self.count)
        ups = partial(expert_ups, has_least=bool(least[-1]))
        self._products(ups, up, hidden, ACTIVATIONS[self.node.attributes["activation"]], *least)

    def _products(
        self, sizes: Callable[..., Work], weight: Weight, hidden: Buffer, *more: int | Buffer
    ) -> None:
        n, n_ff, _ = weight.ne
        x = self.low.tokens_of(self.low.input_of(self.node, weight), self.first, self.count, n)
        work, planes = sizes(self._products_of(weight)), self.low.matrix(self.node, weight).planes
        rest = self.slots, self.chosen, hidden, n_ff, n, self.n_used, *more
        self.low.launch(work, *planes, *x, *rest)

    def down(self, hidden: Buffer, sums: Buffer) -> None:
        """sums = each pair's rows of down by their hidden values."""
        down, low = self.node.weight("down"), self.low
        n, n_ff, _ = down.ne
        groups = low.area("partial", group_sums_bytes(self.n_pairs, n_ff, n) // 4, np.float32)
        given = *low.matrix(self.node, down).planes, self.slots, self.chosen, hidden, groups
        low.launch(expert_down(self._products_of(down)), *given, n_ff, n, self.n_used)
        unread = (sums,) * 3
        low.launch(sum_groups(self.n_pairs, n_ff, n), groups, *unread, sums, n_groups(n_ff), n, 0)


def expert_ffn(low: DeviceLowering, nodes: Sequence[Node]) -> int:
    node = nodes[0]
    if node.attributes["transposed"]:
        return _by_neuron(low, node)
    gate, up, _ = ffn_matrices(node)
    n_embd, n_ff, _ = gate.ne
    for first in range(0, low.n_tokens, FFN_TOKENS):
        pairs = _Pairs(low, node, first, min(FFN_TOKENS, low.n_tokens - first))
        gates = low.area("first", pairs.n_pairs * n_ff, np.float32)
        ups = low.area("second", pairs.n_pairs * n_ff, np.float32)
        sums = low.area("second", pairs.n_pairs * n_embd, np.float32)
        for role, weight, y in (("gate", gate, gates), ("up", up, ups)):
            x = low.tokens_of(low.input_of(node, weight), first, pairs.count, n_embd)
            pairs.multiply(role, x, y, per_pair=False)
        pairs.hidden(gates, ups, n_ff)
        pairs.multiply("down", pairs.rounded(gates, n_ff), sums, per_pair=True)
        pairs.sum(sums, n_embd)
    return 1


def _by_neuron(low: DeviceLowering, node: Node) -> int:
    n_embd, n_ff, _ = node.weight("gate").ne
    for first in range(0, low.n_tokens, NEURON_TOKENS):
        pairs = _Pairs(low, node, first, min(NEURON_TOKENS, low.n_tokens - first))
        hidden = low.area("first", pairs.n_pairs * n_ff, np.float32)
        sums = low.area("second", pairs.n_pairs * n_embd, np.float32)
        pairs.neurons(hidden)
        pairs.down(hidden, sums)
        pairs.sum(sums, n_embd)
    return 1
