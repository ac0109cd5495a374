"""A model of what a prompt takes on a card: each matrix's products by the units that its kernel uses there.

Of a matrix either its products or its bytes take longer, and that counts. Products:

* of quantised weights, in tiles: int8 tensor cores
* of F16 and BF16, in tiles: tensor cores for halves, two or three terms of each input
* of F32, and of down projections with a row a neuron: multiply-adds in float32
* of a predictor's second matrix, and of experts of which single neurons are there, row by row: `__dp4a`, or tensor
  cores for halves, of whose products an eighth is used
* of attention: tensor cores for halves, two terms of each query and of each weight of the softmax; over other caches,
  and of heads above 256, multiply-adds in float32

Not counted, so that times are on the fast side: norms, rounding, the softmax, the head, launches, keys and values read,
tiles that few tokens or few pairs of a mixture fill, and what the kernels do beside their products, which
`REACHED_PROMPT` is to stand for. On the slow side: a CPU's part computes all neurons.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from gguf import GGMLQuantizationType

from hotcold.engine.graph.placed import GPU
from hotcold.engine.model.model import Model, Weight
from hotcold.engine.plan.assumed import DOTS_A_CLOCK, HOST_GFLOPS, REACHED, REACHED_PROMPT
from hotcold.engine.plan.cards import Card
from hotcold.engine.plan.device_workspace import FFN_TOKENS, NEURON_TOKENS
from hotcold.engine.plan.plan import Plan, WeightEntry
from hotcold.kernels.tensor_cores import TERMS_OF_INPUTS, in_tiles
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes

PROMPT = 512
MATRICES = ("attention", "predictor", "router", "shared", "ffn")
"""Roles of what a prompt is multiplied with."""
TILES, ROWS, FLOATS = "tiles", "rows", "floats"
"""How a kernel multiplies a matrix: by many tokens at once, by one at a time, or as float32."""
MMA, DP4A, FMA = "tensor cores", "__dp4a", "float32"
"""A card's units."""
TERMS_OF_ATTENTION = 2
OF_A_ROW = 8
"""Rows of halves alone use one of so many products of a tensor core, and of their terms two at a time."""


class How(NamedTuple):
    """How a matrix is multiplied, and by how many tokens a launch."""

    kernel: str
    at_once: int


@dataclass(frozen=True)
class PromptEstimate:
    """Seconds of `PROMPT` tokens, by the model.

    Attributes:
        seconds: all of it.
        units: of it, on the card: by what multiplies, each matrix's products or bytes, whichever take longer.
        host: what the CPU multiplies, beside the card; behind it where rows are sent.
        bus: of what is sent to the card for it, beside the card.
    """

    seconds: float
    units: dict[str, float]
    host: float
    bus: float


def estimate_prompt(plan: Plan, card: Card) -> PromptEstimate:
    """A prompt from an empty context on, in the plan's batches; of several cards, all alike, one works at a time."""
    units, host = dict.fromkeys((MMA, DP4A, FMA), 0.0), 0.0
    ways = _ways(plan)
    for entry in _matrices(plan):
        unit, seconds = _on_card(plan, card, entry.weight, ways, entry.device_rows)
        units[unit] += seconds
        host += _on_host(plan, entry, entry.n_rows - entry.device_rows)
    attention, seconds = _attention(plan, card)
    units[attention] += seconds
    entries, bus = {entry.weight: entry for entry in _matrices(plan)}, _bus(plan, card)
    for weight, n_rows in _sent(plan) if bus else ():
        if weight in entries:
            unit, seconds = _on_card(plan, card, weight, ways, n_rows)
            units[unit] += seconds
            host -= _on_host(plan, entries[weight], n_rows)
    host = max(0.0, host) + _attention_on_host(plan)
    device = sum(units.values())
    return PromptEstimate(max(device, bus) + host if bus else max(device, host), units, host, bus)


def _matrices(plan: Plan) -> Iterator[WeightEntry]:
    for entry in plan.weights:
        if entry.role in MATRICES and (entry.role != "predictor" or plan.sparsity == "predictor"):
            yield entry


def _ways(plan: Plan) -> dict[Weight, How]:
    """Of matrices that no batch meets in tiles as a whole."""
    found, some = dict[Weight, How](), min(FFN_TOKENS, plan.n_batch)
    for layer in plan.model.layers:
        matrices, by_neuron = layer.ffn_matrices, layer.ffn_down is None and layer.ffn_down_exps is None
        if layer.fc2 is not None:
            found[layer.fc2] = How(ROWS, plan.n_batch)
        if layer.ffn_down is None:
            found |= {weight: How(TILES, some) for weight in matrices}
        if layer.ffn_down_exps_t is not None:
            found |= {weight: How(ROWS, min(NEURON_TOKENS, plan.n_batch)) for weight in matrices}
        if by_neuron:
            found[layer.down] = found[layer.down]._replace(kernel=FLOATS)
    return found


