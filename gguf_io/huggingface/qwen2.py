"""Qwen2 in Hugging Face's layout."""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import QWEN2
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import read_gated
from hotcold.gguf_io.huggingface.model import HFModel


def read_qwen2(fields: Fields, sparse: bool) -> HFModel:
    """A Qwen2; `sparse`: it comes with predictors, which PowerInfer has for other architectures only."""
    fields.only("use_sliding_window", False, "attention to the last positions only is not supported")
    model = read_gated(fields, QWEN2)
    return replace(model, powerinfer_warnings=("PowerInfer itself does not know qwen2, hotcold does",))
