"""The one exception family. A leaf: every package may import it, it imports nothing of ours."""

INTERRUPTED = 130  # what a command exits with after Ctrl-C, as shells have it


class HotcoldError(Exception):
    """Something a person can act on.

    The text has four parts: the thing, its value, the bound it broke, the next step.
    It is always one line of printable characters: names and values that come from a file
    would otherwise reach the terminal with their control characters.

    Attributes:
        exit_code: what the command line exits with.
    """

    exit_code = 1

    def __init__(self, thing: str, value: object = None, bound: str = "", next_step: str = "") -> None:
        self.thing, self.value, self.bound, self.next_step = thing, value, bound, next_step
        said = '""' if isinstance(value, str) and not value else _text(value)
        text = thing if value is None else f"{thing}: {said}"
        text += f" ({bound})" if bound else ""
        text += f"; {next_step}" if next_step else ""
        super().__init__(printable(text))


class SettingError(HotcoldError):
    """Bad usage or a bad setting."""

    exit_code = 2


class FileError(HotcoldError):
    """A file that is missing, bad or not supported."""

    exit_code = 3


class DoesNotFitError(HotcoldError):
    """Memory, a budget or a context that is too small."""

    exit_code = 4


class DeviceError(HotcoldError):
    """No usable device or driver."""

    exit_code = 5


def shown(value: object) -> str:
    """A value where a number belongs: text in quotes, so that "4" is not taken for 4."""
    return f'"{value}"' if isinstance(value, str) else _text(value)


def _text(value: object) -> str:
    try:
        return f"{value}"
    except ValueError:  # of a whole number with more digits than Python writes
        return "a number of thousands of digits"


def printable(text: str) -> str:
    r"""`text` with every non-printable character written as an escape such as ``\n`` or ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
