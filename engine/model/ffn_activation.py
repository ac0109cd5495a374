"""Which function the FFN has where a file does not say, or says something else than its weights were trained with."""

from dataclasses import replace
from typing import TYPE_CHECKING

from hotcold.gguf_io.architectures import ARCHITECTURES, check_activation
from hotcold.gguf_io.names import FFN_ACTIVATION

if TYPE_CHECKING:
    from hotcold.engine.model.model import Model
    from hotcold.gguf_io import GGUFFile

RELU_NAMES = ("relu", "prosparse", "turbosparse", "bamboo")
"""What names of models with a ReLU have in them."""
OPTION = "--ffn-activation relu (library: ffn_activation='relu')"


def with_activation(model: "Model", file: "GGUFFile", wanted: str | None) -> "Model":
    """The model with this function in its FFN; None leaves it as the file has it.

    Raises:
        SettingError: a function that the architecture has not.
    """
    if wanted is None:
        return model
    check_activation(wanted, model.architecture, ("relu",) if file.is_powerinfer else ())
    return replace(model, ffn_activation=wanted)


def is_a_guess(model: "Model", file: "GGUFFile") -> bool:
    """Whether the function is only what files of the architecture mean without a word, and could be ReLU."""
    could = ARCHITECTURES[model.architecture].activations
    return FFN_ACTIVATION not in file.metadata and "relu" in could and model.ffn_activation != "relu"


def hint_by_name(model: "Model", file: "GGUFFile") -> tuple[str, ...]:
    """A line for a file whose name speaks of ReLU and whose metadata do not."""
    name = file.metadata.get("general.name")
    names = (file.path.name, name if isinstance(name, str) else "")
    if not is_a_guess(model, file) or not any(word in n.lower() for word in RELU_NAMES for n in names):
        return ()
    text = f"its name speaks of ReLU, its metadata do not, so its FFN has {model.ffn_activation.upper()}"
    return (f"{file.path.name}: {text}; if the text makes no sense, try {OPTION}",)
