"""Directories that hold something else than a model's own weights: named for what they are, with what to do.

What counts are the files and the weights themselves, not what config.json says: a model that was given its
floats back may still name the method that once quantised it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.other_formats import DOWNLOAD, NO_DOWNLOAD, other_format
from hotcold.gguf_io.split import ggufs_below, ggufs_in

ADAPTER, PIPELINE, MISTRALS = "adapter_config.json", "model_index.json", "consolidated.safetensors"
N_HEAD = 64  # bytes that tell what a file is
ORIGINAL = "convert the original model, before it was quantised"
# how names of tensors end, and element types, that only a quantised model has; `quant_method` names it better
QUANTISED_NAMES = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or compressed-tensors",
    "_blocks": "MXFP4",
    ".W_q": "HQQ",
    ".codebooks": "AQLM",
}
QUANTISED_TYPES = {
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8",
    "F8_E8M0": "MXFP4",
    "I8": "8-bit",
    "U8": "4-bit or 8-bit",
}


def refuse_other_kinds(model_dir: Path, weights: Iterable[Path]) -> None:
    """Refuse a directory without weights of its own that is something known.

    Args:
        weights: the files that should have them.

    Raises:
        FileError: a diffusion model's directory; an adapter, GGUF files or Mistral's own layout, and no weights.
    """
    if (model_dir / PIPELINE).is_file():
        raise FileError(f"{model_dir}", "a diffusion model", "hotcold runs language models", "name another")
    if any(file.is_file() for file in weights):
        return
    if (model_dir / ADAPTER).is_file():
        base = read_json_object(model_dir / ADAPTER).get("base_model_name_or_path") or "its base model"
        bound = "it changes a model and is none"
        next_step = f"merge it into {base} first (peft: merge_and_unload), and convert that"
        raise FileError(f"{model_dir}", "an adapter", bound, next_step)
    if found := ggufs_in(model_dir) or ggufs_below(model_dir):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        files, bound = f"GGUF files: {found[0].relative_to(model_dir)}{more}", "they need no config.json"
        raise FileError(f"{model_dir}", files, bound, f"run or convert {found[0]} itself")
    if (model_dir / MISTRALS).is_file():
        bound = "its tensors have Mistral's own names"
        raise FileError(
            f"{model_dir}",
            f"only {MISTRALS}",
            bound,
            "fetch model.safetensors or its parts from the model's page",
        )


def refuse_stand_ins(files: Iterable[Path]) -> None:
    """Refuse files that stand in for what should have been fetched: Git LFS pointers, pages of a server.

    Raises:
        FileError: a file that exists is one, or is empty.
    """
    for file in files:
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            head = stream.read(N_HEAD)
        kind, next_step = other_format(head) or ("", "")
        if not head:
            raise FileError(str(file), "empty", "0 bytes", DOWNLOAD)
        if kind in NO_DOWNLOAD:
            raise FileError(str(file), kind, "not the file itself", next_step)


def refuse_quantised(model_dir: Path, tensors: Mapping[str, str]) -> None:
    """Refuse weights that are quantised in a way of their own.

    Args:
        tensors: element types as the files write them, by name.

    Raises:
        FileError: they are.
    """
    endings = (how for end, how in QUANTISED_NAMES.items() if any(name.endswith(end) for name in tensors))
    types = (how for kind, how in QUANTISED_TYPES.items() if kind in tensors.values())
    how = next(endings, None) or next(types, None)
    if how is None:
        return
    said = read_json_object(model_dir / "config.json").get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    how = method[:60] if isinstance(method, str) else how
    raise FileError(
        f"weights of {model_dir}", f"quantised by {how}", "F32, F16 or BF16 can be converted", ORIGINAL
    )
