"""Directories as people have them: what is a model is converted, what is none is named for what it is."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hf_models import save_safetensors
from numpy.typing import NDArray

from hotcold.errors import HotcoldError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

MakeModel = Callable[..., Any]  # the fixture hf_model
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4081004224\n"


def refusal(folder: Path, out: Path) -> str:
    with pytest.raises(HotcoldError) as caught:
        convert(folder, None, out, "f16")
    assert caught.value.exit_code == 3
    assert not out.exists()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def shares(weights: Mapping[str, NDArray[Any]], n: int = 2) -> list[dict[str, NDArray[Any]]]:
    """The weights in n parts, every nth in one."""
    names = list(weights)
    return [{name: weights[name] for name in names[i::n]} for i in range(n)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The file to write."""
    return tmp_path / "out.gguf"


@pytest.fixture
def plain(hf_model: MakeModel, tmp_path: Path) -> bytes:
    """The file of the model in one piece."""
    out = tmp_path / "plain.gguf"
    convert(hf_model("llama").folder, None, out, "f16")
    return out.read_bytes()


@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_parts_without_an_index(hf_model: MakeModel, out: Path, plain: bytes, n_parts: int) -> None:
    model = hf_model("llama")
    (model.folder / "model.safetensors").unlink()
    for i, part in enumerate(shares(model.weights, n_parts), 1):
        save_safetensors(model.folder / f"model-{i:05}-of-{n_parts:05}.safetensors", part)
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == plain


def test_a_part_that_is_missing_is_named(hf_model: MakeModel, out: Path) -> None:
    model = hf_model("llama")
    (model.folder / "model.safetensors").rename(model.folder / "model-00002-of-00003.safetensors")
    text = refusal(model.folder, out)
    assert "2 missing; model-00001-of-00003.safetensors" in text
    assert "model-00003-of-00003.safetensors" in text


@pytest.mark.parametrize("n_parts", [1, 2])
def test_parts_of_torch_without_an_index(
    hf_model: MakeModel, torch_program: Any, out: Path, plain: bytes, n_parts: int
) -> None:
    model = hf_model("llama")
    (model.folder / "model.safetensors").unlink()
    for i, part in enumerate(shares(model.weights, n_parts), 1):
        torch_program.save(model.folder / f"pytorch_model-{i:05}-of-{n_parts:05}.bin", part)
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == plain


