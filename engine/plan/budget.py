"""The budget: how many bytes of device memory hotcold may allocate.

8, 8GiB, 8G, 6000MiB    bytes; a bare number counts GiB, as PowerInfer's --vram-budget does
8GB, 800000000B         decimal units end in B without an i
80%                     of the device's memory
auto                    what is free on the device with its context and kernels there, less a margin and the
                        graphs that are to come; of one that is only assumed, its memory less what the CUDA
                        context and the graphs take
0                       the CPU alone
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hotcold.errors import DeviceError, DoesNotFitError, SettingError

GIB, MIB = 1 << 30, 1 << 20
CONTEXT_BYTES = 512 * MIB  # taken for a card's CUDA context where none has been measured
MARGIN_BYTES = 64 * MIB  # of a card's free memory that `auto` leaves to others
MAX_BYTES = 1 << 60
FORMS = "auto, a size such as 8 (GiB), 8GiB or 6000MiB, a share such as 80%, or 0"
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b?)", re.IGNORECASE)
SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan has to know of a device.

    Attributes:
        memory: bytes, all of it.
        context_bytes: what CUDA itself takes, or what others may need; no part of a budget.
        free: bytes that `auto` may take with what graphs take; None: memory less context_bytes.
        graph_bytes: what its driver is assumed to take for graphs; no part of a budget either.
    """

    name: str
    memory: int
    context_bytes: int = CONTEXT_BYTES
    free: int | None = None
    graph_bytes: int = 0

    @property
    def outside(self) -> int:
        """Bytes that no budget may have."""
        return self.context_bytes + self.graph_bytes


@dataclass(frozen=True)
class Budget:
    """An absolute cap on what hotcold allocates on the device.

    Attributes:
        text: as it was asked for.
        n_bytes: the cap.
        why: where the figure comes from.
        device: that it is for, if that is known.
        cards: of several cards each one's own, whose sum this is; none where there is but one.
    """

    text: str
    n_bytes: int
    why: str
    device: DeviceFacts | None = None
    cards: tuple["Budget", ...] = ()

    @property
    def each(self) -> tuple["Budget", ...]:
        """The cards' budgets, of one card this one."""
        return self.cards or (self,)


def of_cards(budgets: Sequence[Budget]) -> Budget:
    """The budgets of several cards as one; of one card its own."""
    if len(budgets) == 1:
        return budgets[0]
    words = ", ".join(dict.fromkeys(each.why for each in budgets))
    n_bytes = sum(each.n_bytes for each in budgets)
    return Budget(",".join(each.text for each in budgets), n_bytes, words, cards=tuple(budgets))


def facts_of_card(name: str, free: int, total: int, kernels: int = 0) -> DeviceFacts:
    """Of a card that was asked for its memory: its context is there already, and counts as taken.

    Args:
        kernels: bytes that kernels have taken there; as much again stays free, if that is more than the margin.
    """
    margin = max(MARGIN_BYTES, kernels)
    return DeviceFacts(name, total, margin, max(free - margin, 0))


def mib(n_bytes: float) -> str:
    """Bytes in MiB, with a digit that shows small numbers too."""
    size = n_bytes / (1 << 20)
    return f"{size:.1f} MiB" if size >= 0.1 or not n_bytes else f"{n_bytes:.0f} bytes"


def parse_size(text: float | str, name: str = "vram_budget") -> int:
    """Bytes of a size; a bare number counts GiB.

    Raises:
        SettingError: anything else, a negative number, or more than 2^60 bytes.
    """
    option = "--vram-budget" if name == "vram_budget" else name
    match = SIZE.fullmatch("" if isinstance(text, bool) else str(text).strip())
    if match is None:
        bound = FORMS if name == "vram_budget" else "a size: a number of GiB, or one with its unit"
        raise SettingError(name, text, bound, f"such as {option} 24GiB")
    number, prefix, ending = float(match[1]), match[2].lower(), match[3].lower()
    if not prefix and not ending:
        unit = GIB
    elif prefix and ending == "b":
        unit = int(1000 ** POWERS[prefix])
    else:
        unit = int(1024 ** POWERS[prefix])
    if not math.isfinite(number) or number * unit > MAX_BYTES:
        raise SettingError(name, text, f"at most {MAX_BYTES >> 40} TiB", f"such as {option} 24GiB")
    return int(number * unit)


