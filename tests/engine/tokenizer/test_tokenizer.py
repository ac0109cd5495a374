"""Ids are those of the original tokenizer.model and of llama.cpp; text comes back whole."""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotcold.engine.tokenizer.sentencepiece import SentencePieceTokenizer
from hotcold.engine.tokenizer.tokenizer import CharacterStream, Tokenizer, load_tokenizer
from hotcold.engine.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from hotcold.errors import FileError, HotcoldError, SettingError
from hotcold.gguf_io import open_gguf

TESTS = Path(__file__).parent.parent.parent
TINY = TESTS.parent / "models" / "tiny-relu-llama"
CASES = json.loads((TESTS / "data" / "llamacpp" / "tokens_spm.json").read_text())["cases"]
BYTES = [(f"<0x{byte:02X}>".encode(), BYTE) for byte in range(256)]


def tokenizer_of(path: Path) -> Tokenizer:
    with open_gguf(path) as file:
        return load_tokenizer(file)


@pytest.fixture(scope="module")
def golden() -> Tokenizer:
    return tokenizer_of(TESTS / "data" / "llamacpp" / "llama.f32.gguf")


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Tokenizer:
    return tokenizer_of(TINY / "tiny-relu-llama.q8_0.gguf")


@pytest.fixture(scope="module")
def original() -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))


def small(
    *pieces: tuple[bytes, int], add_space_prefix: bool = True, **options: Any
) -> SentencePieceTokenizer:
    """A vocabulary of `<unk>` and some pieces, later ones merging later."""
    tokens, types = zip((b"<unk>", UNKNOWN), *pieces, strict=True)
    scores = [-float(i) for i in range(len(tokens))]
    return SentencePieceTokenizer(
        Vocabulary(tokens, types, **options), scores, add_space_prefix=add_space_prefix
    )


@pytest.mark.parametrize("number", range(len(CASES)))
def test_same_ids_as_llama_cpp(golden: Tokenizer, number: int) -> None:
    case = CASES[number]
    flags = {name: case[name] for name in ("add_special", "parse_special")}
    assert golden.encode(base64.b64decode(case["bytes_b64"]), **flags) == case["ids"]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_same_text_as_llama_cpp(golden: Tokenizer, number: int) -> None:
    case = CASES[number]
    pieces = b"".join(golden.piece(token, special=True) for token in case["ids"])
    assert pieces == base64.b64decode(case["pieces_b64"])
    assert golden.decode(case["ids"], special=True) == base64.b64decode(case["detokenized_b64"])


@given(st.text(max_size=60))
@example("It is a truth universally acknowledged, that a single man")
@example("def f(x):\n    return {'a': x[0] ** 2}  # \t tabs\r\n")
@example("  two leading, three   inside, one behind ")
@example("人之初，性本善。 👨‍👩‍👧🇩🇪 é e\u0301 ﬁ ½ \x00 \ufeff \u2581")
@settings(deadline=None, max_examples=300)
def test_same_ids_as_the_original_library(tiny_tokenizer: Tokenizer, original: Any, text: str) -> None:
    expected = original.encode(text)
    assert tiny_tokenizer.encode(text, add_special=False) == expected
    assert tiny_tokenizer.encode(text) == [original.bos_id(), *expected]


def test_same_ids_on_a_long_text(tiny_tokenizer: Tokenizer, original: Any) -> None:
    text = (TINY / "valid_excerpt.txt").read_text()
    assert tiny_tokenizer.encode(text, add_special=False) == original.encode(text)


@pytest.mark.parametrize("case", json.loads((TINY / "reference.json").read_text())["tokenizer"], ids=repr)
def test_recorded_cases_of_the_bundled_model(tiny_tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    assert tiny_tokenizer.encode(case["text"], add_special=False) == case["ids"]
    assert tiny_tokenizer.decode(case["ids"]).decode() == case["decoded"]


@given(st.binary(max_size=40))
@example("né".encode()[:2])
@settings(deadline=None, max_examples=300)
def test_any_bytes_come_back(tiny_tokenizer: Tokenizer, data: bytes) -> None:
    """All but the sign for a space, which reads as a space."""
    expected = data.replace("\u2581".encode(), b" ")
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(data)) == expected


