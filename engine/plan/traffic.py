"""Bytes that a decoded token reads on each side, and what crosses the bus, by plan and statistics.

The KV cache is not part of it. Counts come without the number of tokens behind them, so the largest
count stands in for it: no text is shorter. The shares of firing neurons are thus upper bounds.
"""

from dataclasses import dataclass

from hotcold.engine.graph.copies import bus
from hotcold.engine.graph.placed import CPU, GPU
from hotcold.engine.model.sparsity import sparsity_of
from hotcold.engine.plan.plan import FfnSplit, Plan, WeightEntry
from hotcold.kernels.weight_table import device_row_bytes


@dataclass(frozen=True)
class TokenTraffic:
    """Of one decoded token.

    Attributes:
        host_bytes, device_bytes: of weights, at most.
        to_device, to_host: bytes over the bus.
        in_place: of those to the device, what its kernels read in the host's arena.
        copies: how many times the others go, both ways together.
    """

    host_bytes: float
    device_bytes: float
    to_device: int
    to_host: int
    in_place: int
    copies: int

    @property
    def bus_bytes(self) -> int:
        """Both ways."""
        return self.to_device + self.to_host

    def seconds(self, host_gbps: float, device_gbps: float, bus_gbps: float) -> float:
        """By roofline: the slower side, and the bus; an estimate. Bandwidths in 10^9 bytes a second."""
        sides = max(self.host_bytes / host_gbps, self.device_bytes / device_gbps)
        return (sides + self.bus_bytes / bus_gbps) / 1e9


def token_traffic(plan: Plan) -> TokenTraffic:
    """The traffic of one decoded token."""
    host = sum(_read_on(entry, plan, CPU) for entry in plan.weights)
    device = sum(_read_on(entry, plan, GPU) for entry in plan.weights)
    for split in plan.layers:
        cold, hot = ffn_traffic(split, plan)
        host, device = host + cold, device + hot
    moved = bus(plan.decode.placed)
    return TokenTraffic(
        host,
        device,
        to_device=moved[GPU]["bytes"],
        to_host=moved[CPU]["bytes"],
        in_place=moved["in_place"],
        copies=moved[GPU]["copies"] + moved[CPU]["copies"],
    )


def _read_on(entry: WeightEntry, plan: Plan, side: str) -> float:
    """Bytes of a weight that is no FFN matrix."""
    if entry.role in ("ffn", "rope") or (entry.role == "predictor" and plan.sparsity != "predictor"):
        return 0
    if entry.side != side or (entry.role == "profile" and not plan.model.lists_head_rows):
        return 0
    if entry.role == "embedding":
        return entry.n_bytes // entry.n_rows
    if entry.role == "head":
        return entry.device_bytes if side == GPU else plan.model.output.n_bytes
    return entry.device_bytes if side == GPU else entry.n_bytes


def ffn_traffic(split: FfnSplit, plan: Plan) -> tuple[float, float]:
    """Bytes of a layer's FFN on the host and on the device."""
    layer, peak = plan.model.layers[split.layer], plan.peak_count or 1.0
    if plan.model.experts is not None:
        return _experts(split, plan, plan.model.experts.n_used)
    firing_hot, firing_cold = split.covered / peak, (split.measured - split.covered) / peak
    all_hot, all_cold = split.n_hot, split.n_ff - split.n_hot
    host, device, mode = 0.0, 0.0, sparsity_of(layer, plan.sparsity)
    for i, weight in enumerate(layer.ffn_matrices):
        # what thresholds leave out is in no counts: all is what a token reads at most
        whole = mode in ("off", "threshold") or (mode == "exact" and i == 0)
        hot, cold = (all_hot, all_cold) if whole else (firing_hot, firing_cold)
        if weight is layer.ffn_down:
            hot, cold = weight.n_rows * bool(all_hot), weight.n_rows * (not all_hot)
        host += cold * weight.row_bytes
        device += hot * device_row_bytes(weight.type, weight.ne[0]) if hot else 0.0
    return host, device + 4 * all_hot * (plan.sparsity == "threshold")


def _experts(split: FfnSplit, plan: Plan, n_used: int) -> tuple[float, float]:
    """Bytes of a layer's chosen experts on the host and on the device, if they are chosen as they were counted."""
    layer = plan.model.layers[split.layer]
    read = n_used * (layer.n_units // layer.n_expert)  # experts, or all of their neurons
    hot = read * split.covered / split.measured if split.measured else 0.0
    host = sum(weight.n_bytes for weight in layer.ffn_matrices) / layer.n_units
    return (read - hot) * host, hot * split.neuron_bytes
