"""Metadata that describes no model: refused with the key, its value and the bound."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType
from model_files import (
    METADATA,
    N_FF,
    FileWith,
    Tensors,
    described,
    refused,
)

from hotcold.engine.model.load import load_model
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.errors import MetadataError

V = GGUFValueType


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
    good: Tensors = dict.fromkeys(
        ("rope_factors_long.weight", "rope_factors_short.weight"), np.ones(8, np.float32)
    )
    factors = np.array([1, 1, 2, 4, 4, -2, 8, 8], np.float32)
    refused(file_with, name, "-2.0", "above 0", changes=good | {name: factors})
    refused(file_with, name, "[7]", "[8]", changes=good | {name: np.ones(7, np.float32)})
    other = next(one for one in good if one != name)
    refused(file_with, name, "missing", "come together", changes={other: good[other]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39])
def test_a_threshold_that_is_no_number(value: float, file_with: FileWith) -> None:
    key = "powerinfer.sparse_threshold"
    refused(file_with, key, str(value), "finite", metadata={key: (value, V.FLOAT64)}, magic="PWRI")


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


def test_names_of_the_file_cannot_reach_the_terminal_raw(file_with: FileWith) -> None:
    key = "llama.rope.scaling.type"
    refused(file_with, r"\x1b[31m\n", metadata={key: ("\x1b[31m\n", V.STRING)})


def test_a_missing_key_is_a_matter_of_the_metadata(file_with: FileWith) -> None:
    path = file_with(metadata={"llama.block_count": None})
    with pytest.raises(MetadataError):
        described(path)