def test_a_command_lines_surrogates_are_its_bytes(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.encode("a\udcff") == tiny_tokenizer.encode(b"a\xff")
    assert tiny_tokenizer.encode("a\ud800")[-3:] == tiny_tokenizer.encode(b"a\xed\xa0\x80")[-3:]


def test_a_lead_byte_takes_along_what_it_announces() -> None:
    """As in llama.cpp: the bracket is a byte here, though the vocabulary has it."""
    vocabulary = small(*BYTES, ("\u2581".encode(), NORMAL), (b"(", NORMAL), add_space_prefix=False)
    assert vocabulary.encode(b"(\xc3(", add_special=False) == [258, 1 + 0xC3, 1 + ord("(")]


def test_special_pieces_longest_first_and_only_when_wanted() -> None:
    plain = [(bytes([c]), NORMAL) for c in b"<>ab"] + [("\u2581".encode(), NORMAL)]
    vocabulary = small(*plain, (b"<a>", CONTROL), (b"<a><b>", USER_DEFINED))
    assert vocabulary.encode("<a>b<a><b>", add_special=False) == [5, 1, 3, 2, 4, 7]
    assert vocabulary.encode("<a>b<a><b>", add_special=False, parse_special=True) == [6, 5, 4, 7]


def test_bos_as_the_model_asks() -> None:
    pieces = [(b"a", NORMAL), (b"<s>", CONTROL), (b"</s>", CONTROL)]
    both = small(*pieces, bos=2, eos=3, add_space_prefix=False)
    assert both.encode("a") == [2, 1]
    assert both.encode("a", add_special=False) == [1]
    neither = small(*pieces, bos=2, eos=3, add_bos=False, add_space_prefix=False)
    assert neither.encode("a") == [1]
    assert neither.end_ids == {3}


def test_a_vocabulary_that_the_library_alone_would_refuse() -> None:
    """Equal pieces (the last counts), an empty one, NUL, one that is no UTF-8, two unknown ones."""
    pieces = [
        (b"a", NORMAL),
        (b"a", NORMAL),
        (b"", NORMAL),
        (b"\xff", NORMAL),
        (b"<unk2>", UNKNOWN),
        (b"\0", NORMAL),
    ]
    vocabulary = small(*pieces, add_space_prefix=False)
    assert vocabulary.encode("a", add_special=False) == [2]
    assert vocabulary.piece(4) == b"\xff"


def test_bytes_need_byte_pieces() -> None:
    with pytest.raises(SettingError, match="no byte pieces"):
        small((b"a", NORMAL)).encode(b"\xff")


@given(
    st.lists(
        st.tuples(st.binary(max_size=3), st.sampled_from([NORMAL, CONTROL, USER_DEFINED, UNUSED])), max_size=9
    ),
    st.booleans(),
    st.binary(max_size=12),
    st.booleans(),
)
@settings(deadline=None)
def test_any_vocabulary_and_any_text(
    pieces: list[tuple[bytes, int]], with_bytes: bool, text: bytes, parse_special: bool
) -> None:
    """Ids are the vocabulary's own, the library's placeholders never come out, and the bound holds."""
    vocabulary = small(*(BYTES if with_bytes else []), *pieces)
    try:
        ids = vocabulary.encode(text, add_special=False, parse_special=parse_special)
    except SettingError:
        assert not with_bytes
        return
    assert all(0 <= token < vocabulary.n_vocab for token in ids)
    assert vocabulary.fewest_tokens(len(text)) <= len(ids)


def test_fewest_tokens_follow_the_longest_piece() -> None:
    vocabulary = small(*BYTES, (b"abcdefgh", NORMAL), add_space_prefix=False)
    assert [vocabulary.fewest_tokens(n) for n in (0, 1, 8, 9, 80)] == [0, 1, 1, 2, 10]
    assert small((b"a", NORMAL)).fewest_tokens(80) == 0  # any text may be one unknown piece


def test_the_unknown_piece_needs_no_text_of_its_own(write: "Write") -> None:
    """Its text is that of a later piece, or no UTF-8: the library is given another."""
    for tokens in (["a", "<s>", "</s>", "a"], [b"\xff", b"<s>", b"</s>", b"a"]):
        tokenizer = tokenizer_of(write(tokens=tokens, add_space_prefix=False))
        assert tokenizer.encode("aé") == [1, 3, 0]


def test_pieces_that_show_nothing() -> None:
    vocabulary = small((b"<s>", CONTROL), (b"[PAD]", UNUSED), (b"<tool>", USER_DEFINED))
    assert [vocabulary.piece(token) for token in range(4)] == [b"", b"", b"", b"<tool>"]
    assert vocabulary.piece(1, special=True) == b"<s>"


def test_only_whole_characters_are_streamed() -> None:
    characters = CharacterStream()
    assert [characters.feed(bytes([byte])) for byte in "é👍".encode()] == ["", "é", "", "", "", "👍"]


def test_broken_characters_are_replaced_as_soon_as_they_are_known() -> None:
    characters = CharacterStream()
    assert [characters.feed(part) for part in (b"\xf0\x9f", b"ab", b"\xff")] == ["", "\ufffdab", "\ufffd"]


Write = Callable[..., Path]


@pytest.fixture
def write(tokenizer_file: Callable[[Mapping[str, Any]], Path]) -> Write:
    """A file with tokenizer metadata, some replaced (None: left out)."""

    def make(**changed: Any) -> Path:
        tokens = ["<unk>", "<s>", "</s>", "a"]
        values: dict[str, Any] = {
            "model": "llama",
            "tokens": tokens,
            "scores": [0.0] * 4,
            "token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "add_bos_token": True,
        }
        return tokenizer_file(values | changed)

    return make


def test_metadata_are_read(write: Write) -> None:
    tokenizer = tokenizer_of(write(eot_token_id=3, add_space_prefix=False))
    assert tokenizer.encode("a") == [1, 3]
    assert tokenizer.end_ids == {2, 3}
    assert (tokenizer.n_vocab, tokenizer.bos, tokenizer.eos) == (4, 1, 2)


def test_eos_is_not_put_behind_a_text_that_is_to_go_on(write: Write) -> None:
    assert tokenizer_of(write(add_eos_token=True, add_space_prefix=False)).encode("a") == [1, 3]


@pytest.mark.parametrize("text", ["</s>", "<eos>"])
@pytest.mark.parametrize(("kind", "ends"), [(NORMAL, False), (CONTROL, True), (USER_DEFINED, True)])
def test_a_normal_piece_that_is_an_old_end_is_text(write: Write, text: str, kind: int, ends: bool) -> None:
    tokens = ["<unk>", "<s>", "a", text, "<", "/", "e", "o", "s", ">"]
    types = [2, 3, 1, kind, *[1] * 6]
    tokenizer = tokenizer_of(
        write(tokens=tokens, token_type=types, scores=[0.0] * 10, eos_token_id=1, add_space_prefix=False)
    )
    assert tokenizer.end_ids == ({1, 3} if ends else {1})
    assert tokenizer.piece(3) == (b"" if ends else text.encode())
    assert (3 in tokenizer.encode(f"a{text}", parse_special=True)) == ends


def test_a_thoughts_end_ends_no_text(write: Write) -> None:
    """In the vocabularies that end a message otherwise."""
    tokens = ["<unk>", "<s>", "</s>", "<|end|>", "<|return|>", "<|call|>"]
    for n, ends in ((4, {2, 3}), (5, {2, 3, 4}), (6, {2, 4, 5})):
        path = write(tokens=tokens[:n], token_type=[2, 3, 3, 3, 3, 3][:n], scores=[0.0] * n)
        assert tokenizer_of(path).end_ids == ends


def test_what_is_odd_is_counted_in_one_warning(write: Write) -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "a", "b", "", "", "c"]
    path = write(
        tokens=tokens, token_type=[2, 3, 3, 0, 1, 0, 1, 1, 1], scores=[0.0] * 9, add_space_prefix=False
    )
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file, n_rows=8)
    assert tokenizer.encode("ab") == [1, 4, 5]
    (warning,) = tokenizer.warnings
    assert "type 0, taken as normal: 2; pieces for which the model has no row, left out: 1; pieces" in warning
    assert "which no text becomes: 1)" in warning


