"""The metadata of a converted model, but for its tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFValueType, LlamaFileType

from hotcold.gguf_io.convert.predictors import Predictors
from hotcold.gguf_io.firing_counts import Counts
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.names import ACTIVATION_COUNTS, EXACT_LAYERS, FFN_ACTIVATION, SPARSE_THRESHOLD
from hotcold.gguf_io.outtypes import QUANTIZATION_VERSION
from hotcold.gguf_io.writer import MetadataValue, array, float32, string, uint32


def model_metadata(model_dir: Path, model: HFModel, file_type: LlamaFileType) -> dict[str, MetadataValue]:
    """Name, types and hyperparameters, by llama.cpp's keys."""
    arch = model.architecture.name
    metadata = {
        "general.name": string(_name(model_dir)),
        "general.file_type": uint32(int(file_type)),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        f"{arch}.vocab_size": uint32(model.n_vocab),
        f"{arch}.context_length": uint32(model.n_ctx_train),
        f"{arch}.embedding_length": uint32(model.n_embd),
        f"{arch}.block_count": uint32(model.n_layer),
        f"{arch}.feed_forward_length": uint32(model.n_ff),
        f"{arch}.attention.head_count": uint32(model.n_head),
        f"{arch}.attention.head_count_kv": uint32(model.n_head_kv),
        f"{arch}.{model.architecture.norm_eps}": float32(model.norm_eps),
    }
    metadata |= {f"{arch}.{key}": string(text) for key, text in model.architecture.metadata}
    metadata |= {f"{arch}.{key}": _typed(value) for key, value in model.keys.items()}
    return metadata | _rope_metadata(model)


def _typed(value: float | tuple[bool, ...]) -> MetadataValue:
    if isinstance(value, tuple):
        return array(value, GGUFValueType.BOOL)
    return uint32(value) if isinstance(value, int) else float32(value)


def _name(model_dir: Path) -> str:
    """The folder's name; in a hub's cache, models--OWNER--NAME/snapshots/HASH, the model's. UTF-8 in any case."""
    folder = model_dir.resolve()
    in_hub = folder.parent.name == "snapshots"
    name = folder.parent.parent.name.rpartition("--")[2] if in_hub else folder.name
    return name.encode(errors="replace").decode() or "model"


def _rope_metadata(model: HFModel) -> dict[str, MetadataValue]:
    if model.rope is None:
        return {}
    arch, rope = model.architecture.name, model.rope
    metadata = {
        f"{arch}.rope.dimension_count": uint32(model.n_rot or model.head_dim),
        f"{arch}.rope.freq_base": float32(rope.freq_base),
    }
    if model.n_head * model.head_dim != model.n_embd:
        metadata[f"{arch}.attention.key_length"] = uint32(model.head_dim)
        metadata[f"{arch}.attention.value_length"] = uint32(model.head_dim)
    key = f"{arch}.rope.scaling.{{}}".format
    if rope.kind != "none":
        metadata[key("type")] = string(rope.kind)
    if rope.factor != 1.0:
        metadata[key("factor")] = float32(rope.factor)
    if rope.n_ctx_orig:
        metadata[key("original_context_length")] = uint32(rope.n_ctx_orig)
    if rope.attn_factor != 1.0:
        metadata[key("attn_factor")] = float32(rope.attn_factor)
    return metadata | {key(f"yarn_beta_{name}"): float32(beta) for name, beta in rope.betas.items()}


def sparse_metadata(
    model: HFModel, predictors: Predictors | None, counts: Counts | None
) -> dict[str, MetadataValue]:
    """The activation of a ReLU model without predictors; their threshold, which layers have none; firing counts."""
    metadata = {}
    if predictors is None and model.ffn_activation == "relu":
        metadata[FFN_ACTIVATION] = string(model.ffn_activation)
    if predictors is not None and predictors.threshold is not None:
        metadata[SPARSE_THRESHOLD] = float32(predictors.threshold)
    if predictors is not None and predictors.exact_layers:
        metadata[EXACT_LAYERS] = exact_layers_metadata(predictors.exact_layers)
    return metadata | counts_metadata(counts or ())


def exact_layers_metadata(layers: Sequence[int]) -> MetadataValue:
    """The value of EXACT_LAYERS."""
    return array(list(layers), GGUFValueType.UINT32)


def counts_metadata(counts: Counts) -> dict[str, MetadataValue]:
    """Firing counts as a plan finds them in a file."""
    names = (ACTIVATION_COUNTS.format(i=i) for i in range(len(counts)))
    return {
        name: array(layer.tolist(), GGUFValueType.UINT64) for name, layer in zip(names, counts, strict=True)
    }
