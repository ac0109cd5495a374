"""Bytes of a model's parts on the device, and which of them it has kernels for."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.settings import one_of
from hotcold.errors import SettingError
from hotcold.kernels.formats import KV_TYPES, cache_positions, device_kv_bytes, host_kv_bytes, kv_block
from hotcold.kernels.weight_table import WEIGHT_TYPES, device_row_bytes

VECTOR_TYPES = (GGMLQuantizationType.F32,)
"""The types in which kernels add and multiply by vectors: norms and biases."""
INDEX_BYTES = 4  # a neuron's number, int32


@dataclass(frozen=True)
class Obstacle:
    """Why something stays on the CPU, in words. Where there is none it may go to the device."""

    reason: str


@dataclass(frozen=True)
class WeightGroup:
    """Weights that are placed together.

    Attributes:
        weights: each with its role.
        n_bytes: on the device.
        obstacle: why the device cannot hold them; None if it can.
    """

    weights: tuple[tuple[str, Weight], ...]
    n_bytes: int
    obstacle: Obstacle | None


def device_bytes(weight: Weight) -> int:
    """Bytes of a whole weight on the device."""
    return weight.n_rows * device_row_bytes(weight.type, weight.ne[0])


def obstacle(weight: Weight, types: Collection[GGMLQuantizationType] = WEIGHT_TYPES) -> Obstacle | None:
    """Why the device has no kernel for a weight; None if it has.

    Args:
        types: those that the kernel in question exists for.
    """
    if problem := type_obstacle(weight.type, types):
        return problem
    if weight.ne[0] % GGML_QUANT_SIZES[weight.type][0]:
        return Obstacle(f"rows of {weight.ne[0]} are no whole blocks of {weight.type.name}")
    return None


def type_obstacle(
    kind: GGMLQuantizationType, types: Collection[GGMLQuantizationType] = WEIGHT_TYPES
) -> Obstacle | None:
    """Why the device has no kernel for any weight of a type; None if it has."""
    return None if kind in types else Obstacle(f"the device has no kernel for {kind.name}")


def part(*weights: tuple[str, Weight]) -> WeightGroup:
    """Weights that are placed together, with their bytes where the device can hold them."""
    problems = (
        obstacle(weight, VECTOR_TYPES if role in ("norm", "bias", "sinks") else WEIGHT_TYPES)
        for role, weight in weights
    )
    problem = next(filter(None, problems), None)
    return WeightGroup(weights, 0 if problem else sum(device_bytes(weight) for _, weight in weights), problem)


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
NORMS = ("attn_norm", "attn_norm_2", "ffn_norm")
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
ROUTERS = ("ffn_gate_inp", "ffn_gate_inp_shexp")
SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
BIASED = (*NORMS, *ATTENTION, "ffn_up", "ffn_down", "ffn_gate_inp", *EXPERTS)


def dense_part(layer: Layer, sparsity: str) -> WeightGroup:
    """Attention, norms and biases, and the predictor where the mode uses one."""
    roles = [("norm", role) for role in (*NORMS, *HEAD_NORMS, *POST_NORMS)] + [
        ("attention", role) for role in ATTENTION
    ]
    roles += [("bias", f"{role}_bias") for role in BIASED] + [("sinks", "attn_sinks")]
    if sparsity == "predictor":
        roles += [("predictor", "fc1"), ("predictor", "fc2")]
    roles += [("router", role) for role in ROUTERS] + [("shared", role) for role in SHARED]
    weights: list[tuple[str, Weight | None]] = [(kind, getattr(layer, role)) for kind, role in roles]
    return part(*((kind, weight) for kind, weight in weights if weight is not None))


def head_part(model: Model) -> WeightGroup:
    """The last norm, the output matrix, and the profile where a token by itself goes by one."""
    biases = [("bias", model.output_norm_bias)] if model.output_norm_bias is not None else []
    profile = [("profile", weight) for weight in model.head_profile] if model.lists_head_rows else []
    return part(("norm", model.output_norm), *biases, ("head", model.output), *profile)


def ffn_part(layer: Layer, sparsity: str) -> WeightGroup:
    """Gate, up and down, as a whole or by neurons."""
    whole = part(*(("ffn", weight) for weight in layer.ffn_matrices))
    problem = whole.obstacle or _ffn_obstacle(layer, sparsity)
    return replace(whole, n_bytes=0, obstacle=problem) if problem else whole


def _ffn_obstacle(layer: Layer, sparsity: str) -> Obstacle | None:
    """What keeps an FFN on the CPU although matrices of its types could be multiplied."""
    if layer.ffn_gate_inp is not None:
        if layer.up.stacked:
            return Obstacle("its experts are tensors of their own: convert the file for a device")
        if layer.ffn_down_exps is None and (layer.ffn_gate_exps_bias or layer.ffn_down_exps_bias):
            return Obstacle("the device has no kernel for neurons of experts that have biases")
        if (layer.ffn_gate_exps_bias or layer.ffn_down_exps_bias) and dense_part(layer, sparsity).obstacle:
            return Obstacle("its biases stay on the CPU with the dense part")
        return None
    if (layer.ffn_up_bias or layer.ffn_down_bias) and dense_part(layer, sparsity).obstacle:
        return Obstacle("its biases stay on the CPU with the dense part")
    return None


def types_there(model: Model, sparsity: str) -> set[GGMLQuantizationType]:
    """Types of all matrices that the device could hold."""
    parts = [head_part(model)]
    parts += [
        part for layer in model.layers for part in (dense_part(layer, sparsity), ffn_part(layer, sparsity))
    ]
    matrices = (weight for each in parts if each.obstacle is None for _, weight in each.weights)
    return {weight.type for weight in matrices if len(weight.ne) > 1}


def neuron_bytes(layer: Layer) -> int:
    """Bytes of one neuron's rows on the device, or of one expert's: gate, up and down, repacked."""
    return sum(device_bytes(weight) // layer.n_units for weight in layer.ffn_matrices)


def check_kv_type(kv_type: str, model: Model | None = None) -> None:
    """Refuse a type that there is none of, or that the model's heads are no whole blocks of."""
    one_of("kv_type", kv_type, tuple(KV_TYPES))
    block = kv_block(kv_type)
    if model is not None and model.head_dim % block:
        bound = f"its blocks of {block} do not divide the model's heads of {model.head_dim}"
        raise SettingError("kv_type", kv_type, bound, "take --kv-type f16")


def kv_positions(model: Model, n_ctx: int, n_batch: int) -> tuple[int, ...]:
    """Positions that each layer's cache holds."""
    return tuple(cache_positions(n_ctx, model.window(i), n_batch) for i in range(model.n_layer))


def layer_kv_bytes(model: Model, n_positions: int, kv_type: str, n_slots: int = 1) -> int:
    """Bytes of one layer's keys and values on the device, of all slots."""
    return 2 * device_kv_bytes(kv_type, n_slots * model.n_head_kv, n_positions, model.head_dim)


def host_layer_kv_bytes(model: Model, n_positions: int, kv_type: str) -> int:
    """Bytes of one layer's keys and values on the host, which has whole blocks of positions."""
    return 2 * model.n_head_kv * host_kv_bytes(kv_type, n_positions, model.head_dim)
