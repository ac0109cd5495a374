"""Converts a Hugging Face directory, with or without predictors, to one GGUF file."""

from collections.abc import Iterator
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.activations import Counts, read_activations
from hotcold.gguf_io.convert_inputs import check_inputs, source_files
from hotcold.gguf_io.convert_summary import ConvertSummary, summary_of
from hotcold.gguf_io.hf_config import HFConfig
from hotcold.gguf_io.hf_tokenizer import tokenizer_metadata
from hotcold.gguf_io.hf_weights import open_weights
from hotcold.gguf_io.names import (
    ACTIVATION_COUNTS,
    FFN_ACTIVATION,
    PREDICTOR_NAMES,
    SPARSE_THRESHOLD,
    TensorRule,
)
from hotcold.gguf_io.outtypes import QUANTIZATION_VERSION, outtype_of, powerinfer_warnings
from hotcold.gguf_io.predictors import Predictors, open_predictors
from hotcold.gguf_io.requantise import requantise
from hotcold.gguf_io.source_tensor import SourceTensor
from hotcold.gguf_io.tensor_plan import output_tensor
from hotcold.gguf_io.writer import (
    MetadataValue,
    OutputTensor,
    Progress,
    array,
    check_destination,
    float32,
    string,
    uint32,
    write_gguf,
)


