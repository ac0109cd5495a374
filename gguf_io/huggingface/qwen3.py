"""Qwen3 in Hugging Face's layout."""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import QWEN3
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import read_gated
from hotcold.gguf_io.huggingface.model import HFModel


def read_qwen3(fields: Fields, sparse: bool) -> HFModel:
    """A Qwen3; `sparse`: it comes with predictors, which PowerInfer has for other architectures only."""
    fields.only("use_sliding_window", False, "attention to the last positions only is not supported")
    fields.only("attention_bias", False, "projections with a bias are not supported")
    model = read_gated(fields, QWEN3)
    return replace(model, powerinfer_warnings=("PowerInfer itself does not know qwen3, hotcold does",))
