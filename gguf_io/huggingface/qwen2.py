"""Qwen2 in Hugging Face's layout: llama's tensors with biases on q, k and v, and rows as they are."""

from dataclasses import replace

from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import names, projections, read_gated
from hotcold.gguf_io.huggingface.model import HFModel

NAMES = names("qwen2", projections(("same", "same"), biased="qkv"))


def read_qwen2(fields: Fields, sparse: bool) -> HFModel:
    """A Qwen2; `sparse`: it comes with predictors, which PowerInfer has for other architectures only."""
    fields.only("use_sliding_window", False, "attention to the last positions only is not supported")
    model = read_gated(fields, NAMES)
    return replace(model, powerinfer_warnings=("PowerInfer itself does not know qwen2, hotcold does",))
