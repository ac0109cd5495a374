"""Converts a Hugging Face directory, with or without predictors, to one GGUF file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.activations import Counts, read_activations
from hotcold.gguf_io.hf_config import HFConfig, read_config
from hotcold.gguf_io.hf_tokenizer import tokenizer_metadata
from hotcold.gguf_io.hf_weights import open_weights, weight_files
from hotcold.gguf_io.names import (
    ACTIVATION_COUNTS,
    FFN_ACTIVATION,
    PREDICTOR_NAMES,
    SPARSE_THRESHOLD,
    TensorRule,
)
from hotcold.gguf_io.predictors import Predictors, open_predictors, predictor_files
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

OUTTYPES: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
QUANTIZATION_VERSION = 2
POWERINFER_OUTTYPES = ("f16", "q4_0")


@dataclass(frozen=True)
class ConvertSummary:
    """What was written.

    Attributes:
        n_bytes: size of the file.
        kept_f16: matrices whose rows the wanted type does not divide, so they are F16.
        warnings: one line each.
        sparse: the file can run sparse: a ReLU model.
    """

    outfile: Path
    architecture: str
    n_tensors: int
    n_bytes: int
    kept_f16: tuple[str, ...]
    warnings: tuple[str, ...]
    sparse: bool


def convert(
    model_dir: Path,
    predictors: Path | None,
    outfile: Path,
    outtype: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ConvertSummary:
    """Writes the model in `model_dir` to `outfile`, matrices in `outtype` (f32, f16, bf16, q8_0, q4_0).

    With `predictors` (see `open_predictors`) a ReLU model becomes a PowerInfer file: magic PWRI and the
    down projection transposed. Without them a ReLU model becomes a GGUF with the transposed projection
    and the key hotcold.ffn_activation, a SiLU model a GGUF as llama.cpp reads it. Counts in
    `model_dir`/activation go into the metadata. `progress` hears tensor name, bytes done, bytes in all.

    Memory stays near the largest tensor of the source; the file appears whole or not at all.

    Raises:
        SettingError: unknown `outtype`; `outfile` is one of the inputs, or exists and `force` is false.
        FileError: inputs that are missing (all of them in one message), damaged, not supported, or of
            different models; writing failed.
        DoesNotFitError: the disk is full.
    """
    if outtype not in OUTTYPES:
        raise SettingError("outtype", outtype, f"one of {', '.join(OUTTYPES)}", "choose one of them")
    config = _check_inputs(model_dir, predictors)
    check_destination(outfile, _source_files(model_dir, predictors, config), force)
    sparse_inputs = _open_predictors(model_dir, predictors, config)
    counts = read_activations(model_dir / "activation", config.n_layer, config.n_ff)
    tokenizer, tokenizer_warnings = tokenizer_metadata(model_dir, config)
    warnings = list(tokenizer_warnings) + _type_warnings(outtype, sparse_inputs)
    tensors = list(_plan_tensors(model_dir, config, sparse_inputs, OUTTYPES[outtype][0], warnings))
    metadata = (
        _model_metadata(model_dir, config, outtype)
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
    return ConvertSummary(
        outfile=outfile,
        architecture=config.names.architecture,
        n_tensors=len(tensors),
        n_bytes=n_bytes,
        kept_f16=_kept_f16(tensors, outtype),
        warnings=tuple(dict.fromkeys(warnings)),
        sparse=config.ffn_activation == "relu",
    )


def _check_inputs(model_dir: Path, predictors: Path | None) -> HFConfig:
    """The configuration, once every input is known to be there."""
    missing = list(_missing_in_model(model_dir))
    config = read_config(model_dir / "config.json") if (model_dir / "config.json").is_file() else None
    if predictors is not None and not predictors.exists():
        missing.append(f"{predictors} (the predictors: check the path, or leave them out)")
    elif predictors is not None and config is not None:
        missing += [
            f"{file} (a layer's predictor: fetch it, or leave the predictors out)"
            for file in predictor_files(predictors, config.n_layer)
            if not file.is_file()
        ]
    if missing or config is None:
        raise FileError(f"cannot convert {model_dir}", f"{len(missing)} missing", "", "; ".join(missing))
    return config


def _missing_in_model(model_dir: Path) -> Iterator[str]:
    if not model_dir.is_dir():
        yield f"{model_dir} (give the folder of a Hugging Face model)"
        return
    if not (model_dir / "config.json").is_file():
        yield "config.json (give the folder of a Hugging Face model, or fetch the file from there)"
    for file in weight_files(model_dir):
        if not file.is_file():
            yield f"{file.name} (fetch it from the model's page{_other_weights(model_dir)})"
    if not (model_dir / "tokenizer.model").is_file():
        yield "tokenizer.model (fetch it from the model's page; tokenizer.json alone is not supported)"


def _other_weights(model_dir: Path) -> str:
    if next(model_dir.glob("pytorch_model*.bin"), None) is None:
        return ""
    return "; pytorch_model.bin is not read, save the model as safetensors"


def _source_files(model_dir: Path, predictors: Path | None, config: HFConfig) -> list[Path]:
    names = (
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
        "generation_config.json",
    )
    files = [model_dir / name for name in names] + [
        model_dir / "model.safetensors.index.json",
        *weight_files(model_dir),
    ]
    files += [
        model_dir / "activation" / f"activation_{i}{end}"
        for i in range(config.n_layer)
        for end in (".npy", ".pt")
    ]
    if predictors is not None:
        files += [*predictor_files(predictors, config.n_layer), predictors / "config.json"]
    return files


def _open_predictors(model_dir: Path, predictors: Path | None, config: HFConfig) -> Predictors | None:
    if predictors is None:
        return None
    if config.ffn_activation != "relu":
        bound = "predictors belong to a ReLU model"
        raise FileError(
            f"{model_dir}: hidden_act", config.ffn_activation, bound, "convert it without predictors"
        )
    return open_predictors(predictors, config.n_layer, config.n_embd, config.n_ff)


def _type_warnings(outtype: str, predictors: Predictors | None) -> list[str]:
    """PowerInfer's down product reads every type but Q4_0 as half floats."""
    if predictors is None or outtype in POWERINFER_OUTTYPES:
        return []
    return [f"PowerInfer itself computes NaN from {outtype.upper()} files, hotcold does not; use f16 or q4_0"]


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


def _model_metadata(model_dir: Path, config: HFConfig, outtype: str) -> dict[str, MetadataValue]:
    arch = config.names.architecture
    metadata = {
        "general.name": string(model_dir.resolve().name or "model"),
        "general.file_type": uint32(int(OUTTYPES[outtype][1])),
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


def _kept_f16(tensors: list[OutputTensor], outtype: str) -> tuple[str, ...]:
    if OUTTYPES[outtype][0] is GGMLQuantizationType.F16:
        return ()
    return tuple(tensor.name for tensor in tensors if tensor.type is GGMLQuantizationType.F16)
