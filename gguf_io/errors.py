"""What can be wrong with a GGUF file: a closed list."""

from hotcold.errors import FileError


class GGUFError(FileError):
    """Any reason to refuse a file."""


class NotGGUFError(GGUFError):
    """No regular file, an empty file, or another format."""


class VersionError(GGUFError):
    """A version of GGUF that is not 2 or 3, or one of the other byte order."""


class TruncatedError(GGUFError):
    """A field reaches past the end of the file."""


class CountError(GGUFError):
    """A count, length or size that the file cannot hold."""


class MetadataError(GGUFError):
    """A key or value that is malformed, missing or of the wrong type."""


class TensorTableError(GGUFError):
    """An entry of the tensor table that is malformed."""


class TensorDataError(GGUFError):
    """Tensors that overlap, leave holes, are misaligned or lie outside the file."""
