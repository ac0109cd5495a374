"""Making GGUF files: from directories, and from GGUF files to another type."""

from hotcold.gguf_io.convert.conversion import convert

__all__ = ["convert"]
