"""What can be wrong with a GGUF file: a closed list."""

from hotcold.errors import FileError

DAMAGED = "the file is damaged: download it again"
CUT = "the file is cut short: download it again"
CONVERT = "convert the model again"


class GGUFError(FileError):
    """Any reason to refuse a file."""


class NotGGUFError(GGUFError):
    """No regular file, or another format."""


class VersionError(GGUFError):
    """A version of GGUF that is not 2 or 3, or one of the other byte order."""


class TruncatedError(GGUFError):
    """The file ends before what its header says that it holds: it is cut, wherever that is.

    Also of the files that a model is converted from: safetensors, torch's and NumPy's.
    """


class CountError(GGUFError):
    """A count, length or size that no file can hold."""


class MetadataError(GGUFError):
    """A key or value that is malformed, missing or of the wrong type."""


class TensorTableError(GGUFError):
    """An entry of the tensor table that is malformed."""


class TensorDataError(GGUFError):
    """Tensors that overlap, leave holes, are misaligned, or end where no file ends."""


def excerpt(value: object, n_max: int = 60) -> str:
    """The value's text, shortened: keys and strings of a file may be long."""
    text = str(value)
    return text if len(text) <= n_max else text[: n_max - 3] + "..."
