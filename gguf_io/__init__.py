"""GGUF files: reading, writing and converting."""

from hotcold.gguf_io import errors as errors
from hotcold.gguf_io.errors import GGUFError as GGUFError
from hotcold.gguf_io.reader import GGUFFile as GGUFFile
from hotcold.gguf_io.reader import open_gguf as open_gguf
from hotcold.gguf_io.tensors import TensorInfo as TensorInfo
