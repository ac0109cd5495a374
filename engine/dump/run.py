"""What a plan says, beside what a run of it did: `hotcold offload-dump --run`."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device.store import DeviceStore, loaded_stores
from hotcold.engine.graph.placed import BOTH_SIDES, CPU, GPU
from hotcold.engine.plan.budget import Budget, mib, of_cards
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import Source, make_plan
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.sides import Only
from hotcold.engine.run.use import DeviceMeter
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cuda.device.device import Device

PROMPT, DECODED = 8, 16  # tokens
ROUNDS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class SideTimes:
    """Seconds of a token: of each side by itself, of both at once, and how much of that the CPU computed, and waited.

    Attributes:
        device, host: by themselves, on what the other left; equal to `together` where there is but one.
    """

    device: float
    host: float
    together: float
    walked: float
    waited: float

    @property
    def overlap(self) -> float:
        """How much of the shorter side passes while the longer one works; 0 where there is but one."""
        shorter = min(self.device, self.host)
        return min(1.0, max(0.0, self.device + self.host - self.together) / shorter) if shorter else 0.0

    def of(self, plan: Plan, other: Plan) -> float:
        """Seconds of a token of another plan, if each side's time goes with the bytes that it reads."""
        now, then = token_traffic(plan), token_traffic(other)
        host = self.host * then.host_bytes / now.host_bytes if now.host_bytes else 0.0
        device = self.device * then.device_bytes / now.device_bytes if now.device_bytes else 0.0
        return max(host, device) + max(0.0, self.together - max(self.host, self.device))


def neighbours(source: Source, how: Wanted, plan: Plan) -> list[Plan]:
    """Plans for a quarter less and a quarter more than this one's budget, as far as there are any that differ."""
    found = []
    for share in (0.75, 1.25):
        sizes = [int(share * each.n_bytes) for each in plan.budget.each]
        if not all(sizes) or (share > 1 and plan.hot_share == 1):
            continue
        try:
            why = f"{share:.0%} of {plan.budget.text}"
            budget = of_cards([Budget(f"{share:.0%}", n_bytes, why) for n_bytes in sizes])
            found.append(make_plan(source, how, budget))
        except DoesNotFitError:  # too small for any
            continue
    return found


def run(
    plan: Plan, file: GGUFFile, n_threads: int, devices: Sequence[Device], others: Sequence[Plan] = ()
) -> list[Row]:
    """Load, run a few tokens, and compare: a row a figure, with `name`, `unit`, `planned`, `measured`.

    A figure that the plan does not have, or nobody measures, is None. The tokens are the likeliest after
    the file's first tokens; averages are over those that ran alone.

    Args:
        others: plans for other budgets, of which a token's time is reckoned from what is measured.

    Raises:
        DoesNotFitError, DeviceError: see `loaded_stores` and `Executor`.
    """
    started = time.perf_counter()
    stores = loaded_stores(devices, plan, file, n_threads=n_threads)
    with Executor(plan, file, n_threads, stores) as executor:
        load_seconds = time.perf_counter() - started
        meter, logits = DeviceMeter(executor), np.empty((1, plan.model.n_vocab), np.float32)
        n_prompt = min(PROMPT, plan.n_batch, plan.n_ctx - 1)
        executor.run(np.arange(n_prompt, dtype=np.int32) % plan.model.n_vocab, 0, logits)
        before, counted, walked = meter.read(), _copies(devices), executor.walked
        n_tokens = min(DECODED, plan.n_ctx - n_prompt)
        started = time.perf_counter()
        for i in range(n_tokens):
            token = np.array([logits.argmax()], np.int32)
            executor.run(token, n_prompt + i, logits)
        seconds = (time.perf_counter() - started) / n_tokens
        counted = [(now - then) / n_tokens for now, then in zip(_copies(devices), counted, strict=True)]
        use, walked = meter.read().since(before), (executor.walked - walked) / n_tokens
        alone = {side: _alone(executor, side, token, n_prompt + n_tokens - 1) for side in BOTH_SIDES}
        sides = SideTimes(alone[GPU], alone[CPU], seconds, walked, counted[-1])
        rows = _rows(plan, use.numbers(), counted, n_tokens, seconds)
        rows += _loading(stores, load_seconds, executor.bus_speed())
    return rows + _times(sides, bool(devices) and plan.totals.used > 0) + _reckoned(sides, plan, others)