def _on_card(
    plan: Plan, card: Card, weight: Weight, ways: dict[Weight, How], n_rows: int
) -> tuple[str, float]:
    """What multiplies so many rows of a matrix, and seconds of that or of their bytes."""
    how = ways.get(weight, How(TILES, plan.n_batch))
    unit, rate = rate_of(card, weight.type, how.kernel)
    if not n_rows:
        return unit, 0.0
    products = float(n_rows) * weight.ne[0] * _used(plan.model, weight) * PROMPT
    read = min(1.0, _used(plan.model, weight) * how.at_once)  # by a launch: no expert that nobody has chosen
    n_bytes = ceil(PROMPT / how.at_once) * read * n_rows * device_row_bytes(weight.type, weight.ne[0])
    return unit, max(2 * products / (REACHED_PROMPT * rate), n_bytes / (REACHED * card.gbps * 1e9))


def rate_of(card: Card, weight_type: GGMLQuantizationType, kernel: str) -> tuple[str, float]:
    """What multiplies a matrix on a card, and its published operations a second, two a product."""
    if kernel == FLOATS or not (weight_type in QUANTISED or weight_type in TERMS_OF_INPUTS):
        return FMA, card.floats * 1e12
    if weight_type in QUANTISED:
        dots = DP4A, 8e9 * DOTS_A_CLOCK * card.n_sm * card.ghz
        return dots if kernel == ROWS else (MMA, card.by_mma * card.int8 * 1e12)
    terms = TERMS_OF_INPUTS[weight_type]
    of_each = OF_A_ROW * 2 * ceil(terms / 2) if kernel == ROWS else terms
    return MMA, card.by_mma * card.halves * 1e12 / of_each


def _on_host(plan: Plan, entry: WeightEntry, n_rows: int) -> float:
    """Seconds of the CPU for so many rows of a matrix."""
    return 2 * PROMPT * n_rows * entry.ne[0] * _used(plan.model, entry.weight) / (HOST_GFLOPS * 1e9)


def _used(model: Model, weight: Weight) -> float:
    """Share of a matrix's rows that each token of a prompt is multiplied with."""
    experts = model.experts if len(weight.ne) > 2 else None
    return experts.n_used / experts.n_expert if experts is not None else 1.0


def positions_seen(n_tokens: int, window: int) -> int:
    """Positions that the tokens of a prompt see, all together; 0 for no window."""
    full = min(window or n_tokens, n_tokens)
    return full * (full + 1) // 2 + (n_tokens - full) * full


def _attention(plan: Plan, card: Card) -> tuple[str, float]:
    """What multiplies caches that the card has, and seconds."""
    operations = sum(_operations(plan, cache.layer) for cache in plan.caches if cache.side == GPU)
    if in_tiles(plan.kv_type, plan.model.head_dim):
        rate = card.by_mma * card.halves / TERMS_OF_ATTENTION
        return MMA, operations / (REACHED_PROMPT * rate * 1e12)
    return FMA, operations / (REACHED_PROMPT * card.floats * 1e12)


def _attention_on_host(plan: Plan) -> float:
    operations = sum(_operations(plan, cache.layer) for cache in plan.caches if cache.side != GPU)
    return operations / (HOST_GFLOPS * 1e9)


def _operations(plan: Plan, layer: int) -> float:
    """Of a layer's queries with keys, and of weights with values; two a product."""
    model = plan.model
    return 4.0 * model.n_head * model.head_dim * positions_seen(PROMPT, model.window(layer))


def _bus(plan: Plan, card: Card) -> float:
    """Seconds for what is sent to the card for all batches of a prompt; 0 where the CPU multiplies it faster."""
    streaming, n = plan.streaming, min(PROMPT, plan.n_batch)
    if streaming is None:
        return 0.0
    bus = card.bus_gbps * 1e9
    least = streaming.pays_from(bus, HOST_GFLOPS / 2 * 1e9) if streaming.asked is None else streaming.asked
    return ceil(PROMPT / n) * streaming.sent_bytes / bus if n >= least else 0.0


def _sent(plan: Plan) -> Iterator[tuple[Weight, int]]:
    """Rows that are sent to the card for each batch."""
    for piece in plan.streaming.pieces if plan.streaming is not None else ():
        yield from ((each.weight, each.n_rows) for each in piece.sent)
