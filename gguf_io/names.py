"""How a conversion names tensors, in the model's directory and in a GGUF file.

`{i}` stands for the layer. Shapes are NumPy order (row length last) in names of hyperparameters (see
`HFModel.size`). The tables of the architectures are in hf_llama.py and its kin.
"""

from dataclasses import dataclass
from typing import Literal

Layout = Literal["same", "permute_q", "permute_k", "stack_qkv", "transpose"]


@dataclass(frozen=True)
class TensorRule:
    """One tensor: its name in the file, its name and shape in the source, and what happens on the way.

    permute_q and permute_k: rows of each head go from "first half, second half" to pairs, since
    GGUF's `llama` rotates neighbours (2i, 2i + 1). stack_qkv: rows in groups, the queries of one key
    and value head with that head's key and value, become all queries, all keys, all values.
    transpose: rows become columns.
    """

    name: str
    source: str
    shape: tuple[str, ...]
    layout: Layout = "same"


@dataclass(frozen=True)
class ArchitectureNames:
    """The tensors of one architecture.

    Attributes:
        architecture: GGUF's general.architecture.
        norm_eps: the metadata key of the norms' epsilon, without the architecture.
        prefix: begins every source name but the head's; a checkpoint of the bare model leaves it out.
        whole: tensors that occur once. output: the head, absent where it is tied to the embedding.
        layer: tensors of every layer, without the down projection.
        down: the down projection, one row an output, as llama.cpp has it. down_bias: its bias, if any.
        ignored: endings of source tensors that carry nothing to convert.
    """

    architecture: str
    norm_eps: str
    prefix: str
    whole: tuple[TensorRule, ...]
    output: TensorRule
    layer: tuple[TensorRule, ...]
    down: TensorRule
    down_bias: TensorRule | None = None
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


PREDICTOR_NAMES = ("blk.{i}.fc1.weight", "blk.{i}.fc2.weight")

RMS_EPS = "attention.layer_norm_rms_epsilon"
LAYER_NORM_EPS = "attention.layer_norm_epsilon"
SPARSE_THRESHOLD = "powerinfer.sparse_threshold"
FFN_ACTIVATION = "hotcold.ffn_activation"
END_IDS = "hotcold.end_token_ids"  # ids that end a text, for which llama.cpp has no key
ACTIVATION_COUNTS = "hotcold.activation.{i}"
