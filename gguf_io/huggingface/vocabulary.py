"""What the kinds of vocabulary share: tokens that were added later, padding, special ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.oddities import EQUAL_PIECES, GAPS, MAX_SURPLUS, NO_ROW, REPLACED, Oddities
from hotcold.gguf_io.writer import MetadataValue, uint32

UNSAID = 0  # of an added token: the type is that of the piece it repeats
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's token types
SPECIAL_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
AGAIN = "fetch the tokenizer files again"
MAX_ID = 2**31 - 1
SPACE = "\u2581"
Token = tuple[bytes, int]  # text and type
Tokens = dict[int, Token]


@dataclass
class HFVocabulary:
    """Tokens by id, and their types.

    Attributes:
        n_known: ids of the tokenizer's files, those without a row too.
        oddities: what was mended.
    """

    model_dir: Path
    tokens: list[bytes] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    n_known: int = 0
    oddities: Oddities = field(default_factory=Oddities)

    def fill(self, pieces: Tokens, added: Tokens, n_vocab: int, *, replace: bool) -> None:
        """Each token by id, those that were added, and unused `[PAD{id}]` where there is none.

        An added token says the type of the piece that it repeats, wherever that is; a text occurs once.

        Args:
            pieces: of the vocabulary itself. added: what came later.
            n_vocab: rows of the model.
            replace: whether an added token takes the place of another piece; else that is an error.

        Raises:
            FileError: many more tokens than the model has rows, or another piece where one is added.
        """
        self.n_known = max([*pieces, *added]) + 1
        if self.n_known > n_vocab + MAX_SURPLUS:
            count, bound = f"{self.n_known} tokens", f"config.json: vocab_size {n_vocab}"
            raise FileError(f"tokenizer of {self.model_dir}", count, bound, "use its own tokenizer")
        both = dict(pieces)
        homes = {text: number for number, (text, _) in sorted(pieces.items(), reverse=True)}
        for number, (text, kind) in sorted(added.items()):
            home = homes.setdefault(text, number)
            self.oddities.count(EQUAL_PIECES, home != number)
            if home == number and number in pieces and pieces[number][0] != text:
                self._check_replaced(number, pieces[number][0], text, replace)
            both[home] = _retyped(both.get(home), (text, kind))
        for number in range(n_vocab):
            token, kind = both.get(number, (padding(number), UNUSED))
            if homes.setdefault(token, number) != number:
                self.oddities.count(EQUAL_PIECES, number in pieces)
                token, kind = padding(number), UNUSED
            self.tokens.append(token)
            self.types.append(kind)
        self.oddities.count(NO_ROW, sum(number >= n_vocab for number in both))
        known = both.keys() | added.keys()
        self.oddities.count(GAPS, sum(number not in known for number in range(min(self.n_known, n_vocab))))

    def _check_replaced(self, number: int, piece: bytes, added: bytes, replace: bool) -> None:
        if not replace:
            what = f"tokenizer of {self.model_dir}: added token {number}"
            raise FileError(what, shown(added), f"the vocabulary has {shown(piece)} there", AGAIN)
        self.oddities.count(REPLACED)

    def special_ids(
        self, model: HFModel, settings: Mapping[str, Any], trained: Mapping[str, int]
    ) -> dict[str, int]:
        """Ids of bos, eos, unk and pad: by their texts in `settings`, else config.json, else `trained`.

        One without a row is none.

        Raises:
            FileError: an id beyond the vocabulary.
        """
        found = {}
        for name in SPECIAL_KEYS:
            number = self._named(settings.get(f"{name}_token"))
            number = model.token_ids.get(name, trained.get(name, -1)) if number is None else number
            if number >= max(self.n_known, len(self.tokens)):
                bound = f"the vocabulary has {len(self.tokens)} tokens"
                raise FileError(f"{self.model_dir}: {name} id", number, bound, "correct config.json")
            if 0 <= number < len(self.tokens):
                found[name] = number
        return found

    def _named(self, token: Any) -> int | None:
        text = token.get("content") if isinstance(token, dict) else token
        wanted = text.encode(errors="replace") if isinstance(text, str) else b""
        return self.tokens.index(wanted) if wanted in self.tokens else None


def _retyped(piece: Token | None, added: Token) -> Token:
    """A token that was added, which may be a piece already: what stands for bytes or the unknown stays it."""
    text, kind = added
    if piece is None or piece[0] != text:
        return text, kind or USER_DEFINED
    return text, piece[1] if piece[1] in (UNKNOWN, BYTE) or kind == UNSAID else kind


def padding(number: int) -> bytes:
    """The token of an id that no text becomes, as llama.cpp writes it."""
    return b"[PAD%d]" % number


def shown(text: bytes) -> str:
    """A token for a message."""
    return repr(text.decode(errors="replace"))[:60]


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


def added_tokens(model_dir: Path, settings: Mapping[str, Any], listed: Any) -> Tokens:
    """Text and type by id of the tokens that were added, as the file says that knows most.

    Those are control tokens if they are special or written `<|so|>`, else user-defined, as llama.cpp has it.

    Args:
        settings: tokenizer_config.json, whose `added_tokens_decoder` counts.
        listed: `added_tokens` of tokenizer.json, which counts before added_tokens.json.
    """
    found: Tokens = {}
    for text, number in optional_json(model_dir / "added_tokens.json").items():
        if type(number) is int and 0 <= number <= MAX_ID:
            found[number] = _added(text, None, f"{model_dir}: added token {number}")
    for entry in listed if isinstance(listed, list) else [listed] if listed else []:
        token, content = (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if type(token) is not int or not 0 <= token <= MAX_ID or not isinstance(content, str):
            what, bound = f"{model_dir / 'tokenizer.json'}: added_tokens", "an id and a text each"
            raise FileError(what, repr(entry)[:60], bound, AGAIN)
        found[token] = _added(content, entry.get("special") is True, f"{model_dir}: added token {token}")
    decoder = settings.get("added_tokens_decoder")
    for key, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if key.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            what, special = f"{model_dir}: added token {key}", entry.get("special") is True
            found[min(int(key), MAX_ID)] = _added(entry["content"], special, what)
    return found


def _added(text: str, special: bool | None, what: str) -> Token:
    token = utf8(text, what)
    if special or (token.startswith(b"<|") and token.endswith(b"|>")):
        return token, CONTROL
    return token, UNSAID if special is None else USER_DEFINED


def special_id_metadata(ids: Mapping[str, int]) -> dict[str, MetadataValue]:
    """Their keys."""
    return {f"tokenizer.ggml.{SPECIAL_KEYS[name]}": uint32(number) for name, number in ids.items()}
