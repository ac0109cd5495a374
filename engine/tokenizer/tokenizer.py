"""Text to token ids and back, from the vocabulary in a file's metadata."""

import codecs
from collections.abc import Callable, Iterable
from typing import Protocol

from hotcold.engine.tokenizer import bpe as bpe_tokenizer
from hotcold.engine.tokenizer import sentencepiece as sentencepiece_tokenizer
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.pretokenizers import check_pretokenizer


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer, of whatever kind.

    Attributes:
        n_vocab: ids are 0 to n_vocab - 1.
        bos, eos: ids, None where the model has none.
        add_bos: whether BOS goes in front of a text.
        end_ids: ids after which generation ends.
        warnings: what a user should know of the vocabulary, one line each.
    """

    @property
    def n_vocab(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    def encode(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False, guard: str = ""
    ) -> list[int]: ...
    def brings_bos(self, text: str | bytes) -> bool: ...
    def special_texts(self, *, user_defined: bool = False) -> list[str]: ...
    def fewest_tokens(self, n_bytes: int) -> int: ...
    def piece(self, token: int, *, special: bool = False) -> bytes: ...
    def decode(self, ids: Iterable[int], *, special: bool = False) -> bytes: ...


class CharacterStream:
    """Bytes in, whole characters out: the start of a character waits for its end.

    Bytes that can never become a character come out as U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)

    def end(self) -> str:
        """U+FFFD for a character whose end does not come any more, or nothing."""
        return self._decoder.decode(b"", final=True)


LOADERS: dict[str, Callable[[GGUFFile, str | None, int | None], Tokenizer]] = {
    "llama": sentencepiece_tokenizer.load,
    "gpt2": bpe_tokenizer.load,
    bpe_tokenizer.GEMMA: bpe_tokenizer.load,
}


def load_tokenizer(
    file: GGUFFile, force_pretokenizer: str | None = None, n_rows: int | None = None
) -> Tokenizer:
    """The tokenizer that a file's metadata describe.

    Args:
        force_pretokenizer: how text is cut into words, whatever the file says; a name of `PRETOKENIZERS`.
        n_rows: ids that the model has rows for; what is beyond them is left out. None: all.

    Raises:
        FileError: a kind of tokenizer that is not known, or metadata that are missing or damaged.
        SettingError: a pre-tokenizer that is not known, or a vocabulary that has none.
    """
    if force_pretokenizer is not None:
        check_pretokenizer(force_pretokenizer)
    kind = file.get_str("tokenizer.ggml.model")
    if kind not in LOADERS:
        raise FileError(
            f"{file.path.name}: tokenizer.ggml.model",
            kind,
            f"known: {', '.join(LOADERS)}",
            "use a model with a SentencePiece or byte-level BPE vocabulary",
        )
    return LOADERS[kind](file, force_pretokenizer, n_rows)
