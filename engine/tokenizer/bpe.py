"""BPE vocabularies (`tokenizer.ggml.model` = gpt2), run by the tokenizers library.

A piece is written in characters that stand for bytes (GPT-2's `bytes_to_unicode`), and merges name pairs
of pieces, most important first. Pieces of a few models are text instead, see `Pretokenizer.of_text`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hotcold.engine.tokenizer.pieces import PieceTokenizer
from hotcold.engine.tokenizer.vocabulary import (
    BYTE,
    Vocabulary,
    damaged,
    ids_of_texts,
    read_vocabulary,
    scores,
    shown,
    strings,
)
from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.byte_characters import BYTE_OF, CHARACTER_OF
from hotcold.gguf_io.oddities import ABSENT_MERGES, EQUAL_PIECES, Oddities
from hotcold.gguf_io.pretokenizers import DEFAULT, KNOWN, PRETOKENIZERS, Pretokenizer

Merge = tuple[str, str]
SPACE = "\u2581"
GEMMA = "gemma4"  # a kind of vocabulary, and its pre-tokenizer


class BpeTokenizer(PieceTokenizer):
    """A vocabulary and its encoder; `decode` gives the bytes of any text back."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: Sequence[Merge],
        pretokenizer: Pretokenizer,
        warnings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(vocabulary, warnings)
        ids = {text.decode(): token for text, token in ids_of_texts(self.tokens, self.types).items()}
        self._byte_ids = [ids.get(text) for text in self._texts_of_bytes()]
        self._encode = _library_encoder(ids, self.n_vocab, merges, pretokenizer)

    def _texts_of_bytes(self) -> Sequence[str]:
        """The pieces of single bytes."""
        return CHARACTER_OF

    def _normal_piece(self, text: bytes) -> bytes:
        """Bytes of a piece's characters; one that stands for no byte is itself."""
        characters = text.decode()
        try:
            return bytes([BYTE_OF[character] for character in characters])
        except KeyError:
            return b"".join(
                bytes([BYTE_OF[character]]) if character in BYTE_OF else character.encode()
                for character in characters
            )

    def _encode_text(self, text: str) -> list[int]:
        ids = self._encode(text)
        if None in self._byte_ids and self.n_vocab in ids:
            self._encode_bytes(text.encode())
        return ids

    def _encode_bytes(self, data: bytes) -> list[int]:
        ids = [token for byte in data if (token := self._byte_ids[byte]) is not None]
        if len(ids) < len(data):
            lost = next(byte for byte in data if self._byte_ids[byte] is None)
            raise SettingError(
                "text", f"byte 0x{lost:02X}", "the vocabulary has no piece for it", "leave it out"
            )
        return ids


class TextBpeTokenizer(BpeTokenizer):
    """One whose pieces are text; a character without a piece becomes those of its bytes."""

    def _texts_of_bytes(self) -> Sequence[str]:
        return [f"<0x{byte:02X}>" for byte in range(256)]

    def _normal_piece(self, text: bytes) -> bytes:
        return text.replace(SPACE.encode(), b" ")


