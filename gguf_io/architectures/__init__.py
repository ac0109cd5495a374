"""The architectures that run here: a table each."""

from hotcold.gguf_io.architectures.falcon import FALCON
from hotcold.gguf_io.architectures.llama import BAMBOO, LLAMA, QWEN2
from hotcold.gguf_io.architectures.opt import OPT
from hotcold.gguf_io.architectures.table import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (LLAMA, BAMBOO, FALCON, OPT, QWEN2)
}
"""By GGUF's general.architecture."""
