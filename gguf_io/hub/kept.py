"""Models in huggingface_hub's cache: which there are, and their removal."""

from dataclasses import dataclass
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.hub.names import Reference, RepoModel, choose, is_whole, models_of


@dataclass(frozen=True)
class KeptModel:
    """A model in the cache.

    Attributes:
        paths: of its files, the parts in their order.
    """

    repo: str
    model: RepoModel
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        """As -m takes it."""
        return f"hf:{self.repo}:{self.model.stem.rpartition('/')[2]}"


def kept_models() -> list[KeptModel]:
    """All that are whole, by name; of each repository's newest state."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: revision.last_modified)[-1:]:
            paths = {
                path.relative_to(revision.snapshot_path).as_posix(): path
                for path in (file.file_path for file in revision.files)
                if path.exists()
            }
            models = models_of((name, path.stat().st_size) for name, path in paths.items())
            whole = filter(is_whole, models)
            found += [KeptModel(repo.repo_id, m, tuple(paths[name] for name in m.files)) for m in whole]
    return found


def find(reference: Reference) -> KeptModel | None:
    """The model in the cache that a reference means; None if none there is it."""
    of_repo = [kept for kept in kept_models() if kept.repo == reference.repo]
    try:
        wanted = choose(reference, [kept.model for kept in of_repo])
    except FileError:
        return None
    return next(kept for kept in of_repo if kept.model == wanted)


def remove(reference: Reference) -> tuple[KeptModel, int]:
    """Remove a model's files from the cache; which it was, and the bytes that are free now.

    Raises:
        FileError: it is not there, or not the only one that the reference means.
    """
    of_repo = [kept for kept in kept_models() if kept.repo == reference.repo]
    if not of_repo:
        raise FileError("model", f"hf:{reference}", "is not in the cache", "see `hotcold list`")
    wanted = choose(reference, [kept.model for kept in of_repo])
    kept = next(kept for kept in of_repo if kept.model == wanted)
    return kept, sum(map(_remove_file, kept.paths))


def _remove_file(path: Path) -> int:
    """A snapshot's file, and what it leads to unless another snapshot leads there too; the bytes that are free now."""
    blob, n_bytes = path.resolve(), path.stat().st_size
    snapshots = next(parent for parent in path.parents if parent.name == "snapshots")
    path.unlink()
    if blob == path:
        return n_bytes
    if any(other.is_symlink() and other.resolve() == blob for other in snapshots.rglob("*")):
        return 0
    blob.unlink(missing_ok=True)
    return n_bytes
