"""What a --device setting names. Light to import."""

from dataclasses import dataclass

from hotcold.errors import SettingError

KINDS = ("auto", "cpu", "cuda", "emulated")


@dataclass(frozen=True)
class DeviceChoice:
    """A device that was asked for.

    Attributes:
        kind: "auto" (the first card if it can be used, else the CPU), "cpu", "cuda" or "emulated".
        index: of the card.
    """

    kind: str = "auto"
    index: int = 0


def parse_device(text: str) -> DeviceChoice:
    """What "auto", "cpu", "cuda", "cuda:N" or "emulated" means.

    Raises:
        SettingError: another word.
    """
    kind, colon, index = str(text).partition(":")
    if kind in KINDS and not colon:
        return DeviceChoice(kind)
    if kind == "cuda" and index.isascii() and index.isdigit():
        return DeviceChoice(kind, int(index))
    raise SettingError("device", text, "auto, cpu, cuda, cuda:N or emulated", "see `hotcold devices`")
