"""The architectures that run here: a table each."""

from hotcold.errors import SettingError
from hotcold.gguf_io.architectures.falcon import FALCON
from hotcold.gguf_io.architectures.gemma3 import GEMMA3
from hotcold.gguf_io.architectures.granite import GRANITE
from hotcold.gguf_io.architectures.llama import BAMBOO, LLAMA, QWEN2, QWEN3
from hotcold.gguf_io.architectures.moe import MIXTURES
from hotcold.gguf_io.architectures.opt import OPT
from hotcold.gguf_io.architectures.phi3 import PHI3
from hotcold.gguf_io.architectures.table import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (LLAMA, BAMBOO, FALCON, OPT, QWEN2, QWEN3, PHI3, GRANITE, GEMMA3, *MIXTURES)
}
"""By GGUF's general.architecture."""


def check_activation(name: str, architecture: str, known: tuple[str, ...] = ()) -> None:
    """Refuse a function that an FFN of the architecture cannot have; SettingError.

    Args:
        known: those that it can have; the architecture's, if none are given.
    """
    if architecture in ARCHITECTURES:
        known = known or ARCHITECTURES[architecture].activations
    if name not in known:
        bound = f"an FFN of {architecture} can have: {', '.join(known) or 'what the file says'}"
        raise SettingError("ffn_activation", name, bound, "choose one of them")
