"""Fetches models by huggingface_hub: it goes on with what was broken off, and keeps files in its own cache."""

import errno
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hotcold.errors import DoesNotFitError, FileError, HotcoldError
from hotcold.gguf_io.hub.names import Reference, RepoModel, choose, models_of

Progress = Callable[[str, int, int], None]
"""Hears of a file, its bytes that are there, and its bytes in all."""

ERRNO = re.compile(r"^\[Errno -?\d+\] ")
LOGIN = "accept its terms on the hub and log in (`hf auth login`, or HF_TOKEN)"


def repo_models(repo: str) -> tuple[list[RepoModel], dict[str, str]]:
    """The models of a repository, and the SHA-256 of those files of which the hub knows it.

    Raises:
        FileError: there is no such repository, it wants a login, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    logging: Any = import_module("huggingface_hub.utils.logging")
    logging.set_verbosity_error()  # it tells of each try; ours is the last word
    with _named("repository", repo):
        files = [each for each in HfApi().list_repo_tree(repo, recursive=True) if isinstance(each, RepoFile)]
    sums = {each.path: each.lfs.sha256 for each in files if each.lfs is not None}
    return models_of((each.path, each.size) for each in files), sums


def fetch(reference: Reference, progress: Progress | None = None) -> Path:
    """The first file of a model, after all of them are in the cache, whole and as the hub has them.

    Raises:
        FileError: it cannot be told which model is meant, fetched, or is not what the hub has.
        DoesNotFitError: the disk is full.
    """
    models, sums = repo_models(reference.repo)
    model = choose(reference, models)
    paths = [_fetch_file(reference.repo, name, sums.get(name), progress) for name in model.files]
    return paths[0]


def _fetch_file(repo: str, name: str, digest: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import hf_hub_download

    shown = None if progress is None else _bar_class(name, progress)
    before = cached_file(repo, name)
    with _named(f"{repo}: file", name):
        path = Path(hf_hub_download(repo, name, tqdm_class=shown))
    if before is None and digest is not None and (found := _digest(path)) != digest:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise FileError(
            f"{repo}: {name}", f"SHA-256 {found[:12]}…", f"the hub has {digest[:12]}…", "fetch it again"
        )
    return path


def cached_file(repo: str, name: str) -> Path | None:
    """A file that was fetched before; None if it was not, or not whole."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _bar_class(name: str, progress: Progress) -> Any:
    """What huggingface_hub takes for a progress bar: it draws nothing and tells `progress`."""
    bar: Any = import_module("tqdm.auto").tqdm

    def update(self: Any, n: float | None = 1) -> Any:
        shown = bar.update(self, n)
        progress(name, int(self.n), int(self.total or self.n))
        return shown

    def begin(self: Any, *args: Any, **options: Any) -> None:
        options.pop("name", None)  # the library's own bar takes one
        bar.__init__(self, *args, **options | {"disable": False, "file": io.StringIO()})

    return type("Told", (bar,), {"update": update, "__init__": begin})


@contextmanager
def _named(thing: str, value: str) -> Iterator[None]:
    """Turn what goes wrong inside into an error that names the thing and what to do."""
    try:
        yield
    except HotcoldError:
        raise
    except Exception as error:  # the library's own, those of its HTTP client, and the system's
        raise _our_error(thing, value, error) from error


def _our_error(thing: str, value: str, error: Exception) -> HotcoldError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DoesNotFitError(
            f"{thing} {value}", "disk full", "", "free some of it, or set HF_HOME to another"
        )
    bound, remedy = _first_line(error), "try again: what was fetched is kept"
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        bound, remedy = "the hub wants a login, or there is no such repository", LOGIN
    elif isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError) or status == 404:
        bound, remedy = "the hub has no such thing", "look at its name on the hub"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        bound, remedy = "HF_HUB_OFFLINE is set", "unset it"
    return FileError(thing, value, bound, remedy)


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ERRNO.sub("", line)
