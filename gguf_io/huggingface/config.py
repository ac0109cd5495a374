"""Reads a config.json: which layout the model has, and its hyperparameters, each one checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotcold.gguf_io.huggingface.falcon import read_falcon
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.gemma3 import read_gemma3, read_gemma3_with_images
from hotcold.gguf_io.huggingface.granite import read_granite, read_granite_moe
from hotcold.gguf_io.huggingface.llama import read_bamboo, read_llama, read_mistral
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.moe import (
    read_gpt_oss,
    read_mixtral,
    read_olmoe,
    read_qwen2_moe,
    read_qwen3_moe,
    read_smallthinker,
)
from hotcold.gguf_io.huggingface.opt import read_opt
from hotcold.gguf_io.huggingface.phi3 import read_phi3
from hotcold.gguf_io.huggingface.qwen2 import read_qwen2
from hotcold.gguf_io.huggingface.qwen3 import read_qwen3
from hotcold.gguf_io.json_object import read_json_object


@dataclass(frozen=True)
class HFLayout:
    """One kind of directory: the class that transformers loads it with, and who reads its config."""

    loaded_by: str
    read: Callable[[Fields, bool], HFModel]


# by config.json's model_type
LAYOUTS = {
    "llama": HFLayout("LlamaForCausalLM", read_llama),
    "mistral": HFLayout("MistralForCausalLM", read_mistral),
    "bamboo": HFLayout("BambooForCausalLM", read_bamboo),
    "falcon": HFLayout("FalconForCausalLM", read_falcon),
    "RefinedWeb": HFLayout("RWForCausalLM", read_falcon),
    "RefinedWebModel": HFLayout("RWForCausalLM", read_falcon),
    "opt": HFLayout("OPTForCausalLM", read_opt),
    "qwen2": HFLayout("Qwen2ForCausalLM", read_qwen2),
    "qwen3": HFLayout("Qwen3ForCausalLM", read_qwen3),
    "phi3": HFLayout("Phi3ForCausalLM", read_phi3),
    "granite": HFLayout("GraniteForCausalLM", read_granite),
    "granitemoe": HFLayout("GraniteMoeForCausalLM", read_granite_moe),
    "granitemoeshared": HFLayout("GraniteMoeSharedForCausalLM", read_granite_moe),
    "gpt_oss": HFLayout("GptOssForCausalLM", read_gpt_oss),
    "gemma3_text": HFLayout("Gemma3ForCausalLM", read_gemma3),
    "gemma3": HFLayout("Gemma3ForConditionalGeneration", read_gemma3_with_images),
    "mixtral": HFLayout("MixtralForCausalLM", read_mixtral),
    "qwen2_moe": HFLayout("Qwen2MoeForCausalLM", read_qwen2_moe),
    "qwen3_moe": HFLayout("Qwen3MoeForCausalLM", read_qwen3_moe),
    "olmoe": HFLayout("OlmoeForCausalLM", read_olmoe),
    "smallthinker": HFLayout("SmallThinkerForCausalLM", read_smallthinker),
}


def read_config(path: Path, sparse: bool = False) -> HFModel:
    """Reads `path`, a config.json; `sparse`: the model comes with predictors.

    Raises:
        FileError: unreadable, an unsupported architecture, activation, bias or rope scaling, a
            hyperparameter that is missing, of the wrong type or out of bounds, or two that contradict
            each other.
    """
    fields = Fields(path, read_json_object(path))
    model_type = fields.values.get("model_type")
    layout = LAYOUTS.get(model_type) if isinstance(model_type, str) else None
    if layout is None:
        bound = f"supported: {', '.join(LAYOUTS)}"
        raise fields.wrong("model_type", bound, "use a model of that architecture")
    model = _layout(fields, layout).read(fields, sparse)
    if sparse and model.expert_sizes:
        bound = "no mixture of experts: its router is the predictor"
        raise fields.wrong("model_type", bound, "convert it without predictors")
    return model


def _layout(fields: Fields, layout: HFLayout) -> HFLayout:
    """The layout by both `model_type` and `architectures`, which may hold a class that is not known.

    Bamboo calls itself a mistral in some configs; its class says what it is. Falcon has two classes.
    """
    classes = fields.values.get("architectures") or []
    if not isinstance(classes, list):
        raise fields.wrong("architectures", "a list")
    named = [other for other in LAYOUTS.values() if other.loaded_by in classes]
    same = [other for other in named if other.read is layout.read]
    if named and not same:
        bamboo = LAYOUTS["bamboo"]
        if named == [bamboo] and layout is LAYOUTS["mistral"]:
            return bamboo
        raise fields.wrong("architectures", f"model_type says {layout.loaded_by}")
    return layout
