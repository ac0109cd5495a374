"""Bytes of a model's parts on the device, and which of them it has kernels for."""

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES

from hotcold.engine.model import Layer, Model, Weight
from hotcold.kernels.cuda.repack import packed_bytes, packed_row_bytes
from hotcold.kernels.cuda.weights import KERNEL_TYPES

INDEX_BYTES = 4  # a neuron's number, int32
KV_BYTES = {"f16": 2, "f32": 4}


@dataclass(frozen=True)
class Part:
    """Weights that are placed together.

    Attributes:
        obstacle: why the device cannot hold them, in words; empty if it can.
    """

    weights: tuple[tuple[str, Weight], ...]  # role, weight
    n_bytes: int
    obstacle: str


def n_rows(weight: Weight) -> int:
    """Rows of a matrix; a vector has one."""
    return weight.ne[1] if len(weight.ne) > 1 else 1


def device_bytes(weight: Weight) -> int:
    """Bytes of a whole weight on the device."""
    return packed_bytes(weight.type, n_rows(weight), weight.ne[0])


def obstacle(*weights: Weight) -> str:
    """Why the device has no kernel for one of the weights; empty if it has."""
    for weight in weights:
        if weight.type not in KERNEL_TYPES:
            return f"the device has no kernel for {weight.type.name}"
        if weight.ne[0] % GGML_QUANT_SIZES[weight.type][0]:
            return f"rows of {weight.ne[0]} are no whole blocks of {weight.type.name}"
    return ""


def part(*weights: tuple[str, Weight]) -> Part:
    """Weights that are placed together, with their bytes where the device can hold them."""
    problem = obstacle(*(weight for _, weight in weights))
    return Part(weights, 0 if problem else sum(device_bytes(weight) for _, weight in weights), problem)


def dense_part(layer: Layer, sparsity: str) -> Part:
    """Attention and norms, and the predictor where the mode uses one."""
    weights = [
        ("norm", layer.attn_norm),
        ("attention", layer.attn_q),
        ("attention", layer.attn_k),
        ("attention", layer.attn_v),
        ("attention", layer.attn_output),
        ("norm", layer.ffn_norm),
        *(("bias", weight) for weight in layer.extras),
    ]
    if sparsity == "predictor" and layer.fc1 is not None and layer.fc2 is not None:
        weights += [("predictor", layer.fc1), ("predictor", layer.fc2)]
    return part(*weights)


def head_part(model: Model) -> Part:
    """The last norm and the output matrix."""
    biases = [("bias", weight) for weight in model.extras if len(weight.ne) == 1]
    return part(("norm", model.output_norm), *biases, ("head", model.output))


def ffn_part(layer: Layer) -> Part:
    """Gate, up and down, as a whole or by neurons."""
    weights = layer.ffn_matrices
    whole = part(*(("ffn", weight) for weight in weights))
    if not whole.obstacle and layer.ffn_down is None and len({weight.type for weight in weights}) > 1:
        types = ", ".join(weight.type.name for weight in weights)
        return Part(whole.weights, 0, f"the device's sparse FFN takes one type, not {types}")
    return whole


def neuron_bytes(layer: Layer) -> int:
    """Bytes of one neuron's rows on the device: gate, up and down, repacked."""
    return sum(packed_row_bytes(weight.type, weight.ne[0]) for weight in layer.ffn_matrices)


def layer_kv_bytes(model: Model, n_ctx: int, kv_type: str) -> int:
    """Bytes of one layer's keys and values."""
    return 2 * model.n_head_kv * n_ctx * model.head_dim * KV_BYTES[kv_type]
