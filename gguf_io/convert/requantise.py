"""Writes the matrices of a GGUF file in another type, as PowerInfer's `quantize` does.

Matrices are the two-dimensional tensors whose name ends in `weight`, and those of a mixture's experts, which are
stacked in one tensor of three dimensions; all others are copied. Metadata, magic and order stay as they are, but for
the keys that name the type, and what thresholds cost with other weights. Where the FFN's function is said to be
ReLU, or the sparse layout is asked for, the down projection gets a row a neuron, as in a directory's
conversion, so that sparse FFNs can run.
"""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import blocks
from hotcold.gguf_io.architectures import check_activation
from hotcold.gguf_io.convert.copied import architecture_of, metadata_of, slabs
from hotcold.gguf_io.convert.importance import read_importance
from hotcold.gguf_io.convert.old_experts import experts_of
from hotcold.gguf_io.convert.options import ConvertOptions
from hotcold.gguf_io.convert.summary import ConvertSummary, write
from hotcold.gguf_io.convert.tensor_plan import SLAB_ELEMENTS, check_biases, encode, no_down, stacked_tensor
from hotcold.gguf_io.down_names import by_neuron
from hotcold.gguf_io.names import CALIBRATED, FFN_ACTIVATION, HEAD_PROFILE
from hotcold.gguf_io.outtypes import (
    HEAD,
    QUANTIZATION_VERSION,
    TIED_HEAD,
    Recipe,
    check_outtype,
    check_rows,
    is_blocked,
    output_type,
    powerinfer_warnings,
    recipe_of,
)
from hotcold.gguf_io.reader import GGUFFile, open_gguf
from hotcold.gguf_io.tensors import TensorInfo
from hotcold.gguf_io.writer import Contents, MetadataValue, OutputTensor, string, uint32
from hotcold.whole_file import check_output

T = GGMLQuantizationType
DOWN = re.compile(r"blk\.\d+\.ffn_down\.(weight|bias)")
DOWN_OF_EXPERTS = re.compile(r"blk\.\d+\.ffn_down_exps\.weight")
# whose rounding is so fine that rounding across it adds little
ROUNDED_ALIKE = (T.F32, T.F16, T.BF16, T.Q8_0)
BY_NEURON = ("ffn_down_t.weight", "ffn_down_exps_t.weight")


def requantise(source: Path, outfile: Path, options: ConvertOptions) -> ConvertSummary:
    """Writes the model file `source` to `outfile` with its matrices in `outtype`, and its activation if given.

    Of a model that is split, `source` is any part; all parts are read. Each tensor's rows are read, rounded and
    written slab by slab. The file appears whole or not at all.

    Raises:
        SettingError: unknown `outtype`; `outfile` is `source`, or exists and `force` is false; an activation
            that the architecture has not; rows that no block of `outtype` divides; a sparse layout of a model
            whose layers have no FFN of their own.
        FileError: `source` is damaged or no model, has a matrix of a type that cannot be read or not laid out
            as asked, or changes while it is read; writing failed.
        DoesNotFitError: the disk is full.
    """
    check_outtype(options.outtype)
    check_output(outfile, [source] if options.imatrix is None else [source, options.imatrix], options.force)
    with open_gguf(source) as file:
        check_output(outfile, [part.path for part in file.parts], options.force)
        architecture = architecture_of(file)
        warnings = [*file.warnings, *_powerinfer_warnings(file, architecture, options.outtype)]
        tensors, recipe = _tensors(file, architecture, options, warnings.append)
        metadata = _metadata(file, architecture, recipe, options.ffn_activation, warnings.append)
        metadata = _without_calibration(file, tensors, metadata, warnings.append)
        said = options.ffn_activation or file.metadata.get(FFN_ACTIVATION)
        turned = any(tensor.name.endswith(BY_NEURON) for tensor in tensors)
        sparse = file.is_powerinfer or (said == "relu" and turned)
        contents = Contents(architecture, metadata, tensors, "PWRI" if file.is_powerinfer else "GGUF")
        return write(outfile, contents, recipe, options, warnings, sparse)


