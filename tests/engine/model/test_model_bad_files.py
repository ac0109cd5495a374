"""Files that are sound GGUF and no sound model: each is refused with what, its value and the bound."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotcold.engine.model.model import Model, load_model
from hotcold.errors import FileError
from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.errors import MetadataError

T, V = GGMLQuantizationType, GGUFValueType

N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_VOCAB, RANK = 64, 96, 4, 2, 50, 32

Metadata = dict[str, tuple[Any, ...] | None]  # value, type, type of an array's elements; None: no key
Tensors = dict[str, tuple[tuple[int, ...], GGMLQuantizationType] | NDArray[np.float32] | None]
FileWith = Callable[..., Path]

METADATA: Metadata = {
    "llama.context_length": (128, V.UINT32),
    "llama.embedding_length": (N_EMBD, V.UINT32),
    "llama.block_count": (2, V.UINT32),
    "llama.feed_forward_length": (N_FF, V.UINT32),
    "llama.attention.head_count": (N_HEAD, V.UINT32),
    "llama.attention.head_count_kv": (N_HEAD_KV, V.UINT32),
    "llama.attention.layer_norm_rms_epsilon": (1e-5, V.FLOAT32),
}
LAYER = {
    "attn_norm": (N_EMBD,),
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD, N_EMBD // N_HEAD * N_HEAD_KV),
    "attn_v": (N_EMBD, N_EMBD // N_HEAD * N_HEAD_KV),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_norm": (N_EMBD,),
    "ffn_gate": (N_EMBD, N_FF),
    "ffn_up": (N_EMBD, N_FF),
}
DENSE = LAYER | {"ffn_down": (N_FF, N_EMBD)}
SPARSE = LAYER | {"ffn_down_t": (N_EMBD, N_FF), "fc1": (N_EMBD, RANK), "fc2": (RANK, N_FF)}


def tensors(layer: dict[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a good model, ggml order."""
    table = {"token_embd.weight": (N_EMBD, N_VOCAB), "output_norm.weight": (N_EMBD,)}
    table |= {f"blk.{i}.{role}.weight": ne for i in range(2) for role, ne in layer.items()}
    return {name: (ne, T.F32) for name, ne in table.items()}


