"""Tensors that are no model: missing, of another shape or type, or with biases that nothing adds."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from model_files import (
    DENSE,
    N_EMBD,
    N_FF,
    N_VOCAB,
    RANK,
    SPARSE,
    FileWith,
    Tensors,
    described,
    refused,
    tensors,
)

T = GGMLQuantizationType


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
