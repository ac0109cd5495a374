"""Bytes of weights that a token reads, from shapes and counts; the KV cache is not part of it."""

from dataclasses import fields

from hotcold.engine.model.model import Layer, Model, Weight

# counted by neuron, or only in the mode that reads them
FFN_ROLES = frozenset({"ffn_gate", "ffn_up", "ffn_down", "ffn_down_t", "fc1", "fc2", "ffn_threshold"})
EXPERTS = (
    *(f"ffn_{part}_exps{kind}" for part in ("gate", "up", "down") for kind in ("", "_bias")),
    "ffn_down_exps_t",
)


def dense_bytes(model: Model, predictors: bool) -> int:
    """Bytes that every token reads whatever fires: its embedding rows, attention, norms, biases, head.

    Args:
        predictors: whether fc1 and fc2 are read.
    """
    total = model.token_embd.row_bytes + model.output_norm.n_bytes + model.output.n_bytes
    if model.position_embd is not None:
        total += model.position_embd.row_bytes
    if model.output_norm_bias is not None:
        total += model.output_norm_bias.n_bytes
    for layer in model.layers:
        total += sum(weight.n_bytes for weight in _always_read(layer))
        if predictors and layer.fc1 is not None and layer.fc2 is not None:
            total += layer.fc1.n_bytes + layer.fc2.n_bytes
    return total


def _always_read(layer: Layer) -> list[Weight]:
    """All but the matrices of the FFN and its predictor, and what belongs to one expert."""
    others = (field.name for field in fields(layer) if field.name not in (*FFN_ROLES, *EXPERTS))
    weights = [getattr(layer, name) for name in others]
    return [weight for weight in weights if weight is not None]


def expert_bytes(layer: Layer) -> int:
    """Bytes of one expert of a layer: its matrices and biases."""
    weights: list[Weight | None] = [getattr(layer, role) for role in EXPERTS]
    return sum(weight.n_bytes for weight in weights if weight is not None) // layer.n_expert


def ffn_bytes(layer: Layer, listed: float, firing: float) -> float:
    """Bytes of a layer's FFN for one token that looks at `listed` gates and finds `firing` of them positive.

    Without gates the rows of `up` decide. Where `up` has a ReLU too (bamboo) fewer rows of `down` are read
    than counted here. A down projection with a row an output is read whole.
    """
    gates, ups = listed * layer.up.row_bytes, 0.0
    if layer.ffn_gate is not None:
        gates, ups = listed * layer.ffn_gate.row_bytes, firing * layer.up.row_bytes
    if layer.ffn_down_t is None:
        return gates + ups + layer.down.n_bytes
    return gates + ups + firing * layer.ffn_down_t.row_bytes


def token_bytes(model: Model) -> int:
    """Bytes of a token that reads everything but other tokens' embeddings and experts, and no predictor."""
    if model.experts is not None:
        routed = sum(model.experts.n_used * expert_bytes(layer) for layer in model.layers)
        return dense_bytes(model, predictors=False) + routed
    ffn = sum(ffn_bytes(layer, model.n_ff, model.n_ff) for layer in model.layers)
    return dense_bytes(model, predictors=False) + int(ffn)


def sparse_token_bytes(model: Model, mode: str, listed: list[float], firing: list[float]) -> float:
    """Bytes of an average token.

    Args:
        mode: "off", "exact", "predictor" or "threshold". listed, firing: neurons a token, for each layer.
    """
    if mode == "off":
        return token_bytes(model)
    least = 0.0
    if mode == "threshold":
        weights = (layer.ffn_threshold for layer in model.layers)
        least = sum(weight.n_bytes * _part_used(model) for weight in weights if weight is not None)
    return least + _rows_bytes(model, mode, listed, firing)


def _part_used(model: Model) -> float:
    """Of all experts, those that a token goes to."""
    return 1.0 if model.experts is None else model.experts.n_used / model.experts.n_expert


def _rows_bytes(model: Model, mode: str, listed: list[float], firing: list[float]) -> float:
    """Without the thresholds."""
    if model.experts is not None:
        each_layer = zip(model.layers, listed, firing, strict=True)
        experts = [_expert_ffn_bytes(*each, model.experts.n_ff) for each in each_layer]
        return dense_bytes(model, predictors=False) + sum(experts)
    ffn = [ffn_bytes(*each) for each in zip(model.layers, listed, firing, strict=True)]
    return dense_bytes(model, predictors=mode == "predictor") + sum(ffn)


def _expert_ffn_bytes(layer: Layer, listed: float, firing: float, n_ff: int) -> float:
    """Bytes of a layer's experts for one token: all their gates, and the rows of neurons that fire."""
    gate, up, down = layer.ffn_matrices
    n_bytes = listed * gate.row_bytes + firing * up.row_bytes
    if layer.ffn_down_exps_t is not None:
        return n_bytes + firing * down.row_bytes
    return n_bytes + listed / n_ff * down.n_bytes / layer.n_expert