def write(
    path: Path, metadata: Metadata, table: Tensors, architecture: Any = "llama", magic: str = "GGUF"
) -> None:
    """A file by the gguf package; `architecture` may be any value, None leaves the key out."""
    writer = GGUFWriter(path, "llama")
    writer.kv_data[0].pop("general.architecture")
    if architecture is not None:
        kind = V.STRING if isinstance(architecture, str) else V.UINT32
        writer.add_key_value("general.architecture", architecture, kind)
    for key, entry in metadata.items():
        if entry is not None:
            writer.add_key_value(key, *entry)
    for name, tensor in table.items():
        if isinstance(tensor, np.ndarray):
            writer.add_tensor(name, tensor)
        elif tensor is not None and tensor[1] == T.F32:
            writer.add_tensor(name, np.ones(tensor[0][::-1], np.float32))
        elif tensor is not None:
            shape = (*tensor[0][:0:-1], blocks.row_bytes(tensor[1], tensor[0][0]))
            writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=tensor[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.write(magic.encode())


@pytest.fixture
def file_with(tmp_path: Path) -> FileWith:
    """A good file with changes."""

    def make(
        metadata: Metadata | None = None,
        changes: Tensors | None = None,
        magic: str = "GGUF",
        architecture: Any = "llama",
    ) -> Path:
        path = tmp_path / "model.gguf"
        table = tensors(DENSE if magic == "GGUF" else SPARSE) | (changes or {})
        write(path, METADATA | (metadata or {}), table, architecture, magic)
        return path

    return make


def described(path: Path) -> Model:
    with open_gguf(path) as file:
        return load_model(file)


def refused(file_with: FileWith, *parts: str, **arguments: Any) -> None:
    """The file is refused in one line that holds all parts, in 1 s and 100 MB."""
    path = file_with(**arguments)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(FileError) as caught:
            described(path)
        assert time.perf_counter() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("model.gguf", *parts):
        assert part in text, text


def test_the_files_without_changes_are_good(file_with: FileWith) -> None:
    assert described(file_with()).n_ff == N_FF
    assert described(file_with(magic="PWRI")).has_predictors


def test_architecture(file_with: FileWith) -> None:
    refused(file_with, "general.architecture", "missing", architecture=None)
    refused(file_with, "general.architecture", "7", "must be UTF-8 text", architecture=7)
    refused(file_with, "architecture", "mamba", "known: llama", "cannot run", architecture="mamba")


@pytest.mark.parametrize("key", [key for key in METADATA if key != "llama.attention.head_count_kv"])
def test_a_missing_key(key: str, file_with: FileWith) -> None:
    refused(file_with, key, "missing", metadata={key: None})


INTEGERS = [key for key, entry in METADATA.items() if entry is not None and entry[1] == V.UINT32]


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("entry", [(64.0, V.FLOAT32), ("64", V.STRING), (True, V.BOOL)])
def test_an_integer_of_the_wrong_type(key: str, entry: tuple[Any, ...], file_with: FileWith) -> None:
    refused(file_with, key, str(entry[0]), "must be an integer", metadata={key: entry})


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize(
    "entry", [(0, V.UINT32), (-1, V.INT32), (2**32 - 1, V.UINT32), (2**64 - 1, V.UINT64), (-(2**63), V.INT64)]
)
def test_a_size_of_nothing_or_too_much(key: str, entry: tuple[Any, ...], file_with: FileWith) -> None:
    refused(file_with, key, str(entry[0]), "1 to ", metadata={key: entry})


def test_more_layers_than_the_file_has(file_with: FileWith) -> None:
    refused(file_with, "blk.2.", "missing", metadata={"llama.block_count": (1000, V.UINT32)})


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("llama.embedding_length", 66, "a multiple of llama.attention.head_count = 4"),
        ("llama.attention.head_count_kv", 3, "a multiple of llama.attention.head_count_kv = 3"),
        ("llama.attention.head_count_kv", 8, "1 to 4"),
        ("llama.attention.key_length", 2000, "1 to 1024"),
        ("llama.attention.value_length", 8, "keys have 16"),
        ("llama.rope.dimension_count", 15, "an even number"),
        ("llama.rope.dimension_count", 18, "1 to 16"),
        ("llama.rope.dimension_count", 0, "1 to 16"),
    ],
)
def test_sizes_that_do_not_fit_each_other(key: str, value: int, bound: str, file_with: FileWith) -> None:
    refused(file_with, str(value), bound, metadata={key: (value, V.UINT32)})


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        (([N_FF] * 3, V.ARRAY, V.UINT32), ("3 values", "2 layers")),
        (([N_FF], V.ARRAY, V.UINT32), ("1 values", "2 layers")),
        (([N_FF, 64], V.ARRAY, V.UINT32), ("64 to 96", "alike")),
        (([0, 0], V.ARRAY, V.UINT32), ("0", "1 to ")),
        (([2**63, 2**63], V.ARRAY, V.UINT64), (str(2**63), "1 to ")),
        (([96.0, 96.0], V.ARRAY, V.FLOAT32), ("float32", "integers")),
        (([True, True], V.ARRAY, V.BOOL), ("bool", "integers")),
        ((["96", "96"], V.ARRAY, V.STRING), ("strings", "integers")),
        (([[96], [96]], V.ARRAY, V.ARRAY), ("arrays", "integers")),
        ((b"\xff\xff", V.STRING), ("xff", "must be an integer")),
    ],
)
def test_arrays_of_a_value_a_layer(
    entry: tuple[Any, ...], parts: tuple[str, ...], file_with: FileWith
) -> None:
    refused(file_with, "llama.feed_forward_length", *parts, metadata={"llama.feed_forward_length": entry})


