"""A model of what a card does with a plan: the time of a token and of a prompt, from published figures.

Nothing here was measured: no card has run hotcold yet. Bandwidths, multiprocessors and clocks are the makers'. What
part of them a kernel reaches and what a launch costs beside its bytes are assumptions, which are named here and
belong where `bench/gpu.py` has measured them.
"""

from dataclasses import dataclass
from math import ceil

from hotcold.engine.graph.placed import CPU, GPU
from hotcold.engine.plan.launches import launches_of_a_token
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.traffic import ffn_traffic, token_traffic
from hotcold.engine.settings import one_of
from hotcold.errors import SettingError

REACHED = 0.85
"""Of a card's bandwidth, by a kernel that streams weights."""
REACHED_PROMPT = 0.4
"""Of a card's int8 dot products, by a prompt's tiles."""
DOTS_A_CLOCK = 64
"""Four-wide int8 dot products (`__dp4a`) that a multiprocessor starts in a clock.

The tiles of a prompt use tensor cores from sm_80 on. What they reach there no card has shown, so nothing is reckoned
for it: times of prompts are on the slow side.
"""
GAP = 3e-6
"""Seconds of a launch within a graph beside its bytes: its start, its tail and what small kernels wait for."""
GRAPH = 6e-6
"""Seconds of the host for a graph's launch."""
COPY = 10e-6
"""Seconds of a copy of some KB, with the wait for it."""
HOST_GBPS, HOST_GFLOPS = 40.0, 600.0
"""What a CPU of a few fast cores reads, and multiplies in a prompt's tiles."""
PROMPT = 512


@dataclass(frozen=True)
class Card:
    """What a maker says of a card.

    Attributes:
        gbps: of its memory, 10^9 bytes a second.
        n_sm: multiprocessors. ghz: of their clock, boosted.
        bus_gbps: what a copy from page-locked memory reaches, one way.
        memory: bytes.
    """

    title: str
    gbps: float
    n_sm: int
    ghz: float
    bus_gbps: float
    memory: int


GIB = 1 << 30
CARDS = {
    "rtx3060": Card("GeForce RTX 3060", 360, 28, 1.78, 25, 12 * GIB),
    "rtx3090": Card("GeForce RTX 3090", 936, 82, 1.70, 25, 24 * GIB),
    "rtx4060ti": Card("GeForce RTX 4060 Ti", 288, 34, 2.54, 12, 16 * GIB),
    "rtx4090": Card("GeForce RTX 4090", 1008, 128, 2.52, 25, 24 * GIB),
    "rtx5090": Card("GeForce RTX 5090", 1792, 170, 2.41, 50, 32 * GIB),
    "a100": Card("A100 80GB PCIe", 1935, 108, 1.41, 25, 80 * GIB),
    "h100": Card("H100 SXM", 3350, 132, 1.98, 50, 80 * GIB),
    "h200": Card("H200 SXM", 4800, 132, 1.98, 50, 141 * 10**9),
}


@dataclass(frozen=True)
class Estimate:
    """Seconds, by the model.

    Attributes:
        token: one decoded token, with a context that is half full.
        memory: of it, what the card's memory needs for the bytes alone.
        waits: of it, what the card waits for the CPU's part of split layers, and for layers on the CPU.
        prompt: `PROMPT` tokens.
        launches: kernels of a token.
    """

    token: float
    memory: float
    waits: float
    prompt: float
    launches: int


def card_named(name: str) -> Card:
    """A card of the table; SettingError for a name that it has not, and for several."""
    if "," in name:
        more = f"name one, and a budget for each, such as --vram-budget {','.join(['8GB'] * len(name.split(',')))}"
        raise SettingError("--card", name, "several cards are modelled as alike", more)
    one_of("--card", name, tuple(CARDS))
    return CARDS[name]