def _tensors(
    file: GGUFFile, architecture: str, options: ConvertOptions, warn: Callable[[str], None]
) -> tuple[list[OutputTensor], Recipe]:
    """The tensors of the new file, and the recipe that chose their types."""
    tied = HEAD not in file.tensors and not file.is_powerinfer
    turned, stacks = _to_turn(file, options, warn), experts_of(file)
    stacked = {info.name: name for name, some in stacks.items() for info in some}
    shapes = {
        turned.get(name, name): _turned_shape(info) if name in turned else info.shape
        for name, info in file.tensors.items()
        if name not in stacked
    }
    shapes |= {name: (len(some), *some[0].shape) for name, some in stacks.items()} | _profile_shape(file)
    recipe = recipe_of(options.outtype, architecture, shapes, tied=tied, requantised=True)
    importance = read_importance(options.imatrix, shapes)
    tensors, rounded_again = [], set[str]()
    for info in file.tensors.values():
        name = turned.get(info.name) or stacked.get(info.name, info.name)
        is_matrix = name != info.name or _is_matrix(info)
        kind, own = output_type(name, shapes[name], recipe) if is_matrix else info.type, importance.get(name)
        if name in turned.values():
            tensors.append(_turned_tensor(file, info, name, kind, warn))
        elif name not in stacks:
            tensors.append(_output_tensor(file, info, kind, own, warn))
        elif info is stacks[name][0]:
            rows = [None] * len(stacks[name]) if own is None else np.split(own, len(own))
            parts = zip(stacks[name], rows, strict=True)
            tensors.append(
                stacked_tensor(name, [_output_tensor(file, each, kind, row, warn) for each, row in parts])
            )
        if is_blocked(info.type) and (info.name in turned or kind is not info.type):
            rounded_again.add(info.type.name)
    check_rows(tensors, recipe)
    if rounded_again:
        kinds = ", ".join(sorted(rounded_again))
        warn(f"{file.path.name} is in {kinds} already: start from F16 or F32 for the best result")
    return tensors, recipe


def _to_turn(file: GGUFFile, options: ConvertOptions, warn: Callable[[str], None]) -> dict[str, str]:
    """Down projections with a row an output, their biases, and the names of both with a row a neuron.

    All of them or none; none where nobody asks for it. Those of experts only for the sparse layout, since llama.cpp
    reads no other.
    """
    if not options.sparse_layout and options.ffn_activation != "relu":
        return {}
    found = [info for info in file.tensors.values() if DOWN.fullmatch(info.name)]
    if options.sparse_layout:
        check_biases(file.path, file.tensors)
        found += [info for info in file.tensors.values() if _has_a_row_an_output(file, info)]
        _check_sources(file, found)
    kinds = sorted({info.type.name for info in found if not _is_readable(info)})
    if kinds:
        warn(f"ffn_down stays as it is, since {', '.join(kinds)} cannot be read: its FFN runs dense")
        return {}
    powerinfers = options.sparse_layout and any(map(DOWN_OF_EXPERTS.fullmatch, file.tensors))
    if not found and not powerinfers and not any(name.endswith(BY_NEURON) for name in file.tensors):
        if options.sparse_layout:
            raise no_down(file.path)
        warn(
            "the file has no ffn_down of its own in a layer, such as a mixture of experts: its FFN runs dense"
        )
    return {info.name: by_neuron(info.name) for info in found}


def _has_a_row_an_output(file: GGUFFile, info: TensorInfo) -> bool:
    """Whether it is the down projection of experts, and not the other way round as PowerInfer has it."""
    if not DOWN_OF_EXPERTS.fullmatch(info.name):
        return False
    up = file.tensors.get(info.name.replace("down", "up"))
    return up is None or up.ne != info.ne or up.ne[0] == up.ne[1]


def _turned_shape(info: TensorInfo) -> tuple[int, ...]:
    """NumPy order, of the matrix or of each expert's with rows as columns."""
    return (*info.shape[:-2], *info.shape[-2:][::-1])


def _check_sources(file: GGUFFile, found: list[TensorInfo]) -> None:
    for info in found:
        if info.type not in ROUNDED_ALIKE:
            bound = "its numbers are rounded in blocks along the other way, and would be rounded across them"
            step = "for a sparse layout start from F32, F16, BF16 or Q8_0"
            raise FileError(f"{file.path.name}: type of {info.name}", info.type.name, bound, step)


def _metadata(
    file: GGUFFile, architecture: str, recipe: Recipe, ffn_activation: str | None, warn: Callable[[str], None]
) -> dict[str, MetadataValue]:
    """The file's metadata, but for what names its types and, if it is given, its activation."""
    metadata = metadata_of(file, warn)
    metadata["general.file_type"] = uint32(int(recipe.file_type))
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    if ffn_activation is not None:
        check_activation(ffn_activation, architecture, ("relu",) if file.is_powerinfer else ())
        metadata[FFN_ACTIVATION] = string(ffn_activation)
    return metadata


