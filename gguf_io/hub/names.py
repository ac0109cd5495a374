"""What `USER/REPO:QUANT` means: a repository, and which of its models."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.split import NAME as PART_NAME

PREFIX = "hf:"
DEFAULT_QUANT = "Q4_K_M"
REFERENCE = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<quant>\w[\w.-]*))?", re.ASCII)

SHORT_NAMES = {
    "gemma-3-4b": "ggml-org/gemma-3-4b-it-GGUF",
    "gpt-oss-20b": "ggml-org/gpt-oss-20b-GGUF",
    "gpt-oss-120b": "ggml-org/gpt-oss-120b-GGUF",
    "mixtral-8x7b": "TheBloke/Mixtral-8x7B-Instruct-v0.1-GGUF",
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct-gguf",
    "qwen3-4b": "Qwen/Qwen3-4B-GGUF",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B-GGUF",
    "relullama-7b": "PowerInfer/ReluLLaMA-7B-PowerInfer-GGUF",
    "tinyllama": "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF",
}
"""Models of docs/models.md and where they are published."""


@dataclass(frozen=True)
class Reference:
    """A repository and a part of the name of one of its files; "" where that is left open."""

    repo: str
    quant: str = ""

    def __str__(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else self.repo


@dataclass(frozen=True)
class RepoModel:
    """A model in a repository: its name without suffix, and its files, the parts in their order, with their bytes."""

    stem: str
    files: tuple[str, ...]
    n_bytes: int


def parse_reference(text: str) -> Reference:
    """What a name means, with or without `hf:` in front.

    Raises:
        SettingError: it is no name of this form.
    """
    name, colon, quant = text.removeprefix(PREFIX).partition(":")
    full = SHORT_NAMES.get(name.lower(), name) + colon + quant
    match = REFERENCE.fullmatch(full)
    if match is None:
        bound = f"USER/REPO, USER/REPO:QUANT, or one of {', '.join(SHORT_NAMES)}"
        raise SettingError("model name", text, bound, "such as Qwen/Qwen3-4B-GGUF:Q4_K_M")
    return Reference(match["repo"], match["quant"] or "")


def models_of(files: Iterable[tuple[str, int]]) -> list[RepoModel]:
    """The models among a repository's files (name, bytes), parts put together; projectors of images are none."""
    parts: dict[str, list[tuple[str, int]]] = {}
    for name, n_bytes in sorted(files):
        if not name.lower().endswith(".gguf") or "mmproj" in name.lower():
            continue
        named = PART_NAME.fullmatch(name)
        parts.setdefault(named["stem"] if named else name[: -len(".gguf")], []).append((name, n_bytes))
    return [
        RepoModel(stem, tuple(name for name, _ in found), sum(n_bytes for _, n_bytes in found))
        for stem, found in parts.items()
    ]


def is_whole(model: RepoModel) -> bool:
    """Whether all parts are there that the name of the first speaks of."""
    named = PART_NAME.fullmatch(model.files[0])
    return named is None or len(model.files) == int(named["count"])


def choose(reference: Reference, models: Sequence[RepoModel]) -> RepoModel:
    """The model that a reference means: by its quant, else Q4_K_M, else the only one.

    Raises:
        FileError: there is none, or there are several; the text lists them.
    """
    if not models:
        remedy = "convert its directory with `hotcold convert`, or name a GGUF repository"
        raise FileError("repository", reference.repo, "has no .gguf files", remedy)
    wanted = reference.quant or DEFAULT_QUANT
    found = [model for model in models if _means(wanted, model.stem)]
    found = [model for model in found if _name(model.stem) == wanted.lower()] or found
    if not found and not reference.quant and len(models) == 1:
        found = list(models)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{model.stem} ({model.n_bytes / 1e9:.1f} GB)" for model in found or models)
    bound = f"{len(found) or 'none'} of its models {'have' if len(found) > 1 else 'has'} {wanted} in the name: {listed}"
    raise FileError(
        "repository", reference.repo, bound, f"name one, such as {reference.repo}:{_last(models[0].stem)}"
    )


def _means(quant: str, stem: str) -> bool:
    """Whether a quant, or the whole name, is what a model's name ends in, as words of their own."""
    return re.search(rf"(^|[.-]){re.escape(quant.lower())}$", _name(stem)) is not None


def _name(stem: str) -> str:
    return stem.lower().rpartition("/")[2]


def _last(stem: str) -> str:
    return re.split(r"[.-]", stem.rpartition("/")[2])[-1]
