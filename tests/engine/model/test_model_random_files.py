"""Random changes of a good file: a whole model, or one of our refusals."""

from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import DENSE, METADATA, SPARSE, FileWith, Metadata, Tensors, described, tensors

from hotcold.errors import FileError

T, V = GGMLQuantizationType, GGUFValueType
KEYS = [
    *METADATA,
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scale_linear",
    "llama.expert_count",
    "powerinfer.sparse_threshold",
    "hotcold.ffn_activation",
]
EXTREMES = st.sampled_from([0, 1, 2, 3, 15, 16, 64, 96, 2**31 - 1, 2**31, 2**32 - 1])
VALUES = st.one_of(
    st.none(),
    st.tuples(EXTREMES, st.sampled_from([V.UINT32, V.UINT64])),
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.just(V.INT64)),
    st.tuples(st.floats(width=32), st.just(V.FLOAT32)),
    st.tuples(st.booleans(), st.just(V.BOOL)),
    st.tuples(st.sampled_from(["", "linear", "relu", "llama"]), st.just(V.STRING)),
    st.tuples(st.lists(EXTREMES, min_size=1, max_size=3), st.just(V.ARRAY), st.just(V.UINT32)),
    st.tuples(st.lists(st.floats(width=32), min_size=1, max_size=3), st.just(V.ARRAY), st.just(V.FLOAT32)),
)
SHAPES = st.lists(st.sampled_from([1, 16, 32, 50, 64, 96]), min_size=1, max_size=3).map(tuple)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    shapes=st.dictionaries(
        st.sampled_from([*tensors(DENSE), *tensors(SPARSE), "output.weight", "rope_freqs.weight"]),
        st.one_of(st.none(), st.tuples(SHAPES, st.sampled_from([T.F32, T.F16]))),
        max_size=2,
    ),
    magic=st.sampled_from(["GGUF", "PWRI"]),
)
def test_random_changes_give_a_whole_model_or_a_refusal(
    metadata: Metadata, shapes: Tensors, magic: str, file_with: FileWith
) -> None:
    try:
        model = described(file_with(metadata=metadata, changes=shapes, magic=magic))
    except FileError:
        return
    q = model.n_head * model.head_dim
    assert len(model.layers) == model.n_layer >= 1
    assert model.n_head % model.n_head_kv == 0
    assert model.n_rot % 2 == 0 and 2 <= model.n_rot <= model.head_dim
    for layer in model.layers:
        assert layer.attn_q.ne == (model.n_embd, q)
        assert layer.attn_k.ne == layer.attn_v.ne == (model.n_embd, q // model.n_head * model.n_head_kv)
        assert layer.ffn_gate is not None
        assert layer.ffn_gate.ne == layer.up.ne == (model.n_embd, model.n_ff)
        assert (layer.fc1 is not None) == (layer.fc2 is not None) == model.has_predictors
        if layer.fc1 is not None and layer.fc2 is not None:
            assert layer.fc1.ne[1] == layer.fc2.ne[0]
            assert layer.fc2.ne[1] == model.n_ff
