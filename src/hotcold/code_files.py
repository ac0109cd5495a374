"""Where compiled code of one folder of sources is kept, and how its files are trusted. A leaf, as `errors` is.

The folder is named after a hash of all sources beside each other, of what compiles them and of the CPU that it is
compiled for, so a changed source starts an empty one, and so does another machine that shares the folder.

Each file begins with a digest of its name and content. What does not fit it, or cannot be read, is compiled anew
and written again; what cannot be written is not kept. Either is said once.
"""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hotcold.cache_folder import temporary_folder, temporary_root, user_caches
from hotcold.errors import SettingError

log = logging.getLogger("hotcold.cpu")

DIGEST_BYTES = 16


def source_hash(sources: Path) -> str:
    """Twelve hex digits over the Python files of folder `sources` and the versions that compile them."""
    digest = hashlib.sha256()
    for package in ("numba", "llvmlite"):  # without importing them, which takes a third of a second
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        digest.update(package.encode() + Path(spec.origin).with_name("_version.py").read_bytes())
    for source in sorted(sources.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def host_cpu() -> str:
    """LLVM's name of this machine's CPU, and the features that it has and its system lets it use."""
    # takes LLVM alone: all that loads compiled code has it anyway, and nothing else waits for it
    from llvmlite import binding

    try:
        features = binding.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot tell them: then Numba compiles for none
        features = ""
    return f"{binding.get_host_cpu_name()} {features}"


def candidates() -> Iterator[Path]:
    """Parents to try in order: NUMBA_CACHE_DIR, the user's cache folder, the temporary folder."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield from user_caches()
    if (shared := temporary_root()) is not None:
        yield shared / f"hotcold-{os.getuid()}"


def code_folder(sources: Path, variant: str = "") -> Path | None:
    """The folder for code of `sources` for this CPU, made if it can be; else one for this run, or none.

    Args:
        variant: what else it is compiled for.
    """
    settings = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")
    levels = [os.environ.get(name, "") for name in settings]
    # Numba's files know their sources by path, so another installation compiles anew
    cpu = f"{host_cpu()} {levels} {variant} {sources}"
    name = f"{source_hash(sources)}-{hashlib.sha256(cpu.encode()).hexdigest()[:6]}"
    for parent in candidates():
        path = parent / "hotcold" / "numba" / name
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place in (*reversed(path.parents[:2]), path):
                place.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if os.access(path, os.W_OK | os.X_OK) and _is_own(path, parent):
            return path
    return temporary_folder()


def _is_own(path: Path, parent: Path) -> bool:
    """Whether nobody else can have put code there: who may write a folder may swap the folders in it.

    The folders made below `parent` have to be this user's, and `parent` itself where anybody may have
    made it.
    """
    made = [path, *path.parents[:2]]
    if parent.parent == temporary_root():
        made.append(parent)
    others_write = stat.S_IWGRP | stat.S_IWOTH
    states = [place.stat() for place in made]
    return all(state.st_uid == os.getuid() and not state.st_mode & others_write for state in states)


def check_compiling() -> None:
    """Refuse to run where Numba is told not to compile: there is nothing that could run instead."""
    disabled = os.environ.get("NUMBA_DISABLE_JIT", "")
    if disabled not in ("", "0"):
        raise SettingError("NUMBA_DISABLE_JIT", disabled, "hotcold's kernels are compiled", "unset it")


def digest(name: str, content: bytes) -> bytes:
    """What a file of this name and content begins with."""
    return hashlib.blake2b(name.encode() + b"\0" + content, digest_size=DIGEST_BYTES).digest()


def read_code(path: Path) -> bytes | None:
    """The content of a file; None if there is none, or if it is no good, which is said."""
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        say_damaged(path.parent, error.strerror or error)
        return None
    content = written[DIGEST_BYTES:]
    if written[:DIGEST_BYTES] != digest(path.name, content):
        say_damaged(path.parent, f"{path.name} is not what was written")
        return None
    return content


def write_code(path: Path, content: bytes) -> None:
    """Keep `content` for others, who see all of it or nothing; where that fails it is said."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                file.write(digest(path.name, content) + content)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        say_unwritten(path.parent, error.strerror or error)


def say_damaged(folder: Path | str, reason: object) -> None:
    """Once: a file is no good."""
    _say_once("damaged", "compiled kernels in %s are damaged: compiling again (%s)", folder, reason)


def say_unwritten(folder: Path | str, reason: object) -> None:
    """Once: what was compiled is lost at the end."""
    _say_once("unwritten", "compiled kernels cannot be kept in %s: %s", folder, reason)


_said: set[str] = set()


def _say_once(what: str, message: str, *values: object) -> None:
    if what not in _said:
        _said.add(what)
        log.warning(message, *values)