def test_pieces_known_to_end_a_turn_end_it(write: Write) -> None:
    """Whatever their type, and though only one of them is the file's EOS."""
    tokens = ["<unk>", "<s>", "</s>", "<|im_end|>", "a"]
    tokenizer = tokenizer_of(write(tokens=tokens, token_type=[2, 3, 3, 1, 1], scores=[0.0] * 5))
    assert tokenizer.end_ids == {2, 3}
    assert tokenizer.piece(3) == b""


def test_a_pretokenizer_is_not_for_these(write: Write) -> None:
    with open_gguf(write()) as file, pytest.raises(SettingError, match="SentencePiece vocabulary"):
        load_tokenizer(file, "gpt-2")


def test_white_space_behind_phi3s_special_pieces_is_dropped() -> None:
    """Behind all but three; without the piece nothing is dropped, and what other models have stays."""
    pieces = [(b"<s>", CONTROL), (b"<|user|>", CONTROL), (b"a", NORMAL), ("▁".encode(), NORMAL)]
    pieces += [(b"<think>", USER_DEFINED)]
    one, other = (small(*pieces, add_space_prefix=False, drops_spaces=drops) for drops in (True, False))
    texts = ("<|user|>\n  a", "<s> a", "<think> \n<|user|>\n", " a")
    assert [one.encode(text, parse_special=True) for text in texts] == [[2, 3], [1, 4, 3], [5, 2], [4, 3]]
    assert other.encode(texts[0], parse_special=True) == [2, 0, 4, 4, 3]


