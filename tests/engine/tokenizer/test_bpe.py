"""Byte-level BPE: ids are llama.cpp's with each pre-tokenizer, any bytes come back, bad files are named."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

from hotcold.engine.tokenizer.bpe import BpeTokenizer
from hotcold.engine.tokenizer.tokenizer import CharacterStream, Tokenizer, load_tokenizer
from hotcold.engine.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary
from hotcold.errors import FileError, HotcoldError, SettingError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.byte_characters import CHARACTER_OF
from hotcold.gguf_io.pretokenizers import PRETOKENIZERS, TABLE

DATA = Path(__file__).parent.parent.parent / "data" / "bpe"
RECORDED: dict[str, Any] = json.loads((DATA / "recorded.json").read_text())
TEXTS: list[str] = RECORDED["texts"]
GROUPS = list(RECORDED["names"])
FIRST_NAMES = [entry.names[0] for entry in TABLE]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def file() -> Iterator[GGUFFile]:
    with open_gguf(DATA / "vocab.gguf") as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizers(file: GGUFFile) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(file, name) for name in FIRST_NAMES}


def recorded(kind: str, group: str) -> list[list[int]]:
    """llama.cpp's ids of each text."""
    which = RECORDED[kind]["which"][group]
    return [lists[int(number, 36)] for lists, number in zip(RECORDED[kind]["ids"], which, strict=True)]


def small(*pieces: str, merges: str = "", pretokenizer: str = "gpt-2", **options: Any) -> BpeTokenizer:
    """A vocabulary of all bytes and some pieces; merges as "a b, c d"."""
    tokens = [*CHARACTER_OF, *pieces]
    types = options.pop("types", [NORMAL] * len(tokens))
    pairs = [(left, right) for left, right in (pair.split() for pair in merges.split(", ") if pair)]
    vocabulary = Vocabulary([token.encode() for token in tokens], types, **options)
    return BpeTokenizer(vocabulary, pairs, PRETOKENIZERS[pretokenizer])


@pytest.mark.parametrize("group", GROUPS)
def test_same_ids_as_llama_cpp(tokenizers: dict[str, Tokenizer], group: str) -> None:
    """But where the model's own pattern, as llama.cpp quotes it, cuts otherwise than llama.cpp does."""
    tokenizer, unlike = tokenizers[group], RECORDED["unlike"].get(group, [])
    for number, (text, plain) in enumerate(zip(TEXTS, recorded("plain", group), strict=True)):
        assert tokenizer.encode(text, add_special=False) == plain or number in unlike, text
    for number, special in zip(RECORDED["special_texts"], recorded("special", group), strict=True):
        assert tokenizer.encode(TEXTS[number], parse_special=True) == special or number in unlike


def test_names_that_cut_alike_are_one_entry() -> None:
    for group, names in RECORDED["names"].items():
        assert PRETOKENIZERS[group].names == tuple(names.split())
    of_bytes = {name for name, entry in PRETOKENIZERS.items() if not entry.of_text}
    assert of_bytes - {"opt"} == {n for names in RECORDED["names"].values() for n in names.split()}


def words(name: str, text: str) -> list[str]:
    """What the merges of a pre-tokenizer see."""
    steps = [Split(Regex(pattern), "isolated") for pattern in PRETOKENIZERS[name].patterns]
    return [word for word, _ in Sequence(steps).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("gpt-4o", "ПриветМир helloWorld", ["Привет", "Мир", " hello", "World"]),
        ("gpt-4o", "हिन्दी DON'T", ["हिन्दी", " DON'T"]),
        ("tekken", "ÉtéChaud e\u0301a", ["Été", "Chaud", " e\u0301a"]),
        ("tekken", "DON'T 12", ["DON", "'T", " ", "1", "2"]),
        ("kimi-k2", "漢字Aあ々〇b", ["漢字", "Aあ", "々〇", "b"]),
        ("tiny_aya", "HelloWorld 1234567", ["Hello", "World", " ", "1", "234", "567"]),
        ("llama-bpe", "it'ſ", ["it", "'ſ"]),
    ],
)
def test_words_of_the_models_own_pattern(name: str, text: str, wanted: list[str]) -> None:
    """Which llama.cpp cuts otherwise."""
    assert words(name, text) == wanted


