"""What the two kinds of vocabulary share: tokens that were added later, padding, special ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.writer import MetadataValue, uint32

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # GGUF's token types
SPECIAL_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
AddedTokens = dict[int, tuple[bytes, int]]


@dataclass
class Vocabulary:
    """Tokens by id, and their types."""

    model_dir: Path
    tokens: list[bytes] = field(default_factory=list)
    types: list[int] = field(default_factory=list)

    def append(self, token: bytes, kind: int) -> None:
        """One more token."""
        self.tokens.append(token)
        self.types.append(kind)

    def check_count(self, n_tokens: int, n_vocab: int) -> None:
        """FileError if there are more tokens than the model has rows."""
        if n_tokens > n_vocab:
            count, bound = f"{n_tokens} tokens", f"config.json: vocab_size {n_vocab}"
            raise FileError(f"tokenizer of {self.model_dir}", count, bound, "use its own tokenizer")

    def fill(self, n_vocab: int) -> None:
        """Unused `[PAD{id}]` up to the rows that the model has; FileError if there are more tokens."""
        self.check_count(len(self.tokens), n_vocab)
        for number in range(len(self.tokens), n_vocab):
            self.append(padding(number), UNUSED)

    def special_ids(
        self, model: HFModel, settings: Mapping[str, Any], trained: Mapping[str, int]
    ) -> dict[str, int]:
        """Ids of bos, eos, unk and pad: by their texts in `settings`, else config.json, else `trained`.

        Raises:
            FileError: an id beyond the vocabulary.
        """
        found = {}
        for name in SPECIAL_KEYS:
            number = self._named(settings.get(f"{name}_token"))
            number = model.token_ids.get(name, trained.get(name, -1)) if number is None else number
            if number >= len(self.tokens):
                bound = f"the vocabulary has {len(self.tokens)} tokens"
                raise FileError(f"{self.model_dir}: {name} id", number, bound, "correct config.json")
            if number >= 0:
                found[name] = number
        return found

    def _named(self, token: Any) -> int | None:
        text = token.get("content") if isinstance(token, dict) else token
        wanted = text.encode(errors="replace") if isinstance(text, str) else b""
        return self.tokens.index(wanted) if wanted in self.tokens else None


def padding(number: int) -> bytes:
    """The token of an id that no text becomes, as llama.cpp writes it."""
    return b"[PAD%d]" % number


def utf8(text: str, what: str) -> bytes:
    """The bytes of a text out of JSON, which can hold halves of characters; those are refused."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        shown = repr(text)[:60]
        raise FileError(what, shown, "must be whole characters", "fetch the file again") from error


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a file that need not be there."""
    return read_json_object(path) if path.exists() else {}


def read_settings(model_dir: Path) -> dict[str, Any]:
    """tokenizer_config.json, and special tokens that only special_tokens_map.json names."""
    names = ("special_tokens_map.json", "tokenizer_config.json")
    older, newer = (optional_json(model_dir / name) for name in names)
    return older | newer


def added_tokens(model_dir: Path, settings: Mapping[str, Any]) -> AddedTokens:
    """Text and type by id of added_tokens.json and of tokenizer_config.json, which knows more."""
    found: AddedTokens = {}
    for text, number in optional_json(model_dir / "added_tokens.json").items():
        if type(number) is int and number >= 0:
            found[number] = (utf8(text, f"{model_dir}: added token {number}"), USER_DEFINED)
    decoder = settings.get("added_tokens_decoder")
    for key, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if key.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            kind = CONTROL if entry.get("special") is True else USER_DEFINED
            found[int(key)] = (utf8(entry["content"], f"{model_dir}: added token {key}"), kind)
    return found


def special_id_metadata(ids: Mapping[str, int]) -> dict[str, MetadataValue]:
    """Their keys."""
    return {f"tokenizer.ggml.{SPECIAL_KEYS[name]}": uint32(number) for name, number in ids.items()}