@pytest.mark.parametrize("n", [0, 50_000_000])
def test_arrays_of_any_length_cost_nothing(n: int, data: Path) -> None:
    """Refused by their length, before any value is looked at."""
    key = "llama.feed_forward_length"
    with open_gguf(data / "llamacpp" / "llama.f32.gguf") as file:
        file.metadata = {**file.metadata, key: np.zeros(n, np.uint8)}
        began = time.perf_counter()
        with pytest.raises(FileError, match=f"{key}: {n} values .one for each of 2 layers"):
            load_model(file)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("value", [0.0, -1.5, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "key",
    [
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.freq_base",
        "llama.rope.scaling.attn_factor",
    ],
)
def test_constants_that_ruin_the_numbers(key: str, value: float, file_with: FileWith) -> None:
    refused(file_with, key, str(value)[:5], "finite number above 0", metadata={key: (value, V.FLOAT32)})


@pytest.mark.parametrize("value", [-1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_factors_that_ruin_the_numbers(key: str, value: float, file_with: FileWith) -> None:
    """0 is none, as in llama.cpp."""
    refused(file_with, key, str(value)[:5], "above 0 or 0", metadata={key: (value, V.FLOAT32)})


@pytest.mark.parametrize("name", ["yarn_beta_fast", "yarn_beta_slow"])
def test_betas_that_ruin_the_numbers(name: str, file_with: FileWith) -> None:
    keys = {"llama.rope.scaling.type": ("yarn", V.STRING), f"llama.rope.scaling.{name}": (0.0, V.FLOAT32)}
    refused(file_with, name, "0.0", "finite number above 0", metadata=keys)


def test_an_original_context_of_nothing(file_with: FileWith) -> None:
    key = "llama.rope.scaling.original_context_length"
    refused(file_with, key, "0", "1 or more", metadata={key: (0, V.UINT32)})


@pytest.mark.parametrize("name", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_factors_by_length_that_ruin_the_numbers(name: str, file_with: FileWith) -> None:
    factors = np.array([1, 1, 2, 4, 4, -2, 8, 8], np.float32)
    refused(file_with, name, "-2.0", "above 0", changes={name: factors})
    refused(file_with, name, "[7]", "[8]", changes={name: np.ones(7, np.float32)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_is_no_number(value: float, file_with: FileWith) -> None:
    key = "powerinfer.sparse_threshold"
    refused(file_with, key, str(value), "finite", metadata={key: (value, V.FLOAT32)}, magic="PWRI")


@pytest.mark.parametrize("kind", ["dynamic", "su", ""])
def test_other_rope_scaling(kind: str, file_with: FileWith) -> None:
    key = "llama.rope.scaling.type"
    refused(file_with, key, kind, "known: none, linear, yarn, longrope", metadata={key: (kind, V.STRING)})


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_rope_freqs_that_ruin_the_numbers(bad: float, file_with: FileWith) -> None:
    factors = np.array([1, 1, 2, 4, 4, bad, 8, 8], np.float32)
    refused(file_with, "rope_freqs.weight", str(bad), "above 0", changes={"rope_freqs.weight": factors})


def test_rope_freqs_of_the_wrong_length(file_with: FileWith) -> None:
    refused(
        file_with, "rope_freqs.weight", "[7]", "[8]", changes={"rope_freqs.weight": np.ones(7, np.float32)}
    )


def test_an_unknown_activation(file_with: FileWith) -> None:
    key = "hotcold.ffn_activation"
    refused(file_with, key, "gelu", "known: relu, silu", metadata={key: ("gelu", V.STRING)})


@pytest.mark.parametrize("name", ["blk.1.ffn_up.bias", "blk.0.attn_norm.bias", "output.bias"])
def test_biases_that_no_op_adds(name: str, file_with: FileWith) -> None:
    refused(file_with, name, "no such bias", changes={name: np.ones(N_EMBD, np.float32)})


def test_biases_of_attention(file_with: FileWith) -> None:
    name = "blk.1.attn_k.bias"
    assert described(file_with(changes={name: np.ones(N_EMBD // 2, np.float32)})).layers[1].attn_k_bias
    refused(file_with, name, "[64]", "wanted [32]", changes={name: np.ones(N_EMBD, np.float32)})


@pytest.mark.parametrize("role", DENSE)
def test_a_tensor_missing_in_one_layer(role: str, file_with: FileWith) -> None:
    name = f"blk.1.{role}.weight"
    refused(file_with, name, "missing", changes={name: None})


@pytest.mark.parametrize("role", SPARSE)
def test_a_tensor_missing_in_one_layer_of_a_sparse_model(role: str, file_with: FileWith) -> None:
    name = f"blk.1.{role}.weight"
    refused(file_with, name, "missing", changes={name: None}, magic="PWRI")


def test_powerinfers_magic_without_predictors(file_with: FileWith) -> None:
    gone: Tensors = {f"blk.{i}.{role}.weight": None for i in range(2) for role in ("fc1", "fc2")}
    refused(file_with, "blk.0.fc1.weight", "PWRI file has a predictor", changes=gone, magic="PWRI")


@pytest.mark.parametrize(("role", "ne"), [("fc1", (N_EMBD, RANK)), ("fc2", (RANK, N_FF))])
def test_plain_magic_with_predictors(role: str, ne: tuple[int, ...], file_with: FileWith) -> None:
    name = f"blk.0.{role}.weight"
    refused(file_with, "predictor of layer 0", name, "PWRI", changes={name: (ne, T.F32)})


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight"])
def test_a_missing_tensor_of_the_whole_model(name: str, file_with: FileWith) -> None:
    refused(file_with, name, "missing", changes={name: None})


def test_a_file_without_tensors_is_no_model(file_with: FileWith) -> None:
    refused(file_with, "not a model", changes=dict.fromkeys(tensors(DENSE)))


@pytest.mark.parametrize(("role", "axis"), [(role, i) for role, ne in SPARSE.items() for i in range(len(ne))])
@pytest.mark.parametrize("by", [-32, 32])
def test_shapes_against_the_hyperparameters(role: str, axis: int, by: int, file_with: FileWith) -> None:
    ne = list(SPARSE[role])
    if (role, axis) == ("fc1", 1):  # the rank is fc1's to say, and fc2 is what does not fit
        refused_role = "fc2"
    else:
        refused_role = role
    ne[axis] = max(ne[axis] + by, 1)
    name = f"blk.1.{role}.weight"
    shown = ", ".join(map(str, SPARSE["fc2"] if refused_role != role else ne))
    refused(
        file_with,
        f"shape of blk.1.{refused_role}.weight: [{shown}]",
        "wanted",
        changes={name: (tuple(ne), T.F32)},
        magic="PWRI",
    )


@pytest.mark.parametrize("role", ["attn_norm", "ffn_up", "fc1", "fc2"])
def test_shapes_with_another_number_of_axes(role: str, file_with: FileWith) -> None:
    name = f"blk.0.{role}.weight"
    for ne in ((N_EMBD * N_FF,), (32, 32, 2)):
        refused(file_with, f"shape of {name}", changes={name: (ne, T.F32)}, magic="PWRI")


@pytest.mark.parametrize("ne", [(N_EMBD,), (N_EMBD, 5, 5), (32, N_VOCAB)])
def test_shapes_of_token_embd(ne: tuple[int, ...], file_with: FileWith) -> None:
    name = "token_embd.weight"
    refused(file_with, f"shape of {name}", "wanted [64, ", changes={name: (ne, T.F32)})


def test_a_head_for_another_vocabulary(file_with: FileWith) -> None:
    changes: Tensors = {"output.weight": ((N_EMBD, N_VOCAB + 1), T.F32)}
    refused(file_with, "shape of output.weight: [64, 51]", "wanted [64, 50]", changes=changes)


@pytest.mark.parametrize("role", ["ffn_gate", "ffn_up", "ffn_down_t", "fc2"])
def test_one_tensor_of_another_n_ff(role: str, file_with: FileWith) -> None:
    ne = (SPARSE[role][0], 128)
    shape = f"blk.1.{role}.weight: [{ne[0]}, 128]"
    changes: Tensors = {f"blk.1.{role}.weight": (ne, T.F32)}
    refused(file_with, shape, f"wanted [{ne[0]}, 96]", changes=changes, magic="PWRI")


def test_a_layer_of_another_n_ff(file_with: FileWith) -> None:
    """A width that all of the layer's tensors agree on, and the hyperparameters do not."""
    wide: Tensors = {
        f"blk.1.{role}.weight": (tuple(128 if n == N_FF else n for n in ne), T.F32)
        for role, ne in SPARSE.items()
    }
    refused(file_with, "shape of blk.1.", "128]", "96]", changes=wide, magic="PWRI")


UNSUPPORTED = [
    ("GGUF", "blk.1.attn_q.weight", T.Q8_1),
    ("GGUF", "blk.1.ffn_up.weight", T.Q8_1),
    ("GGUF", "token_embd.weight", T.Q8_1),
    ("GGUF", "blk.0.attn_norm.weight", T.F16),
    ("PWRI", "blk.1.ffn_gate.weight", T.Q8_1),
    ("PWRI", "blk.1.ffn_down_t.weight", T.Q8_1),
    ("PWRI", "blk.1.fc1.weight", T.Q8_1),
]


@pytest.mark.parametrize(("magic", "name", "kind"), UNSUPPORTED)
def test_types_without_a_kernel(
    magic: str, name: str, kind: GGMLQuantizationType, file_with: FileWith
) -> None:
    entry = tensors(DENSE if magic == "GGUF" else SPARSE)[name]
    assert isinstance(entry, tuple)
    refused(
        file_with,
        f"type of {name}: {kind.name}",
        "runs here: ",
        changes={name: (entry[0], kind)},
        magic=magic,
    )


def test_names_of_the_file_cannot_reach_the_terminal_raw(file_with: FileWith) -> None:
    key = "llama.rope.scaling.type"
    refused(file_with, r"\x1b[31m\n", metadata={key: ("\x1b[31m\n", V.STRING)})


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


def test_a_missing_key_is_a_matter_of_the_metadata(file_with: FileWith) -> None:
    path = file_with(metadata={"llama.block_count": None})
    with pytest.raises(MetadataError):
        described(path)
