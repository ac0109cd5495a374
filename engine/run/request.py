"""The device and the budget that are asked for. Light to import."""

from dataclasses import dataclass

from hotcold.engine.device.choice import DeviceChoice, parse_devices
from hotcold.engine.plan.budget import BudgetSetting, budget_for_each, parse_budgets
from hotcold.errors import DeviceError


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        devices, budgets: as many of each.
        strict: no fallback.
        graphs: whether what runs on the devices is to be captured, and plans leave memory for that.
    """

    devices: tuple[DeviceChoice, ...]
    budgets: tuple[BudgetSetting, ...]
    strict: bool = False
    graphs: bool = True

    @property
    def is_for_the_cpu(self) -> bool:
        """Whether no device is wanted."""
        return self.devices[0].kind == "cpu" or self.budgets[0].is_none

    @property
    def leaves_it_open(self) -> bool:
        """Whether the CPU alone is as good an answer as any."""
        return self.devices[0].kind == "auto" and self.budgets[0].is_auto and not self.strict


def parse_request(
    device: str, vram_budget: float | str, strict: bool = False, graphs: bool = True
) -> Request:
    """What --device, --vram-budget, --strict and --no-graphs mean together.

    Raises:
        SettingError: a value that means nothing.
        DeviceError: a budget for the CPU.
    """
    devices = parse_devices(device)
    budgets = budget_for_each(parse_budgets(vram_budget), len(devices))
    if devices[0].kind == "cpu" and not (budgets[0].is_none or budgets[0].is_auto):
        raise DeviceError("vram_budget", vram_budget, "device cpu has no VRAM", "leave one of them out")
    return Request(devices, budgets, strict, graphs)
