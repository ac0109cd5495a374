"""Phi-3 in Hugging Face's layout: Phi-3, Phi-3.5 and Phi-4-mini."""

from dataclasses import replace

from hotcold.gguf_io.architectures.phi3 import PHI3
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import read_gated, without_window
from hotcold.gguf_io.huggingface.model import HFModel


def read_phi3(fields: Fields, sparse: bool) -> HFModel:
    """A Phi-3, whose sliding window is not kept; `sparse`: it comes with predictors."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    model = without_window(fields, read_gated(fields, PHI3, partly=True))
    return replace(model, powerinfer_warnings=("PowerInfer itself does not know phi3, hotcold does",))
