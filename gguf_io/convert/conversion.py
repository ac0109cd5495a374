"""Converts a Hugging Face directory, with or without predictors, to one GGUF file."""

from dataclasses import replace
from pathlib import Path

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.architectures import check_activation
from hotcold.gguf_io.convert.inputs import check_inputs, snapshot, source_files
from hotcold.gguf_io.convert.model_metadata import model_metadata, sparse_metadata
from hotcold.gguf_io.convert.model_tensors import plan_tensors
from hotcold.gguf_io.convert.options import ConvertOptions
from hotcold.gguf_io.convert.predictors import Predictors, open_predictors
from hotcold.gguf_io.convert.requantise import requantise
from hotcold.gguf_io.convert.summary import ConvertSummary, write
from hotcold.gguf_io.firing_counts import read_counts
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.tokenizer import tokenizer_metadata
from hotcold.gguf_io.outtypes import check_outtype, powerinfer_warnings
from hotcold.gguf_io.pretokenizers import check_pretokenizer
from hotcold.gguf_io.split import gguf_in, is_model_folder
from hotcold.gguf_io.writer import Contents, Magic, WriteProgress
from hotcold.whole_file import check_output


def convert(
    model: Path,
    predictors: Path | None,
    outfile: Path,
    outtype: str,
    *,
    force_pretokenizer: str | None = None,
    ffn_activation: str | None = None,
    force: bool = False,
    progress: WriteProgress | None = None,
    max_bytes: int | None = None,
    imatrix: Path | None = None,
    dry_run: bool = False,
    sparse_layout: bool = False,
) -> ConvertSummary:
    """Writes `model` to `outfile`, matrices in `outtype`, one of OUTTYPES.

    The keywords are those of `ConvertOptions`; the rest as `convert_with`.
    """
    options = ConvertOptions(
        outtype,
        force_pretokenizer=force_pretokenizer,
        ffn_activation=ffn_activation,
        sparse_layout=sparse_layout,
        max_bytes=max_bytes,
        imatrix=imatrix,
        force=force,
        dry_run=dry_run,
        progress=progress,
    )
    return convert_with(model, predictors, outfile, options)


def convert_with(
    model: Path, predictors: Path | None, outfile: Path, options: ConvertOptions
) -> ConvertSummary:
    """Writes `model` to `outfile`.

    `model` is a directory as Hugging Face has it, or a GGUF file (see `requantise`): itself, any part of one
    that is split, or a folder of those alone. With `predictors` (see `open_predictors`) a ReLU model becomes a
    PowerInfer file: magic PWRI and the down projection transposed. Without them a ReLU model becomes a GGUF with
    the transposed projection and the key hotcold.ffn_activation, a SiLU model a GGUF as llama.cpp reads it, or with
    `sparse_layout` one that is transposed too. Counts in `model`/activation, of neurons or of a mixture's
    experts, go into the metadata.

    Memory stays near the largest tensor of the source; the file appears whole or not at all.

    Raises:
        SettingError: unknown `outtype`; `outfile` is one of the inputs, or exists and `force` is false;
            predictors or a pre-tokenizer beside a GGUF file; an unknown pre-tokenizer; an activation that
            the architecture has not; a sparse layout of a model whose layers have no FFN of their own.
        FileError: inputs that are missing (all of them in one message), damaged, not supported, or of
            different models, an imatrix too; writing failed.
        DoesNotFitError: the disk is full.
    """
    check_outtype(options.outtype)
    if model.is_file() or is_model_folder(model):
        _check_kept(predictors, options.force_pretokenizer)
        return requantise(gguf_in(model) if model.is_dir() else model, outfile, options)
    if options.force_pretokenizer is not None:
        check_pretokenizer(options.force_pretokenizer)
    return _convert_directory(snapshot(model), predictors, outfile, options)


def _check_kept(predictors: Path | None, force_pretokenizer: str | None) -> None:
    """Refuse to change what a GGUF file keeps."""
    bound = "a GGUF file keeps its own"
    if predictors is not None:
        raise SettingError("predictors", predictors, bound, "convert the model's directory with them")
    if force_pretokenizer is not None:
        raise SettingError("force_pretokenizer", force_pretokenizer, bound, "give it to the other commands")


def _convert_directory(
    model_dir: Path, predictors: Path | None, outfile: Path, options: ConvertOptions
) -> ConvertSummary:
    model = check_inputs(model_dir, predictors)
    if options.ffn_activation is not None:
        check_activation(options.ffn_activation, model.architecture.name)
        model = replace(model, ffn_activation=options.ffn_activation)
    inputs = source_files(model_dir, predictors, model)
    check_output(outfile, inputs if options.imatrix is None else [*inputs, options.imatrix], options.force)
    sparse_inputs = _open_predictors(model_dir, predictors, model)
    warnings = _warnings(model, sparse_inputs, options.outtype)
    tensors, recipe = plan_tensors(model_dir, model, sparse_inputs, options, warnings.append)
    tokenizer, tokenizer_warnings = tokenizer_metadata(model_dir, model, options.force_pretokenizer)
    warnings += tokenizer_warnings
    counts = read_counts(model_dir / "activation", model.n_layer, model.n_units)
    metadata = model_metadata(model_dir, model, recipe.file_type) | tokenizer
    metadata |= sparse_metadata(model, sparse_inputs, counts)
    magic: Magic = "PWRI" if sparse_inputs else "GGUF"
    contents = Contents(model.architecture.name, metadata, tensors, magic)
    return write(outfile, contents, recipe, options, warnings, model.ffn_activation == "relu")


def _warnings(model: HFModel, predictors: Predictors | None, outtype: str) -> list[str]:
    """What a directory's own config says."""
    warnings = list(model.warnings)
    if model.rope is not None and model.rope.warning:
        warnings.append(model.rope.warning)
    if predictors:
        warnings += [*powerinfer_warnings(outtype, model.n_ff), *model.powerinfer_warnings]
    return warnings


def _open_predictors(model_dir: Path, predictors: Path | None, model: HFModel) -> Predictors | None:
    if predictors is None:
        return None
    if model.ffn_activation != "relu":
        bound = "predictors belong to a ReLU model"
        raise FileError(
            f"{model_dir}: activation", model.ffn_activation, bound, "convert it without predictors"
        )
    return open_predictors(predictors, model.n_layer, model.n_embd, model.n_ff)