@pytest.mark.parametrize(("name", "drops"), [("Phi-3-mini-4k", True), ("my phi3", True), ("Phi-4", False)])
def test_phi3_is_known_by_its_name(name: str, drops: bool, data: Path) -> None:
    with open_gguf(data / "llamacpp" / "llama.f32.gguf") as file:
        file.metadata = {**file.metadata, "general.name": name}
        ids = load_tokenizer(file).encode("</s>\nA", add_special=False, parse_special=True)
        plain = load_tokenizer(file).encode("</s>A", add_special=False, parse_special=True)
    assert (ids == plain) == drops


def test_minus_one_is_no_token(write: Write) -> None:
    assert tokenizer_of(write(bos_token_id=0xFFFFFFFF)).bos is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "t5"}, r"tokenizer\.ggml\.model: t5 \(known: llama, gpt2, gemma4\)"),
        ({"model": None}, r"tokenizer\.ggml\.model"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens"),
        ({"tokens": [1, 2, 3, 4]}, r"tokenizer\.ggml\.tokens"),
        ({"scores": None}, r"tokenizer\.ggml\.scores"),
        ({"scores": [0.0] * 3}, r"tokenizer\.ggml\.scores: 3 .*4 numbers"),
        ({"scores": ["a"] * 4}, r"tokenizer\.ggml\.scores"),
        ({"scores": [0.0, 0.0, 0.0, float("nan")]}, r"tokenizer\.ggml\.scores: nan"),
        ({"token_type": [2, 3, 3]}, r"tokenizer\.ggml\.token_type: 3 .*4 whole numbers"),
        ({"token_type": [2, 3, 3, -1]}, r"tokenizer\.ggml\.token_type: -1 \(1 to 6\)"),
        ({"token_type": [2, 3, 3, 7]}, r"tokenizer\.ggml\.token_type: 7 \(1 to 6\)"),
        ({"token_type": [1, 3, 3, 1]}, r"tokenizer\.ggml\.token_type: no unknown piece"),
        ({"token_type": [2, 3, 3, 6]}, r"tokenizer\.ggml\.tokens\[3\]: a \(byte pieces are <0x00>"),
        ({"tokens": ["<unk>", "<s>", "</s>", "<0x-1>"], "token_type": [2, 3, 3, 6]}, r"\[3\]: <0x-1> \("),
        ({"tokens": ["<unk>", "<s>", "</s>", "<0xZZ>"], "token_type": [2, 3, 3, 6]}, r"\[3\]: <0xZZ> \("),
        ({"tokens": ["<unk>", "<s>", "</s>", "<0x100>"], "token_type": [2, 3, 3, 6]}, r"\[3\]: <0x100> \("),
        ({"bos_token_id": 4}, r"tokenizer\.ggml\.bos_token_id: 4 .*0 to 3"),
        ({"eos_token_id": 99}, r"tokenizer\.ggml\.eos_token_id: 99"),
        ({"add_bos_token": 1}, r"tokenizer\.ggml\.add_bos_token: 1"),
    ],
)
def test_bad_metadata_are_named(write: Write, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        tokenizer_of(write(**changed))
    assert isinstance(caught.value, HotcoldError)
    assert caught.value.exit_code == 3