@dataclass(frozen=True)
class BudgetSetting:
    """What was asked for, before a device is looked at: bytes, or a share, or neither for `auto`."""

    text: str
    n_bytes: int | None = None
    percent: float | None = None

    @property
    def is_auto(self) -> bool:
        """Whether it is left open."""
        return self.n_bytes is None and self.percent is None

    @property
    def is_none(self) -> bool:
        """Whether it leaves the CPU alone."""
        return 0 in (self.n_bytes, self.percent)


def parse_budget(text: float | str) -> BudgetSetting:
    """What a --vram-budget means.

    Raises:
        SettingError: nonsense, a negative number, or more than all of a device's memory.
    """
    asked = str(text).strip()
    if asked == "auto":
        return BudgetSetting(asked)
    if share := SHARE.fullmatch(asked):
        if not 0 <= float(share[1]) <= 100:
            raise SettingError("vram_budget", asked, "0% to 100%", "such as --vram-budget 80%")
        return BudgetSetting(asked, percent=float(share[1]))
    return BudgetSetting(asked, parse_size(text))


def parse_budgets(text: float | str) -> tuple[BudgetSetting, ...]:
    """What a --vram-budget means that may be a list, such as "8GB,6GB" for two cards.

    Raises:
        SettingError: see `parse_budget`; or a card of several without a budget.
    """
    if isinstance(text, str) and "," in text and not all(map(str.strip, text.split(","))):
        raise SettingError(
            "vram_budget", text, "a budget at both sides of a comma", "such as --vram-budget 8GB,6GB"
        )
    settings = tuple(map(parse_budget, text.split(","))) if isinstance(text, str) else (parse_budget(text),)
    if len(settings) > 1 and any(setting.is_none for setting in settings):
        raise SettingError(
            "vram_budget", text, "a card of several has a budget above 0", "leave the card out"
        )
    return settings


def budget_for_each(settings: Sequence[BudgetSetting], n_cards: int) -> tuple[BudgetSetting, ...]:
    """As many budgets as there are cards; one counts for each of them.

    Raises:
        SettingError: another number of budgets.
    """
    if len(settings) == 1:
        return tuple(settings) * n_cards
    if len(settings) != n_cards:
        text, cards = ",".join(each.text for each in settings), "card" if n_cards == 1 else "cards"
        bound = f"{len(settings)} budgets for {n_cards} {cards}"
        raise SettingError("vram_budget", text, bound, "give one for each, or one for all of them")
    return tuple(settings)


def resolve_budget(setting: BudgetSetting, facts: DeviceFacts | None = None) -> Budget:
    """The cap in bytes.

    Args:
        facts: the device that the budget is for; None if there is none.

    Raises:
        SettingError: a share above 100%.
        DeviceError: `auto` or a share without a device.
        DoesNotFitError: more than the device's memory less its context.
    """
    asked = setting.text
    if setting.n_bytes is not None:
        budget = Budget(asked, setting.n_bytes, "as asked for")
    elif facts is None:
        raise DeviceError(
            "vram_budget",
            asked,
            "no usable GPU to take its memory from",
            "name one with --device-memory SIZE",
        )
    elif setting.percent is None:
        budget = _all_of(facts)
    else:
        budget = Budget(
            asked, int(facts.memory * setting.percent / 100), f"{asked} of the memory of {facts.name}"
        )
    if facts is not None and budget.n_bytes + facts.outside > facts.memory and budget.n_bytes:
        raise DoesNotFitError(
            "vram_budget",
            f"{asked}, {budget.n_bytes} bytes",
            f"{facts.name} has {facts.memory} bytes, {facts.outside} of them for CUDA and others",
            "lower it, or use auto",
        )
    return replace(budget, device=facts)


def _all_of(facts: DeviceFacts) -> Budget:
    if facts.free is None:
        return Budget(
            "auto",
            max(facts.memory - facts.outside, 0),
            f"memory of {facts.name} less its context and graphs",
        )
    # a budget of 0 would be the CPU's without a word
    return Budget("auto", max(facts.free - facts.graph_bytes, 1), f"free memory of {facts.name}")
