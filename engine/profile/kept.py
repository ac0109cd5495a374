"""A profile on disk: counts where a plan finds them, and beside them what is needed to go on or to merge.

activation_{i}.npy   u64 [n_ff] of layer i, as `hotcold offload-dump --activation` and `convert` read them
profile.npz          all of it, with what it was counted on
profile.json         the same figures that the command prints
"""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.profile.firing import Counted
from hotcold.engine.profile.profile import FIRINGS, WEIGHT, Profile
from hotcold.errors import FileError, SettingError
from hotcold.whole_file import write_whole

STATE, REPORT = "profile.npz", "profile.json"
COUNTED = {FIRINGS: "counts of firings", WEIGHT: "sums of |hidden|"}
LARGEST_WEIGHT = 1 << 40  # of the whole numbers that stand for weights, which are none


@dataclass(frozen=True)
class CountedOn:
    """What a profile is of: the SHA-256 of the model's header, and of the ids of its texts."""

    model: str
    ids: str


@contextmanager
def folder_for_counts(folder: Path, resume: bool | None, force: bool) -> Iterator[None]:
    """Refuse a folder before any work is done for it, or make it; what was made for nothing goes again.

    Args:
        resume: whether what is there is gone on with; None where nothing can be, as in a merge.

    Raises:
        SettingError: statistics are there, and neither is wanted. FileError: it cannot be made.
    """
    if folder.is_dir():
        there = next(
            (name for name in (STATE, "activation_0.npy", "activation_0.pt") if (folder / name).exists()), ""
        )
        if there and not (resume or force):
            remedy = "replace it with --force, or name another with -o"
            if resume is not None:
                remedy = f"go on with --resume, {remedy}"
            raise SettingError("folder for counts", folder, f"has {there} already", remedy)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "is no folder" if isinstance(error, FileExistsError) else error.strerror or "cannot be made"
        raise FileError("folder for counts", folder, why, "name another with -o") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # counts are in it
            for each in missing:
                each.rmdir()
        raise


def whole_numbers(profile: Profile) -> NDArray[np.uint64]:
    """Counts as the files of layers have them; weights become whole numbers in their proportions."""
    if profile.of == FIRINGS:
        return profile.counts.astype(np.uint64)
    return np.rint(profile.counts * (LARGEST_WEIGHT / (profile.counts.max() or 1))).astype(np.uint64)


def save(folder: Path, profile: Profile, of: CountedOn, report: dict[str, Any]) -> None:
    """Write all files; the state last but the report, so that an older one goes on where it was."""
    for i, counts in enumerate(whole_numbers(profile)):
        write_whole(folder / f"activation_{i}.npy", _npy(counts), option="-o")
    state = io.BytesIO()
    np.savez(
        state,
        of=profile.of,
        model=of.model,
        ids=of.ids,
        numbers=np.array([profile.n_tokens, profile.n_chunks, profile.all_chunks]),
        counts=profile.counts,
        first_half=profile.first_half,
    )
    write_whole(folder / STATE, state.getvalue(), option="-o")
    write_whole(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode(), option="-o")


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read(folder: Path) -> tuple[Profile, CountedOn]:
    """What `save` wrote.

    Raises:
        FileError: nothing is there, or it is damaged.
    """
    path = folder / STATE
    try:
        with np.load(path, allow_pickle=False) as state:
            n_tokens, n_chunks, all_chunks = (int(number) for number in state["numbers"])
            counts, first_half = _table(state["counts"]), _table(state["first_half"])
            of, model, ids = (str(state[name]) for name in ("of", "model", "ids"))
    except OSError as error:
        raise FileError(
            "profile", path, error.strerror or str(error), "name a folder that hotcold profile wrote"
        ) from error
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise FileError("profile", path, "is damaged", "count again, with --force") from error
    if of not in (FIRINGS, WEIGHT) or counts.shape != first_half.shape or not 0 <= n_chunks <= all_chunks:
        raise FileError("profile", path, "is damaged", "count again, with --force")
    return Profile(of, n_tokens, n_chunks, all_chunks, counts, first_half), CountedOn(model, ids)


def _table(array: NDArray[Any]) -> Counted:
    if (
        array.ndim != 2
        or array.dtype != np.float64
        or not np.isfinite(array).all()
        or array.min(initial=0) < 0
    ):
        raise ValueError("no counts")
    return array


def to_resume(folder: Path, of: CountedOn, begun: Profile) -> Profile:
    """The profile to go on with, in place of `begun`, in which nothing is counted yet.

    Raises:
        FileError: nothing is there; or it is of another model, of other texts, or of something else than
            `begun` counts.
    """
    if not (folder / STATE).exists():
        raise FileError("folder for counts", folder, f"has no {STATE} to go on with", "leave --resume out")
    profile, counted_on = read(folder)
    if counted_on.model != of.model:
        raise _foreign(folder, "another model")
    if counted_on.ids != of.ids:
        raise _foreign(folder, "other texts, or another n_ctx")
    if profile.of != begun.of:
        raise _foreign(
            folder, f"another FFN activation: it has {COUNTED[profile.of]}, not {COUNTED[begun.of]}"
        )
    return profile


def _foreign(folder: Path, what: str) -> FileError:
    return FileError("profile", folder / STATE, f"was counted on {what}", "use --force, or another -o")
