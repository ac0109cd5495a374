"""What a run used of a device: memory, launches, and the share of the work that it did."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hotcold.engine.run.executor import Executor


@dataclass(frozen=True)
class DeviceUse:
    """Of one device, or of none.

    Attributes:
        device: as in --device; "cpu" where there is none.
        vram_planned, vram_used: bytes of all cards; what the devices' allocators say is used.
        kernel_launches, graph_launches: so far; kernels also as parts of graphs.
        graph_captures: graphs that were made so far.
        ffn_device_share: part of all neurons whose rows are on the device.
        listed_device, listed_host: neurons that a predictor listed (all where a layer has none), or those of the
            experts that a router chose, on either side, for all tokens so far. Without either every neuron is looked
            at: both are 0, and the shares of active and of all neurons the same.
        host_seconds: of the CPU's part of the runs.
        waiting_seconds: in which the host waited for the device.
        cards: name, planned and used bytes of each.
        graph_bytes: of device memory that drivers took for graphs, which no allocator knows of.
        n_alone: tokens that passed by themselves so far.
        enqueueing_seconds: in which their runs neither computed on the CPU nor waited: Python's.
    """

    device: str = "cpu"
    vram_planned: int = 0
    vram_used: int = 0
    kernel_launches: int = 0
    graph_launches: int = 0
    graph_captures: int = 0
    ffn_device_share: float = 0.0
    listed_device: int = 0
    listed_host: int = 0
    host_seconds: float = 0.0
    waiting_seconds: float = 0.0
    cards: tuple[tuple[str, int, int], ...] = ()
    graph_bytes: int = 0
    n_alone: int = 0
    enqueueing_seconds: float = 0.0

    @property
    def active_device_share(self) -> float:
        """Part of the neurons looked at that the device looked at."""
        listed = self.listed_device + self.listed_host
        return self.listed_device / listed if listed else self.ffn_device_share

    def since(self, earlier: "DeviceUse") -> "DeviceUse":
        """What was used between the two; memory and shares as they are."""
        return DeviceUse(
            self.device,
            self.vram_planned,
            self.vram_used,
            self.kernel_launches - earlier.kernel_launches,
            self.graph_launches - earlier.graph_launches,
            self.graph_captures - earlier.graph_captures,
            self.ffn_device_share,
            self.listed_device - earlier.listed_device,
            self.listed_host - earlier.listed_host,
            self.host_seconds - earlier.host_seconds,
            self.waiting_seconds - earlier.waiting_seconds,
            self.cards,
            self.graph_bytes,
            self.n_alone - earlier.n_alone,
            self.enqueueing_seconds - earlier.enqueueing_seconds,
        )

    def line(self) -> str:
        """Memory and shares in a line, below 70 columns for one card; empty on the CPU alone."""
        if not self.vram_planned:
            return ""
        share = self.active_device_share
        memory = (
            f"{name}: VRAM {used / 2**20:.1f} of {planned / 2**20:.1f} MiB"
            for name, planned, used in self.cards
        )
        return (
            f"{', '.join(memory)}; "
            f"FFN {self.ffn_device_share:.0%}, active {share:.0%}, on the CPU {1 - share:.0%}"
        )

    def sides(self) -> str:
        """How long the host computed, and waited, in a line below 80 columns; empty on the CPU alone."""
        if not self.vram_planned:
            return ""
        computed, waited = self.host_seconds, self.waiting_seconds
        return f"sides: the CPU computed for {computed:.2f} s and waited for the device for {waited:.2f} s"

    def numbers(self) -> dict[str, Any]:
        """All of it, by name."""
        return {
            "device": self.device,
            "vram_planned": self.vram_planned,
            "vram_used": self.vram_used,
            "cards": [
                {"device": name, "vram_planned": planned, "vram_used": used}
                for name, planned, used in self.cards
            ],
            "kernel_launches": self.kernel_launches,
            "graph_launches": self.graph_launches,
            "graph_captures": self.graph_captures,
            "graph_bytes": self.graph_bytes,
            "host_microseconds_per_token": 1e6 * self.enqueueing_seconds / max(self.n_alone, 1),
            "ffn_device_share": self.ffn_device_share,
            "active_device_share": self.active_device_share,
        }


class DeviceMeter:
    """Reads an executor's use; the device's counts wrap, so they are read once a generation."""

    def __init__(self, executor: "Executor") -> None:
        self._executor = executor
        self._listed, self._seen, self._tokens = 0, np.zeros(executor.model.n_layer, np.uint32), 0

    def read(self) -> DeviceUse:
        """The use so far."""
        executor, devices, plan = self._executor, self._executor.devices, self._executor.plan
        if not devices:
            return DeviceUse()
        listed_host = 0
        if plan.sparsity == "predictor":
            counts = executor.device_counts()
            # these look at all of their neurons, and their batches count none
            exact = list(plan.model.exact_layers)
            new = np.delete(counts - self._seen, exact).sum(dtype=np.int64)
            n_tokens, self._tokens = executor.n_tokens - self._tokens, executor.n_tokens
            self._listed += int(new) + n_tokens * sum(plan.layers[i].n_hot for i in exact)
            self._seen = counts
            listed_host = int(executor.counts[..., 0].sum())
        if plan.model.experts is not None:
            listed_host = int(executor.counts[..., 0].sum())
            experts = plan.model.experts
            chosen = executor.n_tokens * plan.model.n_layer * experts.n_used
            self._listed = chosen * experts.n_ff - listed_host
        return DeviceUse(
            ",".join(device.name for device in devices),
            plan.totals.used,
            sum(device.counters.live_bytes for device in devices),
            sum(sum(device.counters.launches.values()) for device in devices),
            sum(device.counters.graph_launches for device in devices),
            sum(device.counters.graph_captures for device in devices),
            plan.hot_share,
            self._listed,
            listed_host,
            executor.walked,
            sum(device.counters.waiting for device in devices),
            tuple(
                (device.name, card.totals.used, device.counters.live_bytes)
                for device, card in zip(devices, plan.cards, strict=True)
            ),
            sum(device.counters.graph_bytes for device in devices),
            executor.n_alone,
            executor.enqueueing,
        )
