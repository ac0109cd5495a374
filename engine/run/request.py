"""The device and the budget that are asked for. Light to import."""

from dataclasses import dataclass

from hotcold.engine.device.choice import DeviceChoice, parse_device
from hotcold.engine.plan.budget import BudgetSetting, parse_budget
from hotcold.errors import DeviceError


@dataclass(frozen=True)
class Request:
    """The device and the budget that are asked for; `strict`: no fallback."""

    device: DeviceChoice
    budget: BudgetSetting
    strict: bool = False

    @property
    def is_for_the_cpu(self) -> bool:
        """Whether no device is wanted."""
        return self.device.kind == "cpu" or self.budget.is_none

    @property
    def leaves_it_open(self) -> bool:
        """Whether the CPU alone is as good an answer as any."""
        return self.device.kind == "auto" and self.budget.is_auto and not self.strict


def parse_request(device: str, vram_budget: float | str, strict: bool = False) -> Request:
    """What --device, --vram-budget and --strict mean together.

    Raises:
        SettingError: a value that means nothing.
        DeviceError: a budget for the CPU.
    """
    request = Request(parse_device(device), parse_budget(vram_budget), strict)
    if request.device.kind == "cpu" and not (request.budget.is_none or request.budget.is_auto):
        raise DeviceError("vram_budget", vram_budget, "device cpu has no VRAM", "leave one of them out")
    return request
