"""What a --device setting names. Light to import."""

from dataclasses import dataclass

from hotcold.errors import SettingError

KINDS = ("auto", "cpu", "cuda", "emulated")


@dataclass(frozen=True)
class DeviceChoice:
    """A device that was asked for.

    Attributes:
        kind: "auto" (the first card if it can be used, else the CPU), "cpu", "cuda" or "emulated".
        index: of the card; of an emulated device None where it is the only one.
    """

    kind: str = "auto"
    index: int | None = None

    @property
    def text(self) -> str:
        """As in --device."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def parse_device(text: str) -> DeviceChoice:
    """What "auto", "cpu", "cuda", "cuda:N", "emulated" or "emulated:N" means.

    Raises:
        SettingError: another word.
    """
    kind, colon, index = str(text).partition(":")
    if kind in KINDS and not colon:
        return DeviceChoice(kind)
    if kind in ("cuda", "emulated") and index.isascii() and index.isdigit():
        return DeviceChoice(kind, int(index))
    raise SettingError(
        "device", text, "auto, cpu, cuda, cuda:N, emulated, or cards with commas", "see `hotcold devices`"
    )


def parse_devices(text: str) -> tuple[DeviceChoice, ...]:
    """One device, or several cards such as "cuda:0,cuda:1" or "emulated:0,emulated:1".

    Raises:
        SettingError: another word, cards of two kinds, or one card twice.
    """
    found = tuple(parse_device(each.strip()) for each in str(text).split(","))
    if len(found) == 1:
        return found
    if len({choice.kind for choice in found}) > 1 or any(choice.index is None for choice in found):
        bound = "several cards are all cuda:N or all emulated:N"
        raise SettingError("device", text, bound, "such as --device cuda:0,cuda:1")
    if len(set(found)) < len(found):
        raise SettingError("device", text, "the same card twice", "name each card once")
    return found