@pytest.mark.parametrize("places", [("shards/a", "shards/b"), (".", "more"), ("a", "b/c", "d")])
def test_parts_in_folders_within(
    hf_model: MakeModel, out: Path, plain: bytes, places: tuple[str, ...]
) -> None:
    model, homes = hf_model("llama"), dict[str, str]()
    (model.folder / "model.safetensors").unlink()
    for place, part in zip(places, shares(model.weights, len(places)), strict=True):
        (model.folder / place).mkdir(parents=True, exist_ok=True)
        save_safetensors(model.folder / place / "part.safetensors", part)
        homes |= dict.fromkeys(part, f"{place}/part.safetensors".removeprefix("./"))
    (model.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == plain


@pytest.mark.parametrize("with_ref", [False, True])
def test_a_hubs_cache(hf_model: MakeModel, tmp_path: Path, out: Path, with_ref: bool) -> None:
    """models--OWNER--NAME with links to blobs, whose names have no ending."""
    model, cache = hf_model("llama"), tmp_path / "models--owner--some-llama"
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(model.folder.iterdir())):
        file.rename(cache / "blobs" / f"{i:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    if with_ref:
        (cache / "snapshots" / "another").mkdir()
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0123abc\n")
    for folder in (cache, snapshot):
        convert(folder, None, out, "f16", force=True)
        with open_gguf(out) as file:
            assert file.get_str("general.name") == "some-llama"


QUANTISED: list[tuple[str, dict[str, tuple[str, int]], dict[str, Any], str]] = [
    ("gptq", {"qweight": ("I32", 4), "qzeros": ("I32", 4), "scales": ("F16", 2)}, {"bits": 4}, "gptq"),
    ("awq", {"qweight": ("I32", 4), "qzeros": ("I32", 4), "scales": ("F16", 2)}, {"bits": 4}, "awq"),
    (
        "bitsandbytes",
        {"weight": ("U8", 1), "weight.absmax": ("F32", 4)},
        {"load_in_4bit": True},
        "bitsandbytes",
    ),
    ("fp8", {"weight": ("F8_E4M3", 1), "weight_scale_inv": ("F32", 4)}, {}, "fp8"),
    ("", {"weight": ("F8_E5M2", 1)}, {}, "FP8"),
    ("", {"weight": ("I8", 1), "SCB": ("F32", 4)}, {}, "bitsandbytes"),
    ("", {"weight": ("U8", 1), "quant_map": ("F32", 4)}, {}, "bitsandbytes"),
    ("", {"qweight": ("I32", 4), "scales": ("F16", 2)}, {}, "GPTQ or AWQ"),
    ("", {"weight": ("F8_E4M3", 1), "weight_scale": ("F32", 4)}, {}, "FP8 or compressed-tensors"),
    ("", {"W_q": ("U8", 1), "scale": ("F16", 2)}, {}, "HQQ"),
    ("aqlm", {"codes": ("I8", 1), "codebooks": ("F16", 2)}, {}, "aqlm"),
    ("mxfp4", {"proj_blocks": ("U8", 1), "proj_scales": ("U8", 1)}, {}, "mxfp4"),
    (
        "compressed-tensors",
        {"weight_packed": ("I32", 4), "weight_scale": ("BF16", 2)},
        {},
        "compressed-tensors",
    ),
]


@pytest.mark.parametrize(("method", "tensors", "more", "text"), QUANTISED)
def test_quantised_weights_are_named(
    hf_model: MakeModel,
    out: Path,
    method: str,
    tensors: dict[str, tuple[str, int]],
    more: dict[str, Any],
    text: str,
) -> None:
    """One matrix in the method's form is enough."""
    model = hf_model("llama")
    if method:
        model.rewrite(quantization_config={"quant_method": method, **more})
    header: dict[str, Any] = {}
    content = b""
    for name, (dtype, n_bytes) in tensors.items():
        places = [len(content), len(content) + 8 * n_bytes]
        entry = {"dtype": dtype, "shape": [8], "data_offsets": places}
        header[f"model.layers.0.mlp.up_proj.{name}"] = entry
        content += bytes(8 * n_bytes)
    head = json.dumps(header).encode()
    (model.folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + content)
    got = refusal(model.folder, out)
    assert f"quantised by {text} (F32, F16 or BF16 can be converted)" in got
    assert "convert the original model" in got


def test_floats_that_were_once_quantised_are_converted(hf_model: MakeModel, out: Path, plain: bytes) -> None:
    model = hf_model("llama")
    model.rewrite(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == plain


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {
                "adapter_config.json": b'{"base_model_name_or_path": "owner/base"}',
                "adapter_model.safetensors": b"",
            },
            ("an adapter", "merge it into owner/base"),
        ),
        ({"adapter_config.json": b'{"base_model_name_or_path": ""}'}, ("an adapter", "its base model")),
        ({"adapter_config.json": b"{}", "config.json": b"{}"}, ("an adapter", "its base model")),
        ({"model_index.json": b'{"_class_name": "X"}', "unet/config.json": b"{}"}, ("a diffusion model",)),
        (
            {"model_index.json": b"{}", "config.json": b"{}", "model.safetensors": b"x"},
            ("a diffusion model",),
        ),
        ({"model_index.json": b"", "transformer/a.safetensors": b"x"}, ("a diffusion model", "name another")),
        (
            {"b.gguf": b"GGUF", "a.gguf": b"GGUF", "config.json": b"{}"},
            ("GGUF files: a.gguf and 1 more", "a.gguf itself"),
        ),
        (
            {"b.gguf": b"GGUF", "a.gguf": b"GGUF", "README.md": b"#"},
            ("a.gguf, b.gguf", "name the file itself"),
        ),
        (
            {"b.GGUF": b"GGUF", "c.Gguf": b"GGUF", "config.json": b"{}"},
            ("GGUF files: b.GGUF and 1 more", "b.GGUF itself"),
        ),
        (
            {f"m-0000{i}-of-00002.gguf": b"GGUF" for i in (1, 2)} | {"config.json": b"{}"},
            ("GGUF files: m-00001-of-00002.gguf and 1 more", "m-00001-of-00002.gguf itself"),
        ),
        (
            {"Q8_0/m.gguf": b"GGUF", "Q4_0/m.gguf": b"GGUF", "README.md": b"#"},
            ("GGUF files: Q4_0/m.gguf and 1 more", "Q4_0/m.gguf itself"),
        ),
        ({"consolidated.safetensors": b"", "params.json": b"{}"}, ("Mistral's own names",)),
    ],
)
def test_what_is_no_model_of_this_kind(
    tmp_path: Path, out: Path, files: dict[str, bytes], words: tuple[str, ...]
) -> None:
    folder = tmp_path / "folder"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    text = refusal(folder, out)
    for word in words:
        assert word in text


@pytest.mark.parametrize("beside", ["consolidated.safetensors", "adapter_config.json", "old.gguf"])
def test_what_lies_beside_a_model_does_no_harm(
    hf_model: MakeModel, out: Path, plain: bytes, beside: str
) -> None:
    model = hf_model("llama")
    (model.folder / beside).write_bytes(b"not looked at")
    convert(model.folder, None, out, "f16")
    assert out.read_bytes() == plain


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, ("a Git LFS pointer", "git lfs pull")),
        (b"\n<!DOCTYPE html>\n<html>Sign in</html>", ("an HTML page", "download it again")),
        (b"", ("empty", "download it again")),
    ],
    ids=["pointer", "page", "empty"],
)
def test_what_stands_in_for_a_file_is_named(
    hf_model: MakeModel, out: Path, name: str, content: bytes, words: tuple[str, ...]
) -> None:
    model = hf_model("llama")
    (model.folder / name).write_bytes(content)
    text = refusal(model.folder, out)
    assert name in text
    for word in words:
        assert word in text