def _alone(executor: Executor, side: str, token: NDArray[np.int32], position: int) -> float:
    """Seconds of one side's part of a token by itself, the best of a few rounds."""
    executor.taking, best = Only(side), math.inf
    for _ in range(ROUNDS):
        started = time.perf_counter()
        executor.run(token, position)
        best = min(best, time.perf_counter() - started)
    return best


def _copies(devices: Sequence[Device]) -> list[float]:
    """Copies and bytes up, copies and bytes down, waits of the host and their seconds."""
    counted = [device.counters for device in devices]
    figures = "h2d_calls", "h2d_bytes", "d2h_calls", "d2h_bytes", "host_waits", "waiting"
    return [sum(getattr(each, name) for each in counted) for name in figures]


def _rows(
    plan: Plan,
    use: dict[str, Any],
    copies: list[float],
    n_tokens: int,
    seconds: float,
) -> list[Row]:
    traffic = token_traffic(plan)
    up, up_bytes, down, down_bytes, waits, _ = copies
    positions = 4 * len(plan.cards) * bool(plan.totals.used)
    served = f"{'chosen' if plan.model.experts else 'active'} {plan.model.unit}s served there"
    figures: list[tuple[str, str, float | None, float | None]] = [
        ("device memory", "bytes", plan.totals.used, use["vram_used"]),
        ("graphs, beside it", "bytes", _assumed_of_graphs(plan), use["graph_bytes"]),
        ("up the bus, a token", "bytes", traffic.to_device + positions, up_bytes),
        ("down the bus, a token", "bytes", traffic.to_host, down_bytes),
        ("copies, a token", "", traffic.copies + positions // 4, up + down),
        ("waits of the host, a token", "", None, waits),
        ("launches, a token", "", None, use["kernel_launches"] / n_tokens),
        ("of graphs, a token", "", None, use["graph_launches"] / n_tokens),
        (f"{plan.model.unit}s on the device", "share", plan.hot_share, use["ffn_device_share"]),
        (served, "share", plan.coverage, use["active_device_share"]),
        ("a token", "s", None, seconds),
    ]
    return [_row(*figure) for figure in figures]


def _assumed_of_graphs(plan: Plan) -> int:
    """What the plan has left free for them, outside of its budgets."""
    return sum(card.budget.device.graph_bytes for card in plan.cards if card.budget.device is not None)


def _row(name: str, unit: str, planned: float | None, measured: float | None) -> Row:
    return {"name": name, "unit": unit, "planned": planned, "measured": measured}


def _loading(stores: Sequence[DeviceStore], seconds: float, bus: float | None) -> list[Row]:
    loaded = sum(store.loaded_bytes for store in stores) / seconds if stores else None
    return [
        _row("loading to the device", "bytes/s", None, loaded),
        _row("the bus, copies to the device", "bytes/s", None, bus),
    ]


def _times(sides: SideTimes, is_divided: bool) -> list[Row]:
    """What a token's time is made of; with a device also what each side takes by itself."""
    rest = sides.together - sides.walked - sides.waited
    figures: list[tuple[str, str, float]] = [
        ("of a token, the CPU's part", "s", sides.walked),
        ("of a token, the CPU waits for the device", "s", sides.waited),
        ("of a token, enqueueing and the rest", "s", rest),
    ]
    if is_divided:
        figures += [
            ("the device's part by itself", "s", sides.device),
            ("the CPU's part by itself", "s", sides.host),
            ("of the shorter part, beside the other", "share", sides.overlap),
            ("of a token, the device waits for the CPU", "s", max(0.0, sides.together - sides.device)),
        ]
    return [_row(name, unit, None, value) for name, unit, value in figures]


def _reckoned(sides: SideTimes, plan: Plan, others: Sequence[Plan]) -> list[Row]:
    """What a smaller and a larger budget would do."""
    found = [
        (f"a token with a budget of {mib(other.budget.n_bytes)}", sides.of(plan, other)) for other in others
    ]
    return [_row(name, "s", seconds, None) for name, seconds in found]