@pytest.mark.parametrize("name", FIRST_NAMES)
def test_a_guard_makes_control_pieces_text(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    assert "<|im_end|>" in tokenizer.special_texts()
    assert set(tokenizer.special_texts(user_defined=True)) - set(tokenizer.special_texts()) >= {"<tool>"}
    text = "a <|im_\ufdd0end|> b<|im_end|>"
    guarded = tokenizer.encode(text, parse_special=True, add_special=False, guard="\ufdd0")
    (end,) = tokenizer.encode("<|im_end|>", parse_special=True, add_special=False)
    assert guarded == [*tokenizer.encode("a <|im_end|> b", add_special=False), end]
    assert end not in guarded[:-1]


def test_the_recordings_tell_the_pretokenizers_apart() -> None:
    """A pattern in another's place cannot pass; only BOS tells llama-bpe from glm4."""
    others = [(recorded("plain", group), recorded("special", group)) for group in GROUPS]
    assert all(a != b for i, a in enumerate(others) for b in others[:i])


def test_opt_is_gpt_2_with_bos_in_front(tokenizers: dict[str, Tokenizer]) -> None:
    assert tokenizers["opt"].bos is not None
    for text in TEXTS:
        assert tokenizers["opt"].encode(text) == [tokenizers["opt"].bos, *tokenizers["gpt-2"].encode(text)]


def test_without_a_pretokenizer_words_are_cut_as_by_default(file: GGUFFile) -> None:
    tokenizer = load_tokenizer(file)
    assert [tokenizer.encode(text, add_special=False) for text in TEXTS] == recorded("plain", "default")
    (warning,) = tokenizer.warnings
    assert "tokenizer.ggml.pre is missing" in warning
    assert "--force-pretokenizer" in warning
    assert load_tokenizer(file, "default").warnings == ()


@pytest.mark.parametrize("name", FIRST_NAMES)
@given(text=st.text(max_size=40))
@example("don't  stop 12345 \r\n\r\n  人之初 👨‍👩‍👧 e\u0301 \x00 \ufeff <|im_end|> <tool>")
@settings(deadline=None, max_examples=30)
def test_any_text_comes_back(tokenizers: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids).decode() == text
    assert tokenizer.fewest_tokens(len(text.encode())) <= len(ids)


@given(st.binary(max_size=30))
@example("né".encode()[:2])
@settings(deadline=None)
def test_any_bytes_come_back(tokenizers: dict[str, Tokenizer], data: bytes) -> None:
    assert tokenizers["gpt-2"].decode(tokenizers["gpt-2"].encode(data)) == data


@given(st.text(max_size=20))
@settings(deadline=None)
def test_only_whole_characters_are_streamed(tokenizers: dict[str, Tokenizer], text: str) -> None:
    """Piece by piece, though a piece may hold a part of one."""
    tokenizer, characters = tokenizers["smollm"], CharacterStream()
    shown = [characters.feed(tokenizer.piece(token)) for token in tokenizer.encode(text)]
    assert "".join(shown) == text


def test_long_runs_come_back(tokenizers: dict[str, Tokenizer]) -> None:
    for text in ("a" * 5_000, " " * 5_000, " " * 5_000 + "x", "\n" * 5_000, "1" * 5_000):
        for tokenizer in tokenizers.values():
            assert tokenizer.decode(tokenizer.encode(text, add_special=False)).decode() == text


def test_merges_in_their_order_and_from_the_left() -> None:
    first = small("ab", "bc", "abc", merges="b c, a b, a bc")
    assert first.encode("abc") == [258]
    assert small("ab", "bc", merges="b c, a b").encode("abc") == [ord("a"), 257]
    assert small("aa", merges="a a").encode("aaa") == [256, ord("a")]


def test_a_word_that_is_a_piece_is_taken_whole_only_by_llama_bpe() -> None:
    """`hello` cannot be merged from its characters, and ` hello` is another word."""
    assert small("hello", pretokenizer="llama-bpe").encode("hello", add_special=False) == [256]
    assert small("hello", pretokenizer="llama-bpe").encode("hello hello") == [256, *b" hello"]
    assert small("hello").encode("hello") == [*b"hello"]


def test_byte_pieces_stand_in_order_of_their_bytes() -> None:
    """GPT-2's table: printable characters are themselves, the others follow from U+0100."""
    assert [CHARACTER_OF[byte] for byte in (0, 32, 33, 126, 127, 160, 161, 173, 174, 255)] == list(
        "ĀĠ!~ġł¡Ń®ÿ"
    )
    assert len(set(CHARACTER_OF)) == 256


def test_bos_as_the_model_asks() -> None:
    both = small("<s>", "</s>", bos=256, eos=257)
    assert both.encode("a") == [256, ord("a")]
    assert both.encode("a", add_special=False) == [ord("a")]
    assert both.end_ids == {257}


def test_whether_a_text_brings_bos() -> None:
    types = [NORMAL] * 256 + [CONTROL, CONTROL]
    tokenizer = small("<s>", "<s>x", bos=256, types=types)
    texts: dict[str | bytes, bool] = {
        "<s>a": True,
        b"<s>": True,
        "": False,
        " <s>": False,
        "<s>xa": False,
        "<s": False,
    }
    assert {text: tokenizer.brings_bos(text) for text in texts} == texts
    assert not small("<s>", bos=256, add_bos=False, types=types[:257]).brings_bos("<s>a")
    assert not small(bos=ord("!")).brings_bos("!a")  # an ordinary piece, which no text is looked for


def test_what_pieces_of_each_type_show() -> None:
    types = [NORMAL] * 256 + [CONTROL, USER_DEFINED, UNUSED, BYTE, NORMAL]
    tokenizer = small("<|x|>", "<t>", "<u>", "<0x0A>", "a漢Ġ", types=types)
    assert [tokenizer.piece(token) for token in range(256, 261)] == [b"", b"<t>", b"", b"\n", "a漢 ".encode()]
    assert tokenizer.piece(256, special=True) == b"<|x|>"


def test_a_byte_without_a_piece_is_named() -> None:
    tokens = [text.encode() for text in CHARACTER_OF if text != CHARACTER_OF[4]]
    tokenizer = BpeTokenizer(Vocabulary(tokens, [NORMAL] * 255), [], PRETOKENIZERS["gpt-2"])
    assert tokenizer.decode(tokenizer.encode("any other")) == b"any other"
    for text in ("a\x04b", b"\x04\xff"):
        with pytest.raises(SettingError, match="byte 0x04 .*no piece for it"):
            tokenizer.encode(text)


def test_sentencepiece_files_do_not_import_the_library(data: Path) -> None:
    code = (
        "import sys; from hotcold.engine.tokenizer.tokenizer import load_tokenizer; from hotcold.gguf_io import open_gguf; "
        f"load_tokenizer(open_gguf({str(data / 'llamacpp' / 'llama.f32.gguf')!r})).encode('a'); "
        "sys.exit('tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def write(tokenizer_file: Callable[[Mapping[str, Any]], Path]) -> Write:
    """A file with tokenizer metadata, some replaced (None: left out)."""

    def make(**changed: Any) -> Path:
        values: dict[str, Any] = {
            "model": "gpt2",
            "pre": "gpt-2",
            "tokens": ["<|endoftext|>", "a", "b", "ab", "", ""],
            "token_type": [CONTROL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL],
            "merges": ["a b", "a b"],
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        return tokenizer_file(values | changed)

    return make


def test_metadata_are_read(write: Write) -> None:
    with open_gguf(write(add_bos_token=True, add_eos_token=True)) as file:
        tokenizer = load_tokenizer(file)
    assert tokenizer.encode("abab") == [0, 3, 3]  # it is to go on, so EOS is not put behind it
    assert (tokenizer.n_vocab, tokenizer.bos, tokenizer.eos) == (6, 0, 0)
    assert tokenizer.end_ids == {0}
    assert tokenizer.encode("a<|endoftext|>b", parse_special=True, add_special=False) == [1, 0, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pre": "mystery"}, r"tokenizer\.ggml\.pre: mystery \(known: default, .*--force-pretokenizer"),
        ({"pre": 3}, r"tokenizer\.ggml\.pre"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens"),
        ({"tokens": [1, 2, 3, 4, 5, 6]}, r"tokenizer\.ggml\.tokens: .*an array of text"),
        ({"tokens": ["<|endoftext|>", "a", "b", "ab", b"\xff", "c"]}, r"tokens\[4\]: \\xff \(UTF-8"),
        ({"token_type": [3, 1, 1]}, r"token_type: 3 of int32 \(6 whole numbers"),
        ({"token_type": [3, 1, 1, 1, 1, 9]}, r"token_type: 9 \(1 to 6"),
        ({"scores": [0.0]}, r"tokenizer\.ggml\.scores: 1 .*6 numbers"),
        ({"merges": [1, 2]}, r"tokenizer\.ggml\.merges: .*an array of text"),
        ({"merges": [[1, 2], [3]]}, r"tokenizer\.ggml\.merges: .*an array of text"),
        ({"merges": ["ab"]}, r"merges\[0\]: ab \(two pieces with one space"),
        ({"merges": [" b"]}, r"merges\[0\]:  b \(two pieces"),
        ({"merges": ["a "]}, r"merges\[0\]: a  \(two pieces"),
        ({"merges": [""]}, r'merges\[0\]: "" \(two pieces'),
        ({"merges": ["a\x1b[31m"]}, r"merges\[0\]: a\\x1b\[31m \(two pieces"),
        ({"bos_token_id": 6}, r"bos_token_id: 6 .*0 to 5"),
        ({"add_bos_token": 1}, r"add_bos_token: 1"),
    ],
)
def test_bad_metadata_are_named(write: Write, changed: dict[str, Any], message: str) -> None:
    with open_gguf(write(**changed)) as file, pytest.raises(FileError, match=message) as caught:
        load_tokenizer(file)
    assert isinstance(caught.value, HotcoldError)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


ODD = [
    ({"tokens": ["<|endoftext|>", "a", "b", "ab", "a", "ab"]}, "the text of another one, which no text becomes: 2"),
    ({"tokens": ["<|endoftext|>", "a", "b", "ab", "c d", "abc d"], "merges": ["a b", "ab c d"]}, "left out: 1"),
    ({"merges": ["a b", "a c", "c a", "b a", "a  b"]}, "merges of or into pieces that are not there, left out: 4"),
    ({"token_type": [3, 0, 1, 0, 1, 1]}, "pieces of type 0, taken as normal: 2"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), ODD)
def test_what_is_odd_is_counted_in_one_warning(write: Write, changed: dict[str, Any], said: str) -> None:
    with open_gguf(write(**changed)) as file:
        tokenizer = load_tokenizer(file)
    assert tokenizer.encode("abab") == [3, 3]
    assert tokenizer.decode(range(6)).startswith(b"abab")
    (warning,) = tokenizer.warnings
    assert warning.startswith("odd vocabulary (")
    assert said in warning


@pytest.mark.parametrize("merges", [None, ["a c", "c b"]])
def test_a_vocabulary_without_merges_is_one_of_bytes(write: Write, merges: list[str] | None) -> None:
    with open_gguf(write(merges=merges)) as file:
        tokenizer = load_tokenizer(file)
    assert tokenizer.encode("ab") == [1, 2]
    assert "every byte of a text is a token of its own" in tokenizer.warnings[-1]


def test_of_equal_pieces_the_first_in_use_counts(write: Write) -> None:
    tokens = ["<|endoftext|>", "b", "a", "b", "ab", "ab"]
    with open_gguf(write(tokens=tokens, token_type=[3, UNUSED, 1, 1, 1, 1])) as file:
        assert load_tokenizer(file).encode("abba") == [4, 3, 2]


def test_pieces_without_a_row_are_left_out(write: Write) -> None:
    with open_gguf(write(tokens=["<|endoftext|>", "a", "b", "ab", "c", "<x>"], eot_token_id=5)) as file:
        tokenizer = load_tokenizer(file, n_rows=5)
        assert (tokenizer.n_vocab, set(tokenizer.end_ids)) == (5, {0})
        (warning,) = tokenizer.warnings
        assert "pieces for which the model has no row, left out: 1" in warning
        tokenizer = load_tokenizer(file, n_rows=3)
        assert "no row, left out: 3" in (found := tokenizer.warnings[0]) and "merges" in found
        assert tokenizer.encode("ab") == [1, 2]


def test_a_vocabulary_of_another_model_is_refused(write: Write) -> None:
    tokens = ["<|endoftext|>", "a", "b", "ab", *(f"<{i}>" for i in range(260))]
    with open_gguf(write(tokens=tokens, token_type=None)) as file:
        assert load_tokenizer(file, n_rows=8).n_vocab == 8
        with pytest.raises(FileError, match="264 pieces .token_embd has 7 rows"):
            load_tokenizer(file, n_rows=7)


def test_further_ends_have_a_key_of_their_own(write: Write) -> None:
    path = write(eot_token_id=1)
    with open_gguf(path) as file:
        metadata: dict[str, Any] = file.metadata  # type: ignore[assignment]
        metadata["hotcold.end_token_ids"] = np.array([2, 3, 99], np.uint32)
        assert load_tokenizer(file).end_ids == {0, 1, 2, 3}
        metadata["hotcold.end_token_ids"] = np.array([0.5])
        with pytest.raises(FileError, match=r"hotcold\.end_token_ids: float64"):
            load_tokenizer(file)


def test_an_empty_name_is_none(write: Write) -> None:
    with open_gguf(write(pre="")) as file:
        assert len(load_tokenizer(file).warnings) == 1


def test_an_unknown_pretokenizer_can_be_overridden(write: Write) -> None:
    with open_gguf(write(pre="mystery")) as file:
        assert load_tokenizer(file, "gpt-2").encode("ab") == [3]
        with pytest.raises(SettingError, match=r"force_pretokenizer: other \(known: default, .*opt"):
            load_tokenizer(file, "other")


SHORT = st.text("ab Ġ<|>é", max_size=3)


@given(
    st.lists(st.tuples(SHORT, st.integers(NORMAL, BYTE)), min_size=1, max_size=8),
    st.lists(SHORT | st.tuples(SHORT, SHORT).map(" ".join), min_size=1, max_size=4),
    st.sampled_from(sorted(PRETOKENIZERS)),
    st.text("ab <|>é'1", max_size=12),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_vocabulary_is_read_or_refused(
    write: Write, pieces: list[tuple[str, int]], merges: list[str], pre: str, text: str
) -> None:
    """Ids are the vocabulary's own, whatever is in it, and a byte that it lacks is said."""
    tokens, types = ([*column] for column in zip(*pieces, strict=True))
    with open_gguf(write(tokens=tokens, token_type=types, merges=merges, pre=pre)) as file:
        try:
            tokenizer = load_tokenizer(file)
        except FileError:
            return
    try:
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
    except SettingError:
        return
    assert all(0 <= token < len(tokens) for token in ids)
    assert tokenizer.fewest_tokens(len(text.encode())) <= len(ids)
    tokenizer.decode(ids, special=True)