def _without_calibration(
    file: GGUFFile,
    tensors: list[OutputTensor],
    metadata: dict[str, MetadataValue],
    warn: Callable[[str], None],
) -> dict[str, MetadataValue]:
    """The metadata without what thresholds cost, where that was measured with other weights than the new file's."""
    measured = {key for key in metadata if key.startswith(CALIBRATED.format(what=""))}
    same = {name: info.type for name, info in file.tensors.items()} == {t.name: t.type for t in tensors}
    if not measured or same:
        return metadata
    warn("its thresholds were calibrated with the weights as they were: calibrate the new file")
    return {key: value for key, value in metadata.items() if key not in measured}


def _powerinfer_warnings(file: GGUFFile, architecture: str, outtype: str) -> list[str]:
    if not file.is_powerinfer:
        return []
    return powerinfer_warnings(outtype, file.get_int(f"{architecture}.feed_forward_length"))


def _is_matrix(info: TensorInfo) -> bool:
    return (len(info.ne) == 2 and info.name.endswith("weight")) or (
        len(info.ne) == 3 and info.name.endswith(("_exps.weight", "_exps_t.weight"))
    )


def _profile_shape(file: GGUFFile) -> dict[str, tuple[int, ...]]:
    """Of a profile of the head, whose tensor holds rows of two lengths: as if of rows that divide both."""
    info, embedding = file.tensors.get(HEAD_PROFILE), file.tensors.get(TIED_HEAD)
    if info is None or embedding is None:
        return {}
    rank = math.prod(info.ne) // sum(embedding.ne)
    n = math.gcd(rank, embedding.ne[0], info.ne[0])
    return {HEAD_PROFILE: (math.prod(info.ne) // n, n)} if rank else {}


def _output_tensor(
    file: GGUFFile,
    info: TensorInfo,
    kind: T,
    importance: NDArray[np.float32] | None,
    warn: Callable[[str], None],
) -> OutputTensor:
    if kind is not info.type:
        _check_readable(file, info)
    n_bytes = info.n_rows * blocks.row_bytes(kind, info.ne[0])

    def chunks() -> Iterator[NDArray[np.uint8]]:
        n_matrices = 1 if importance is None else len(importance)
        n = info.n_rows // n_matrices
        for i in range(n_matrices):
            own = None if importance is None else importance[i]
            for rows in slabs(file, info, i * n, (i + 1) * n):
                if kind is info.type:
                    yield rows
                else:
                    yield encode(info.name, blocks.dequantize(rows, info.type), kind, warn, own)

    return OutputTensor(info.name, kind, info.ne, n_bytes, chunks)


def _turned_tensor(
    file: GGUFFile, info: TensorInfo, name: str, kind: T, warn: Callable[[str], None]
) -> OutputTensor:
    """A matrix with its columns as rows, whole in memory while it is written, as each expert's; or a bias, renamed."""
    if len(info.ne) == 1:
        return OutputTensor(name, info.type, info.ne, info.n_bytes, lambda: slabs(file, info))
    n_rows, n, *n_expert = info.ne
    n_bytes = math.prod((n_rows, *n_expert)) * blocks.row_bytes(kind, n)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for e in range(math.prod(n_expert)):
            rows = slabs(file, info, e * n, (e + 1) * n)
            whole = np.concatenate([blocks.dequantize(some, info.type) for some in rows])
            step = max(1, SLAB_ELEMENTS // max(1, n))
            for first in range(0, n_rows, step):
                yield encode(name, np.ascontiguousarray(whole[:, first : first + step].T), kind, warn)

    return OutputTensor(name, kind, (n, n_rows, *n_expert), n_bytes, chunks)


def _check_readable(file: GGUFFile, info: TensorInfo) -> None:
    if not _is_readable(info):
        what = f"{file.path}: type of {info.name}"
        raise FileError(what, info.type.name, "cannot be read", "use a file in F16 or Q8_0")


def _is_readable(info: TensorInfo) -> bool:
    try:
        blocks.dequantize(np.zeros((1, blocks.type_size(info.type)), np.uint8), info.type)
    except SettingError:
        return False
    return True
