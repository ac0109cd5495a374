"""A model of what a card does with a plan: the time of a token and of a prompt, from published figures.

Nothing here was measured: no card has run hotcold yet. What a card could do is the makers' word (`cards.py`); what part
of it a kernel reaches, and what a launch costs beside its bytes, is assumed (`assumed.py`).
"""

from dataclasses import dataclass

from hotcold.engine.graph.placed import CPU, GPU
from hotcold.engine.plan.assumed import COPY, GAP, GRAPH, HOST_GBPS, REACHED, READ
from hotcold.engine.plan.cards import Card
from hotcold.engine.plan.estimate_prompt import PromptEstimate, estimate_prompt
from hotcold.engine.plan.launches import graphs_of_a_token, launches_of_a_token
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.traffic import ffn_traffic, token_traffic


@dataclass(frozen=True)
class Estimate:
    """Seconds, by the model.

    Attributes:
        token: one decoded token, with a context that is half full.
        memory: of it, what the card's memory needs for the bytes alone.
        waits: of it, what the card waits for the CPU's part of split layers, and for layers on the CPU.
        prompt: of a prompt from an empty context on.
        launches: kernels of a token.
    """

    token: float
    memory: float
    waits: float
    prompt: PromptEstimate
    launches: int


def estimate(plan: Plan, card: Card) -> Estimate:
    """What a card and a CPU would take for a plan; of several cards one works at a time, and all are alike."""
    layers = [ffn_traffic(split, plan) for split in plan.layers]
    traffic, reached = token_traffic(plan), REACHED * card.gbps * 1e9
    hot, cold = sum(device for _, device in layers), sum(host for host, _ in layers)
    launches = launches_of_a_token(plan)
    dense = (traffic.device_bytes - hot + _cached(plan, GPU) / 2) / reached
    crossings = len(plan.cards) - 1  # of the hidden state, down from a card and up to the next
    kernels = launches * GAP + graphs_of_a_token(plan) * GRAPH + 2 * crossings * COPY
    of_host = (traffic.host_bytes - cold + _cached(plan, CPU) / 2) / (HOST_GBPS * 1e9)
    together = sum(_layer(host, device, reached) for host, device in layers)
    waits = of_host + together - hot / reached
    return Estimate(
        token=dense + kernels + of_host + together,
        memory=(traffic.device_bytes + _cached(plan, GPU) / 2) / (card.gbps * 1e9),
        waits=waits,
        prompt=estimate_prompt(plan, card),
        launches=launches,
    )


def _layer(host: float, device: float, reached: float) -> float:
    """Seconds of an FFN whose sides work at once; a side without bytes costs nothing."""
    if not host or not device:
        return max(device / reached, host / (HOST_GBPS * 1e9))
    return max(device / reached, host / (HOST_GBPS * 1e9) + COPY) + READ


def _cached(plan: Plan, side: str) -> int:
    """Bytes of keys and values, all positions."""
    return sum(cache.n_bytes for cache in plan.caches if cache.side == side)