def card_like(description: str) -> Card | None:
    """The card of the table that a driver's description names, as "NVIDIA GeForce RTX 4090"; the longest title wins."""
    titles = sorted(CARDS.values(), key=lambda card: len(card.title), reverse=True)
    return next(
        (card for card in titles if card.title.split(" PCIe")[0].split(" SXM")[0] in description), None
    )


def estimate(plan: Plan, card: Card) -> Estimate:
    """What a card and a CPU would take for a plan; of several cards one works at a time, and all are alike."""
    layers = [ffn_traffic(split, plan) for split in plan.layers]
    traffic, reached = token_traffic(plan), REACHED * card.gbps * 1e9
    hot, cold = sum(device for _, device in layers), sum(host for host, _ in layers)
    launches = launches_of_a_token(plan)
    n_split = sum(device > 0 for _, device in layers)
    dense = (traffic.device_bytes - hot + _cached(plan, GPU) / 2) / reached
    crossings = len(plan.cards) - 1  # of the hidden state, down from a card and up to the next
    kernels = launches * GAP + (n_split + 1 + crossings) * GRAPH * bool(launches) + 2 * crossings * COPY
    of_host = (traffic.host_bytes - cold + _cached(plan, CPU) / 2) / (HOST_GBPS * 1e9)
    together = sum(_layer(host, device, reached) for host, device in layers)
    waits = of_host + together - hot / reached
    return Estimate(
        token=dense + kernels + of_host + together,
        memory=(traffic.device_bytes + _cached(plan, GPU) / 2) / (card.gbps * 1e9),
        waits=waits,
        prompt=_prompt(plan, card),
        launches=launches,
    )


def _layer(host: float, device: float, reached: float) -> float:
    """Seconds of an FFN whose sides work at once; a side without bytes costs nothing."""
    cold = host / (HOST_GBPS * 1e9) + (2 * COPY if host and device else 0.0)
    return max(device / reached, cold)


def _cached(plan: Plan, side: str) -> int:
    """Bytes of keys and values, all positions."""
    return sum(cache.n_bytes for cache in plan.caches if cache.side == side)


def _prompt(plan: Plan, card: Card) -> float:
    """Seconds of a prompt: products alone, each side's weights, those of split layers at once.

    Where batches are large enough for it, the card has what is sent too, beside the time that the bus takes.
    """
    rate = REACHED_PROMPT * card.n_sm * DOTS_A_CLOCK * 8 * card.ghz * 1e9
    device = host = 0.0
    for entry in plan.weights:
        if entry.role in ("embedding", "rope", "head", "profile", "norm", "bias") or len(entry.ne) < 2:
            continue
        numbers = entry.n_rows * entry.ne[0] * _used(plan, entry.role)
        there = entry.device_rows / entry.n_rows
        device, host = device + there * numbers, host + (1 - there) * numbers
    sent, bus = _sent(plan, card)
    if sent:
        here = max(2 * PROMPT * (device + sent) / rate, bus)
        return here + 2 * PROMPT * max(0.0, host - sent) / (HOST_GFLOPS * 1e9)
    return 2 * PROMPT * max(device / rate, host / (HOST_GFLOPS * 1e9))


def _sent(plan: Plan, card: Card) -> tuple[float, float]:
    """Numbers that are sent to the card for each batch of a prompt, and seconds of the bus for all of its batches."""
    streaming, n = plan.streaming, min(PROMPT, plan.n_batch)
    if streaming is None:
        return 0.0, 0.0
    bus = card.bus_gbps * 1e9
    least = streaming.pays_from(bus, HOST_GFLOPS / 2 * 1e9) if streaming.asked is None else streaming.asked
    if n < least:
        return 0.0, 0.0
    numbers = sum(float(each.n_rows) * each.weight.ne[0] for piece in streaming.pieces for each in piece.sent)
    return numbers, ceil(PROMPT / n) * streaming.sent_bytes / bus


def _used(plan: Plan, role: str) -> float:
    """Share of a matrix's rows that each token of a prompt is multiplied with."""
    experts = plan.model.experts
    return experts.n_used / experts.n_expert if experts is not None and role == "ffn" else 1.0