def _library_encoder(
    ids: dict[str, int], n_vocab: int, merges: Sequence[Merge], pretokenizer: Pretokenizer
) -> Callable[[str], list[int]]:
    """The library's encoder. A byte without a piece comes out as the id behind the last, n_vocab."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    missing = "\ue000" * (1 + max(map(len, ids)))  # longer than, so none of, the pieces
    try:
        bpe = models.BPE(
            vocab=ids | {missing: n_vocab},
            merges=list(merges),
            unk_token=missing,
            ignore_merges=pretokenizer.ignore_merges,
            byte_fallback=pretokenizer.of_text,
        )
    except Exception as error:  # what the library raises has no type of its own
        bound = "the tokenizers library refuses it"
        raise FileError("vocabulary", str(error)[:120], bound, "convert the model again") from error
    library = Tokenizer(bpe)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pretokenizer.patterns]
    if pretokenizer.of_text:
        library.normalizer = normalizers.Replace(" ", SPACE)
        library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    else:
        of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, of_bytes])

    def encode(text: str) -> list[int]:
        found: list[int] = library.encode(text, add_special_tokens=False).ids
        return found

    return encode


def load(file: GGUFFile, force_pretokenizer: str | None = None, n_rows: int | None = None) -> BpeTokenizer:
    """The tokenizer of a file whose `tokenizer.ggml.model` is gpt2, or gemma4.

    Args:
        force_pretokenizer: one of `PRETOKENIZERS`, whatever the file says.
        n_rows: as in `read_vocabulary`.

    Raises:
        FileError: metadata that are missing or damaged, or a pre-tokenizer that is not known.
    """
    name, warnings = (force_pretokenizer, ()) if force_pretokenizer else _pretokenizer_name(file)
    pretokenizer = PRETOKENIZERS[name]
    oddities = Oddities()
    vocabulary = read_vocabulary(file, oddities, add_bos=pretokenizer.add_bos, n_rows=n_rows)
    if pretokenizer.of_text and BYTE not in vocabulary.types:
        bound = "its pieces are text, with <0xXX> for bytes; this vocabulary has none of those"
        raise FileError(f"{file.path.name}: pre-tokenizer", name, bound, "choose another")
    if "tokenizer.ggml.scores" in file.metadata:
        scores(file, len(vocabulary.tokens))
    tokens = _named(vocabulary.tokens)
    merges = _merges(file, _texts(file, tokens, oddities), oddities)
    warnings += oddities.warnings()
    if not merges:
        warnings += ("tokenizer.ggml.merges has none of use: every byte of a text is a token of its own",)
    kind = TextBpeTokenizer if pretokenizer.of_text else BpeTokenizer
    add_bos = vocabulary.add_bos or pretokenizer.always_bos
    return kind(replace(vocabulary, tokens=tokens, add_bos=add_bos), merges, pretokenizer, warnings)


def _pretokenizer_name(file: GGUFFile) -> tuple[str, tuple[str, ...]]:
    """What the file says, or the default and a warning."""
    if file.get_str("tokenizer.ggml.model", "") == GEMMA:
        return GEMMA, ()  # as llama.cpp, whatever else it says
    key = "tokenizer.ggml.pre"
    name = file.get_str(key, "")
    if not name:
        warning = (
            f"{key} is missing: words are cut as by `{DEFAULT}`; --force-pretokenizer NAME says otherwise"
        )
        return DEFAULT, (warning,)
    if name not in PRETOKENIZERS:
        next_step = "--force-pretokenizer NAME takes one of these, if it cuts text alike"
        raise FileError(f"{file.path.name}: {key}", name, KNOWN, next_step)
    return name, ()


def _named(tokens: Sequence[bytes]) -> list[bytes]:
    """The pieces; those without text get a name, as in llama.cpp, since ids are looked up by text."""
    return [text or b"[EMPTY_%d]" % token for token, text in enumerate(tokens)]


def _texts(file: GGUFFile, tokens: Sequence[bytes], oddities: Oddities) -> set[str]:
    """The pieces as text, all of them UTF-8."""
    try:
        texts = {text.decode() for text in tokens}
    except UnicodeDecodeError as error:
        bad = tokens.index(bytes(error.object))
        raise damaged(file, f"tokens[{bad}]", shown(tokens[bad]), "UTF-8") from None
    oddities.count(EQUAL_PIECES, len(tokens) - len(texts))
    return texts


def _merges(file: GGUFFile, texts: set[str], oddities: Oddities) -> list[Merge]:
    """Pairs of pieces that become one, each once: the first of equal ones counts, as in llama.cpp.

    A piece with a space in it is none of bytes, so no merge with more than one space comes about.
    """
    merges: dict[Merge, None] = {}
    written = strings(file, "merges") if "tokenizer.ggml.merges" in file.metadata else []
    for number, text in enumerate(written):
        if b" " not in text[1:-1]:
            bound = "two pieces with one space between them"
            raise damaged(file, f"merges[{number}]", shown(text), bound)
        left, _, right = text.decode(errors="backslashreplace").partition(" ")
        if left in texts and right in texts and left + right in texts and " " not in right:
            merges[left, right] = None
        else:
            oddities.count(ABSENT_MERGES)
    return list(merges)
