"""Counts of firing neurons: how often each neuron of each layer fired on some text, or each expert was chosen.

They lie beside a model as activation/activation_{i}.npy or .pt, and in a GGUF file as the metadata
arrays hotcold.activation.{i} (u64[n_ff]); of a mixture n_expert stands for n_ff, or n_expert n_ff where its neurons
were counted.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.errors import CUT, TruncatedError
from hotcold.gguf_io.names import ACTIVATION_COUNTS
from hotcold.gguf_io.torch_pickle import open_tensor

MAGIC = np.lib.format.MAGIC_PREFIX

LayerCounts = NDArray[np.generic]
"""How often each neuron of a layer fired, [n_ff], whole numbers as they are or as float64."""
Counts = Sequence[LayerCounts]
"""Those of every layer."""


def read_counts(folder: Path, n_layer: int, *n_ff: int) -> tuple[NDArray[np.uint64], ...] | None:
    """Counts of each layer, each u64[n_ff], or None when `folder` does not exist or holds none.

    Where several n_ff are given, all layers have the same of them.

    Of activation_{i}.npy and activation_{i}.pt the first that exists is read, neither of them by
    executing a pickle.

    Raises:
        TruncatedError: a file that is cut.
        FileError: a layer without counts or one too many, a damaged file, another length than n_ff,
            or numbers that are no counts.
    """
    files = [_file_of(folder, i) for i in range(n_layer)]
    extra = _file_of(folder, n_layer)
    if not any(files) and extra is None:
        return None
    if extra is not None:
        raise _another_model(extra, f"layer {n_layer}", f"the model has {n_layer} layers")
    if missing := [str(i) for i, file in enumerate(files) if file is None]:
        listed = ", ".join(missing[:5])
        raise _another_model(folder, f"no file for layer {listed}", f"one for each of {n_layer} layers")
    return _alike(
        [_checked(str(file), _read(file, n_ff), n_ff) for file in files if file is not None], folder
    )


def digest(counts: Counts) -> str:
    """SHA-256 of counts, in hex; the same in whatever type their numbers are."""
    found = hashlib.sha256()
    for layer in counts:
        found.update(np.asarray(layer).astype("<f8").tobytes())
    return found.hexdigest()


def counts_in_metadata(
    metadata: Mapping[str, Any], n_layer: int, *n_ff: int
) -> tuple[NDArray[np.uint64], ...] | None:
    """Counts of each layer out of a GGUF file's metadata, each u64[n_ff], or None when it has none.

    Raises:
        FileError: as `read_counts`.
    """
    keys = [ACTIVATION_COUNTS.format(i=i) for i in range(n_layer)]
    stem = ACTIVATION_COUNTS.format(i="")
    found = [key for key in metadata if key.startswith(stem)]
    if not found:
        return None
    if strange := sorted(set(found) - set(keys)):
        raise _another_model(strange[0], "present", f"the model has {n_layer} layers")
    for key in keys:
        if key not in metadata:
            raise _another_model(key, "missing", f"one for each of {n_layer} layers")
    return _alike([_checked(key, metadata[key], n_ff) for key in keys], stem)


def _alike(counts: Sequence[NDArray[np.uint64]], origin: object) -> tuple[NDArray[np.uint64], ...]:
    """Those of all layers, as many in each."""
    other = next((i for i, each in enumerate(counts) if each.size != counts[0].size), None)
    if other is not None:
        found = f"{counts[other].size} numbers in layer {other}"
        raise _another_model(origin, found, f"layer 0 has {counts[0].size}")
    return tuple(counts)


def _needs(n_ff: tuple[int, ...]) -> str:
    return "the model needs numbers " + " or ".join(f"[{n}]" for n in n_ff)


def _file_of(folder: Path, layer: int) -> Path | None:
    paths = (folder / f"activation_{layer}{ending}" for ending in (".npy", ".pt"))
    return next((path for path in paths if path.exists()), None)


def _read(file: Path, n_ff: tuple[int, ...]) -> NDArray[Any]:
    if file.suffix == ".npy":
        return _read_npy(file, n_ff)
    tensor = open_tensor(file)
    if tensor.dtype == "BF16":
        raise _another_model(file, "element type BF16", "counts need more digits")
    if tensor.shape not in [(n,) for n in n_ff]:
        raise _another_model(file, f"shape {list(tensor.shape)}", _needs(n_ff))
    return tensor.read()


def _read_npy(file: Path, n_ff: tuple[int, ...]) -> NDArray[Any]:
    """The array of `file`; the header is compared with n_ff before anything is allocated for it."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_header(file, stream, size)
            version = np.lib.format.read_magic(stream)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, number = read_header[version](stream)
            if number.kind not in "iuf" or shape not in [(n,) for n in n_ff]:
                raise _another_model(file, f"{number} {list(shape)}", _needs(n_ff))
            found, needed = size - stream.tell(), shape[0] * number.itemsize
            if found < needed:
                raise TruncatedError(str(file), f"{found} bytes of numbers", f"its header says {needed}", CUT)
            if found > needed:
                raise _another_model(file, f"{found} bytes of numbers", str(needed))
            return np.frombuffer(stream.read(), number)
    except OSError as error:
        raise FileError(str(file), error.strerror or str(error), "", "check the path") from error
    except FileError:
        raise
    except Exception as error:  # NumPy's header parser has many: of syntax, tokens, types, recursion
        raise FileError(
            str(file), "no .npy array", "format 1.0 or 2.0", "save it again with numpy.save"
        ) from error


def _check_header(file: Path, stream: BinaryIO, size: int) -> None:
    """Refuse a file that begins as NumPy's do and ends before its header does; `stream` is at its start.

    Magic, two bytes of version, the header's length in two bytes, or four from version 2.0 on, the header.
    """
    head = stream.read(len(MAGIC) + 6)
    stream.seek(0)
    if not (head.startswith(MAGIC) or MAGIC.startswith(head)):
        return
    begin = len(MAGIC) + (4 if head[len(MAGIC) :][:1] == b"\1" else 6)
    end = begin + int.from_bytes(head[len(MAGIC) + 2 : begin], "little")
    if size < max(begin, end):
        raise TruncatedError(str(file), f"{size} bytes", f"its header ends at byte {end}", CUT)


def _checked(origin: str, numbers: Any, n_ff: tuple[int, ...]) -> NDArray[np.uint64]:
    values = np.asarray(numbers)
    if values.dtype.kind not in "iuf" or values.shape not in [(n,) for n in n_ff]:
        raise _another_model(origin, f"{values.dtype} {list(values.shape)}", _needs(n_ff))
    if not np.isfinite(values).all():
        raise _another_model(origin, "NaN or infinity", "counts are whole numbers from 0")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high >= 2.0**63 or not np.array_equal(values, np.trunc(values)):
        raise _another_model(
            origin, f"from {low:g} to {high:g}", "counts are whole numbers from 0 to below 2^63"
        )
    return values.astype(np.uint64)


def _another_model(thing: object, value: str, bound: str) -> FileError:
    return FileError(
        f"activation counts {thing}", value, bound, "give the counts of this model, or remove them"
    )