def convert(
    model: Path,
    predictors: Path | None,
    outfile: Path,
    outtype: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ConvertSummary:
    """Writes `model` to `outfile`, matrices in `outtype` (f32, f16, bf16, q8_0, q4_0).

    `model` is a directory as Hugging Face has it, or a GGUF file (see `requantise`). With `predictors` (see `open_predictors`) a ReLU model becomes a PowerInfer file: magic PWRI and the
    down projection transposed. Without them a ReLU model becomes a GGUF with the transposed projection
    and the key hotcold.ffn_activation, a SiLU model a GGUF as llama.cpp reads it. Counts in
    `model`/activation go into the metadata. `progress` hears tensor name, bytes done, bytes in all.

    Memory stays near the largest tensor of the source; the file appears whole or not at all.

    Raises:
        SettingError: unknown `outtype`; `outfile` is one of the inputs, or exists and `force` is false;
            predictors beside a GGUF file.
        FileError: inputs that are missing (all of them in one message), damaged, not supported, or of
            different models; writing failed.
        DoesNotFitError: the disk is full.
    """
    outtype_of(outtype)
    if model.is_file():
        if predictors is not None:
            bound = "a GGUF file keeps its own"
            raise SettingError("predictors", predictors, bound, "convert the model's directory with them")
        return requantise(model, outfile, outtype, force=force, progress=progress)
    return _convert_directory(model, predictors, outfile, outtype, force, progress)


def _convert_directory(
    model_dir: Path,
    predictors: Path | None,
    outfile: Path,
    outtype: str,
    force: bool,
    progress: Progress | None,
) -> ConvertSummary:
    wanted, file_type = outtype_of(outtype)
    config = check_inputs(model_dir, predictors)
    check_destination(outfile, source_files(model_dir, predictors, config), force)
    sparse_inputs = _open_predictors(model_dir, predictors, config)
    warnings = powerinfer_warnings(outtype, config.n_ff) if sparse_inputs else []
    tensors = list(_plan_tensors(model_dir, config, sparse_inputs, wanted, warnings))
    tokenizer, tokenizer_warnings = tokenizer_metadata(model_dir, config)
    warnings += tokenizer_warnings
    counts = read_activations(model_dir / "activation", config.n_layer, config.n_ff)
    metadata = (
        _model_metadata(model_dir, config, file_type)
        | tokenizer
        | _sparse_metadata(config, sparse_inputs, counts)
    )
    n_bytes = write_gguf(
        outfile,
        config.names.architecture,
        metadata,
        tensors,
        magic="PWRI" if sparse_inputs else "GGUF",
        force=force,
        progress=progress,
    )
    return summary_of(
        outfile,
        config.names.architecture,
        outtype,
        tensors,
        n_bytes,
        warnings,
        config.ffn_activation == "relu",
    )


def _open_predictors(model_dir: Path, predictors: Path | None, config: HFConfig) -> Predictors | None:
    if predictors is None:
        return None
    if config.ffn_activation != "relu":
        bound = "predictors belong to a ReLU model"
        raise FileError(
            f"{model_dir}: hidden_act", config.ffn_activation, bound, "convert it without predictors"
        )
    return open_predictors(predictors, config.n_layer, config.n_embd, config.n_ff)


def _plan_tensors(
    model_dir: Path,
    config: HFConfig,
    predictors: Predictors | None,
    wanted: GGMLQuantizationType,
    warnings: list[str],
) -> Iterator[OutputTensor]:
    weights = open_weights(model_dir)
    rules = list(_rules(config))
    _check_weights(model_dir, config, rules, weights)
    for rule in rules:
        n_head = config.n_head_kv if rule.layout == "permute_k" else config.n_head
        yield output_tensor(rule.name, weights[rule.source], rule.layout, n_head, wanted, warnings.append)
    for i, layer in enumerate(predictors.layers if predictors else ()):
        for name, source in zip(PREDICTOR_NAMES, layer, strict=True):
            yield output_tensor(name.format(i=i), source, "same", config.n_head, wanted, warnings.append)


def _rules(config: HFConfig) -> Iterator[TensorRule]:
    """Every tensor of the model, in the order of the file."""
    names = config.names
    yield from names.whole
    if not config.tied:
        yield names.output
    down = names.down_t if config.ffn_activation == "relu" else names.down
    for i in range(config.n_layer):
        for rule in (*names.layer, down):
            yield TensorRule(rule.name.format(i=i), rule.source.format(i=i), rule.shape, rule.layout)


def _check_weights(
    model_dir: Path, config: HFConfig, rules: list[TensorRule], weights: dict[str, SourceTensor]
) -> None:
    """Every tensor is there, none is left over, and each has the shape that config.json says."""
    needed = {rule.source for rule in rules}
    if missing := [rule.source for rule in rules if rule.source not in weights]:
        raise FileError(
            f"weights of {model_dir}", _listed("no", missing), "config.json needs them", "fetch them again"
        )
    unused = {config.names.output.source} if config.tied else set()
    left = sorted(n for n in set(weights) - needed - unused if not n.endswith(config.names.ignored))
    if left:
        bound = f"no part of a {config.names.model_type} model as config.json describes it"
        raise FileError(
            f"weights of {model_dir}", _listed("also", left), bound, "use a plain model of that kind"
        )
    for rule in rules:
        shape = tuple(config.size(symbol) for symbol in rule.shape)
        if weights[rule.source].shape != shape:
            found = f"shape {list(weights[rule.source].shape)}"
            raise FileError(
                f"{model_dir}: {rule.source}", found, f"config.json says {list(shape)}", "fetch both again"
            )


def _listed(word: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{word} {', '.join(names[:5])}{more}"


def _model_metadata(model_dir: Path, config: HFConfig, file_type: LlamaFileType) -> dict[str, MetadataValue]:
    arch = config.names.architecture
    metadata = {
        "general.name": string(model_dir.resolve().name or "model"),
        "general.file_type": uint32(int(file_type)),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        f"{arch}.vocab_size": uint32(config.n_vocab),
        f"{arch}.context_length": uint32(config.n_ctx_train),
        f"{arch}.embedding_length": uint32(config.n_embd),
        f"{arch}.block_count": uint32(config.n_layer),
        f"{arch}.feed_forward_length": uint32(config.n_ff),
        f"{arch}.attention.head_count": uint32(config.n_head),
        f"{arch}.attention.head_count_kv": uint32(config.n_head_kv),
        f"{arch}.attention.layer_norm_rms_epsilon": float32(config.norm_eps),
        f"{arch}.rope.dimension_count": uint32(config.head_dim),
        f"{arch}.rope.freq_base": float32(config.rope_freq_base),
    }
    if config.rope_linear_factor != 1.0:
        metadata[f"{arch}.rope.scaling.type"] = string("linear")
        metadata[f"{arch}.rope.scaling.factor"] = float32(config.rope_linear_factor)
    return metadata


def _sparse_metadata(
    config: HFConfig, predictors: Predictors | None, counts: tuple[Counts, ...] | None
) -> dict[str, MetadataValue]:
    metadata = {}
    if predictors is None and config.ffn_activation == "relu":
        metadata[FFN_ACTIVATION] = string(config.ffn_activation)
    if predictors is not None and predictors.threshold is not None:
        metadata[SPARSE_THRESHOLD] = float32(predictors.threshold)
    for i, layer in enumerate(counts or ()):
        metadata[ACTIVATION_COUNTS.format(i=i)] = array(layer.tolist(), GGUFValueType.UINT64)
    return metadata
