"""Writes a model whole, or split into several files, all of them or none."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gguf import GGUFValueType

from hotcold.gguf_io.split import COUNT, N_TENSORS, NAME, NUMBER, part_name
from hotcold.gguf_io.writer import (
    Contents,
    MetadataValue,
    OutputTensor,
    WriteProgress,
    check_room,
    write_contents,
    write_gguf,
)
from hotcold.whole_file import check_output, whole_file


def shares(tensors: Sequence[OutputTensor], max_bytes: int) -> list[list[OutputTensor]]:
    """The tensors of each part, in order: as many as max_bytes hold, or one that is larger."""
    parts: list[list[OutputTensor]] = [[]]
    used = 0
    for tensor in tensors:
        if parts[-1] and used + tensor.n_bytes > max_bytes:
            parts.append([])
            used = 0
        parts[-1].append(tensor)
        used += tensor.n_bytes
    return parts


def part_paths(path: Path, count: int) -> list[Path]:
    """The files of a model in `count` parts: `path` with each part's number behind the name."""
    named = NAME.fullmatch(path.name)
    stem = named["stem"] if named else path.stem if path.suffix.lower() == ".gguf" else path.name
    return [path.with_name(part_name(stem, i + 1, count)) for i in range(count)]


def planned(
    path: Path, tensors: Sequence[OutputTensor], max_bytes: int | None = None
) -> tuple[list[Path], int]:
    """The files that `write_model` would write, and the bytes of their tensors."""
    count = 1 if max_bytes is None else len(shares(tensors, max_bytes))
    paths = [path] if count == 1 else part_paths(path, count)
    return paths, sum(tensor.n_bytes for tensor in tensors)


def write_model(
    path: Path,
    contents: Contents,
    *,
    force: bool = False,
    progress: WriteProgress | None = None,
    max_bytes: int | None = None,
) -> tuple[list[Path], int]:
    """Writes a model and returns its files with the sum of their sizes.

    Args:
        max_bytes: of the tensors of one part; a tensor that is larger gets a part of its own. None, or more
            than all of them: one file at `path`, without a number.

    Raises:
        FileError, SettingError, DoesNotFitError: as `write_gguf`.
    """
    tensors = contents.tensors
    parts = [list(tensors)] if max_bytes is None else shares(tensors, max_bytes)
    if len(parts) == 1:
        return [path], write_gguf(path, contents, force=force, progress=progress)
    paths, total = part_paths(path, len(parts)), sum(tensor.n_bytes for tensor in tensors)
    for each in paths:
        check_output(each, force=force)
    done = n_bytes = 0
    with ExitStack() as stack:
        check_room(path.parent, total)
        temporary = [stack.enter_context(whole_file(each)) for each in paths]
        for i, share in enumerate(parts):
            own = _split_metadata(i, len(parts), len(tensors))
            part = replace(contents, metadata={**contents.metadata, **own} if i == 0 else own, tensors=share)
            hear = None if progress is None else _shifted(progress, done, total)
            n_bytes += write_contents(temporary[i], part, hear)
            done += sum(tensor.n_bytes for tensor in share)
        for each in paths:
            check_output(each, force=force)
    return paths, n_bytes


def _split_metadata(number: int, count: int, n_tensors: int) -> dict[str, MetadataValue]:
    return {
        NUMBER: MetadataValue(GGUFValueType.UINT16, number),
        COUNT: MetadataValue(GGUFValueType.UINT16, count),
        N_TENSORS: MetadataValue(GGUFValueType.INT32, n_tensors),
    }


def _shifted(progress: WriteProgress, before: int, total: int) -> WriteProgress:
    """Progress of one part as that of all."""
    return lambda name, done, _: progress(name, before + done, total)
