"""The texts that a command counts or learns on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.options import (
    FFNActivation,
    ForcePretokenizer,
    KVType,
    ModelPath,
    NBatch,
    Threads,
)
from hotcold.engine.commands.prompt_input import read_file
from hotcold.engine.commands.terminal import progress_bar
from hotcold.engine.generation.run_options import RunOptions
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from hotcold.engine.profile.corpus import Text
    from hotcold.engine.profile.profile import Progress


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Where they are, and how the model runs on them: on the CPU alone, with every neuron looked at."""

    path: ModelPath = None
    threads: Threads = RunOptions.threads
    n_ctx: Annotated[int, typer.Option("-c", "--ctx-size", help="Ids that run together.")] = 512
    n_batch: NBatch = RunOptions.n_batch
    kv_type: KVType = RunOptions.kv_type
    force_pretokenizer: ForcePretokenizer = RunOptions.force_pretokenizer
    ffn_activation: FFNActivation = RunOptions.ffn_activation
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            "-f", "--file", help="Text, .jsonl, a folder with such, or - for a pipe; may be repeated."
        ),
    ] = None
    field: Annotated[str, typer.Option(help="Of a .jsonl line's object, that is its text.")] = "text"

    def inputs(self, model: Path) -> list[Path]:
        """Files that are read, and so are never written: the model and the texts that are named."""
        return [model, *(self.texts or ())]


def read_corpus(options: CorpusOptions) -> "list[Text]":
    """All texts.

    Raises:
        SettingError: none are named. FileError: one cannot be read, or is no text.
    """
    if not options.texts:
        raise SettingError("texts", "none", "-f FILE", "name a text, a folder, or - for a pipe")
    from hotcold.engine.profile.corpus import read_texts

    return [text for path in options.texts for text in read_texts(path, options.field, _read)]


@contextmanager
def token_bar(shown: bool) -> "Iterator[Progress]":
    """What hears of the corpus as it passes, and shows a bar."""
    with progress_bar(shown, counted="tokens") as bar:

        def advance(done: int, total: int, speed: float) -> None:
            if bar is not None:
                bar(f"{speed:.0f} tokens/s", done, total)

        yield advance


def _read(path: Path) -> bytes:
    return read_file(path, "text file")
