"""Files of each architecture with a tensor or key that is missing or wrong: named, and refused."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.model.load import load_model
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile, TensorInfo, open_gguf

T = GGMLQuantizationType
OPTIONAL = ("output.weight",)  # without it the head is token_embd
Change = Callable[[TensorInfo], TensorInfo]


@pytest.fixture(
    params=[
        "powerinfer/bamboo-f16.powerinfer",
        "powerinfer/falcon-f16.powerinfer",
        "powerinfer/opt-f16.powerinfer",
        "llamacpp/falcon.f16",
        "llamacpp/falcon.norm2.q4_0",
        "llamacpp/qwen2.f16",
        "llamacpp/qwen3.f16",
        "llamacpp/phi3.longrope.q8_0",
        "llamacpp/gemma3.q4_0",
        "llamacpp/granite.q4_0",
        "llamacpp/llama.q4_k",
    ]
)
def file(request: pytest.FixtureRequest, data: Path) -> Iterator[GGUFFile]:
    with open_gguf(data / f"{request.param}.gguf") as opened:
        yield opened


def refused(file: GGUFFile, tensors: dict[str, TensorInfo], *parts: str) -> None:
    """The file with this tensor table is refused in one line that holds all parts."""
    whole, file.tensors = file.tensors, tensors
    try:
        with pytest.raises(FileError) as caught:
            load_model(file)
    finally:
        file.tensors = whole
    text = str(caught.value)
    assert "\n" not in text
    for part in (file.path.name, *parts):
        assert part in text, text


def changed(file: GGUFFile, name: str, change: Change) -> dict[str, TensorInfo]:
    return file.tensors | {name: change(file.tensors[name])}


def test_the_files_without_changes_are_good(file: GGUFFile) -> None:
    assert load_model(file).warnings == ()


def test_a_missing_tensor(file: GGUFFile) -> None:
    for name in file.tensors:
        if name not in OPTIONAL:
            rest = {other: info for other, info in file.tensors.items() if other != name}
            refused(file, rest, name, "missing")


def test_a_missing_head_is_tied(file: GGUFFile) -> None:
    file.tensors = {name: info for name, info in file.tensors.items() if name not in OPTIONAL}
    model = load_model(file)
    assert model.output is model.token_embd


# A shape may be wrong in the eyes of the tensors that have to match it: an embedding has any number of
# tokens, a predictor any rank, a table of positions any number.
def longer_rows(info: TensorInfo) -> TensorInfo:
    return dataclasses.replace(info, ne=(info.ne[0] + 32, *info.ne[1:]))


def one_more_dimension(info: TensorInfo) -> TensorInfo:
    return dataclasses.replace(info, ne=(*info.ne, 2))


def one_row_less(info: TensorInfo) -> TensorInfo:
    return dataclasses.replace(info, ne=(info.ne[0], info.ne[1] - 1))


@pytest.mark.parametrize("change", [longer_rows, one_more_dimension])
def test_a_wrong_shape(change: Change, file: GGUFFile) -> None:
    for name in file.tensors:
        refused(file, changed(file, name, change), name, "shape", "wanted [")


def test_a_wrong_number_of_rows(file: GGUFFile) -> None:
    free = ("token_embd.weight", "position_embd.weight")
    for name, info in file.tensors.items():
        if len(info.ne) == 2 and name not in free and ".fc1." not in name:
            refused(file, changed(file, name, one_row_less), name, "shape", "wanted [")


def test_a_predictor_of_another_rank(file: GGUFFile) -> None:
    for name in file.tensors:
        if ".fc1." in name:
            parts = (name.replace("fc1", "fc2"), "shape", "wanted [31, 1024]")
            refused(file, changed(file, name, one_row_less), *parts)


def test_a_type_without_a_kernel(file: GGUFFile) -> None:
    for name, info in file.tensors.items():
        kind = T.Q8_1 if len(info.ne) == 2 else T.F16
        change = dataclasses.replace(info, type=kind)
        refused(file, file.tensors | {name: change}, name, "type", kind.name, "runs here: ")


def test_a_bias_that_nothing_adds(file: GGUFFile) -> None:
    extra = dataclasses.replace(file.tensors["output_norm.weight"], name="output.bias")
    refused(file, file.tensors | {"output.bias": extra}, "output.bias", "no such bias")


def test_too_few_positions(data: Path) -> None:
    with open_gguf(data / "powerinfer/opt-f16.powerinfer.gguf") as opt:
        info = opt.tensors["position_embd.weight"]
        for n, n_ctx in ((2, 0), (3, 1), (1000, 998), (3000, 2050)):
            table = opt.tensors | {info.name: dataclasses.replace(info, ne=(64, n))}
            if n_ctx:
                opt.tensors = table
                assert load_model(opt).n_ctx_train == n_ctx
            else:
                refused(opt, table, info.name, "[64, 2]", "wanted [64, 3]")


@pytest.mark.parametrize(
    ("name", "key", "value", "parts"),
    [
        ("llamacpp/falcon.f16", "falcon.attention.layer_norm_epsilon", None, ("missing",)),
        ("llamacpp/falcon.f16", "falcon.attention.layer_norm_epsilon", 0.0, ("0", "above 0")),
        ("llamacpp/falcon.f16", "falcon.attention.layer_norm_epsilon", np.inf, ("inf", "finite")),
        ("llamacpp/falcon.f16", "falcon.attention.head_count_kv", 3, ("8", "a multiple of")),
        ("llamacpp/falcon.f16", "hotcold.ffn_activation", "silu", ("silu", "known: gelu, relu")),
        ("powerinfer/bamboo-f16.powerinfer", "bamboo.attention.layer_norm_rms_epsilon", None, ("missing",)),
        ("powerinfer/opt-f16.powerinfer", "opt.attention.layer_norm_epsilon", -1.0, ("-1", "above 0")),
        ("powerinfer/opt-f16.powerinfer", "opt.feed_forward_length", None, ("missing",)),
        ("llamacpp/qwen2.f16", "qwen2.attention.layer_norm_rms_epsilon", None, ("missing",)),
        ("llamacpp/qwen2.f16", "qwen2.attention.head_count_kv", 3, ("4", "a multiple of")),
        ("llamacpp/qwen2.f16", "qwen2.rope.freq_base", 0.0, ("0", "above 0")),
        ("llamacpp/qwen2.f16", "hotcold.ffn_activation", "gelu", ("gelu", "known: relu, silu")),
        ("llamacpp/gemma3.q4_0", "gemma3.attention.sliding_window", 0, ("0", "1 to")),
        ("llamacpp/gemma3.q4_0", "gemma3.attention.sliding_window_pattern", 0, ("0", "1 or more")),
        (
            "llamacpp/gemma3.q4_0",
            "gemma3.attention.sliding_window_pattern",
            np.array([True, False]),
            ("2 values", "6 layers"),
        ),
        ("llamacpp/gemma3.q4_0", "gemma3.attention.sliding_window_pattern", "all", ("all", "truth value")),
        ("llamacpp/gemma3.q4_0", "gemma3.rope.freq_base_swa", -1.0, ("-1", "above 0")),
        ("llamacpp/gemma3.q4_0", "gemma3.final_logit_softcapping", 30.0, ("30", "soft caps")),
        ("llamacpp/granite.q4_0", "granite.logit_scale", None, ("missing",)),
        ("llamacpp/granite.q4_0", "granite.residual_scale", np.inf, ("inf", "finite")),
    ],
)
def test_a_key(name: str, key: str, value: Any, parts: tuple[str, ...], data: Path) -> None:
    with open_gguf(data / f"{name}.gguf") as opened:
        metadata = {k: v for k, v in opened.metadata.items() if k != key}
        opened.metadata = metadata if value is None else metadata | {key: value}
        with pytest.raises(FileError) as caught:
            load_model(opened)
    for part in (key, *parts):
        assert part in str(caught.value)


def test_an_ordinary_opt_file_needs_an_epsilon(data: Path) -> None:
    """Only PowerInfer's format means 0 by leaving it out."""
    with open_gguf(data / "powerinfer/opt-f16.powerinfer.gguf") as opt:
        opt.magic = "GGUF"
        assert not opt.is_powerinfer
        with pytest.raises(FileError, match="opt.attention.layer_norm_epsilon"):
            load_model(opt)


UNREAD = ("vocab_size", "tensor_data_layout", "phi3.attention.sliding_window")
REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
)


def test_a_key_of_the_wrong_type(file: GGUFFile) -> None:
    architecture = str(file.metadata["general.architecture"])
    whole = dict(file.metadata)
    keys = [key for key in whole if key.startswith(f"{architecture}.") and not key.endswith(UNREAD)]
    assert len(keys) > 5
    for key in keys:
        file.metadata = whole | {key: "seven"}
        with pytest.raises(FileError) as caught:
            load_model(file)
        assert key in str(caught.value)


def test_a_missing_key(file: GGUFFile) -> None:
    architecture = str(file.metadata["general.architecture"])
    whole = dict(file.metadata)
    for name in REQUIRED:
        key = f"{architecture}.{name}"
        file.metadata = {other: value for other, value in whole.items() if other != key}
        with pytest.raises(FileError, match="missing") as caught:
            load_model(file)
        assert key in str(caught.value)
