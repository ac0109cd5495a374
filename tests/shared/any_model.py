"""Models of any kind for tests of plans, with their counts and settings."""

from dataclasses import replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from hypothesis import strategies as st

from hotcold.engine.model.model import Layer, Model
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build

T = GGMLQuantizationType
KINDS = [T.F32, T.F16, T.Q8_0, T.Q4_0, T.Q6_K]
Case = tuple[Model, list[np.ndarray[Any, Any]], str, int, int]


def _experts(**more: int) -> st.SearchStrategy[dict[str, Any]]:
    """Sizes of a mixture of experts."""
    n_expert = st.integers(1, 9)
    some = n_expert.flatmap(
        lambda n: st.fixed_dictionaries({"n_expert": st.just(n), "n_expert_used": st.integers(1, n)})
    )
    return st.builds(lambda sizes, n: sizes | {"n_ff_exp": 256 * n} | more, some, st.integers(1, 2))


MIXTURES = {
    "qwen3moe": _experts(head_dim=64),
    "qwen2moe": _experts(n_ff_shexp=512),
    "granitemoe": _experts(),
    "gpt-oss": _experts(window=16),
    "smallthinker": _experts(),
}
VARIANTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "qwen3": st.just({"head_dim": 32}),
    "phi3": st.just({}),
    "granite": st.just({}),
    "gemma3": st.fixed_dictionaries({"head_dim": st.just(64), "window": st.integers(0, 80)}),
}


def by_neuron(layer: Layer) -> Layer:
    """The layer with its experts' down projections the other way round."""
    down = layer.ffn_down_exps
    assert down is not None
    n_ff, n_embd, n_expert = down.ne
    return replace(layer, ffn_down_exps=None, ffn_down_exps_t=replace(down, ne=(n_embd, n_ff, n_expert)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A model with mixed types, its counts (with many ties), a mode, n_ctx and n_batch."""
    architecture = draw(st.sampled_from(["llama", "bamboo", "falcon", "opt", "qwen2", *VARIANTS, *MIXTURES]))
    mixture = MIXTURES.get(architecture)
    own = draw((VARIANTS | MIXTURES).get(architecture, st.just({})))
    relu = mixture is None and (architecture != "llama" or draw(st.booleans()))
    shape = Shape(
        architecture,
        n_layer=draw(st.integers(1, 4)),
        n_embd=draw(st.sampled_from([256, 512])),
        n_ff=256 * draw(st.integers(1, 3)),
        n_head=4,
        n_head_kv=draw(st.sampled_from([1, 2, 4])),
        n_vocab=draw(st.integers(1, 300)),
        n_ctx_train=64,
        ffn_activation="relu" if relu else "silu" if mixture is None else "",
        **own,
        tied=draw(st.booleans()),
        n_positions=66 if architecture == "opt" else 0,
    )
    model = build("any", shape, draw(st.sampled_from(KINDS)), draw(st.sampled_from([0, 32])) if relu else 0)
    if draw(st.booleans()):  # layers of another type
        other = build("any", shape, draw(st.sampled_from(KINDS)), 32 if model.has_predictors else 0)
        layers = tuple(draw(st.sampled_from(pair)) for pair in zip(model.layers, other.layers, strict=True))
        model = replace(model, layers=layers)
    if model.experts is not None and draw(st.booleans()):
        model = replace(model, layers=tuple(map(by_neuron, model.layers)))
    mode = "off"
    if model.ffn_activation == "relu":
        mode = draw(st.sampled_from(["off", "exact", *(["predictor"] if model.has_predictors else [])]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    n_counts = model.n_units
    if model.experts is not None and draw(st.booleans()):  # an expert's, for all of its neurons
        n_counts = model.experts.n_expert
    counts = [rng.integers(0, draw(st.sampled_from([1, 3, 10000])), n_counts) for _ in model.layers]
    n_ctx = draw(st.integers(1, 64 if model.windows is None else 300))
    return model, counts, mode, n_ctx, draw(st.sampled_from([1, 2, 7, 32]))


def everything(model: Model) -> int:
    weights = [
        model.token_embd,
        model.output,
        *(w for la in model.layers for w in (la.attn_q, *la.ffn_matrices)),
    ]
    return 4 * sum(weight.n_bytes for weight in weights) + (1 << 20)
