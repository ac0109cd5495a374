"""A tokenizer.json of the Llama kind, without tokenizer.model: ids are those of the libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from hotcold.engine.tokenizer.tokenizer import Tokenizer as OurTokenizer
from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.errors import HotcoldError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

MakeModel = Callable[..., Any]  # the fixture hf_model
Edit = Callable[[dict[str, Any]], object]
TINY = Path(__file__).parents[3] / "models" / "tiny-relu-llama"
SPACE = "\u2581"
TEXTS = [
    "It is a truth universally acknowledged, that a single man",
    "  two leading, three   inside, one behind ",
    "a\nb\tc 12345 人之初 👍 naïve",
    "",
]
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def of_sentencepiece(model: Path) -> dict[str, Any]:
    """A tokenizer.json of a tokenizer.model: each pair that makes a piece, by the score of what it makes."""
    original = SentencePieceProcessor(model_file=str(model))
    texts = [original.id_to_piece(n) for n in range(original.vocab_size())]
    ids = {text: n for n, text in enumerate(texts)}
    normal = {
        text
        for n, text in enumerate(texts)
        if not (original.is_control(n) or original.is_unknown(n) or original.is_byte(n))
    }
    pairs = [
        (original.get_score(ids[text]), ids[text[:at]], ids[text[at:]], (text[:at], text[at:]))
        for text in normal
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    specials = [n for n in range(len(texts)) if original.is_control(n) or original.is_unknown(n)]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": texts[n], "special": True, "single_word": False}
            | {"lstrip": False, "rstrip": False, "normalized": False}
            for n in specials
        ],
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        | {"vocab": ids, "merges": [list(pair[3]) for pair in pairs]},
    }


TOKENIZER = of_sentencepiece(TINY / "tokenizer.model")
N_VOCAB = len(TOKENIZER["model"]["vocab"])


@pytest.fixture
def directory(hf_model: MakeModel) -> Callable[..., Path]:
    """A directory with such a tokenizer.json, and no tokenizer.model."""

    def make(edit: Edit = lambda tokenizer: None, **settings: Any) -> Path:
        config = {"vocab_size": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2}
        folder: Path = hf_model("llama", **config).folder
        (folder / "tokenizer.model").unlink()
        tokenizer = json.loads(json.dumps(TOKENIZER))
        edit(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


def converted(folder: Path) -> tuple[OurTokenizer, tuple[str, ...]]:
    warnings = convert(folder, None, folder / "out.gguf", "f16", force=True).warnings
    with open_gguf(folder / "out.gguf") as file:
        return load_tokenizer(file), warnings


def metaspace(scheme: str, *, older: bool = False) -> Edit:
    says = {"add_prefix_space": scheme != "never"} if older else {"prepend_scheme": scheme, "split": False}
    part = {"type": "Metaspace", "replacement": SPACE} | says
    return lambda tokenizer: tokenizer.update(normalizer=None, pre_tokenizer=part)


def gemmas(tokenizer: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    tokenizer.update(normalizer=REPLACE, pre_tokenizer=split)


def as_text(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]


@pytest.mark.parametrize(
    ("edit", "prefix"),
    [
        (lambda tokenizer: None, True),
        (as_text, True),
        (metaspace("always"), True),
        (metaspace("first"), True),
        (metaspace("always", older=True), True),
        (metaspace("never"), False),
        (gemmas, False),
    ],
)
def test_ids_are_those_of_the_libraries(directory: Callable[..., Path], edit: Edit, prefix: bool) -> None:
    folder = directory(edit)
    tokenizer, warnings = converted(folder)
    assert warnings == ()
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    original = SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special=False)
        # the library's Metaspace takes a space of the text for that in front, sentencepiece does not
        if not (prefix and text.startswith(" ") and library.normalizer is None):
            assert ids == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids).decode() == text
        if prefix:
            assert ids == original.encode(text)


def test_pieces_of_text_without_bytes(directory: Callable[..., Path]) -> None:
    """What has no piece is unknown, each run of it, as the file says."""
    folder = directory(lambda tokenizer: tokenizer["model"].update(byte_fallback=False))
    tokenizer, warnings = converted(folder)
    assert warnings == ()
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*TEXTS[:2], "a 人之 b", "\n\n", "<0x0A>"):
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids


def test_types_and_special_ids(directory: Callable[..., Path]) -> None:
    def added(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append({"id": 300, "content": id_text(300), "special": False})

    def id_text(number: int) -> str:
        return next(str(t) for t, n in TOKENIZER["model"]["vocab"].items() if n == number)

    folder = directory(added)
    converted(folder)
    with open_gguf(folder / "out.gguf") as file:
        types = file.get_array("tokenizer.ggml.token_type")
        ids = [file.get_int(f"tokenizer.ggml.{name}_token_id") for name in ("unknown", "bos", "eos")]
    assert list(types[:3]) == [2, 3, 3]
    assert set(types[3:259]) == {6}
    assert [n for n in range(259, N_VOCAB) if types[n] != 1] == [300]
    assert ids == [0, 1, 2]


TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}


@pytest.mark.parametrize(
    ("settings", "template", "adds"),
    [
        ({}, None, False),
        ({"tokenizer_class": "LlamaTokenizerFast"}, None, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, TEMPLATE, True),
        ({"tokenizer_class": "LlamaTokenizer"}, {"type": "ByteLevel"}, False),
        ({"add_bos_token": False}, TEMPLATE, False),
        ({"add_bos_token": True}, None, True),
    ],
)
def test_bos_as_the_files_say(
    directory: Callable[..., Path], settings: dict[str, Any], template: Any, adds: bool
) -> None:
    folder = directory(lambda tokenizer: tokenizer.update(post_processor=template), **settings)
    assert converted(folder)[0].add_bos is adds


def test_what_sentencepiece_cannot_say_is_counted(directory: Callable[..., Path]) -> None:
    """A pair that no merge names and a piece that none makes."""

    def fewer(tokenizer: dict[str, Any]) -> None:
        merges = tokenizer["model"]["merges"]
        products = ["".join(pair) for pair in merges]
        several = next(text for text in products if products.count(text) == 2)
        once = next(text for text in products if products.count(text) == 1)
        merges.remove(merges[products.index(several)])
        merges.remove(next(pair for pair in merges if "".join(pair) == once))

    (warning,) = converted(directory(fewer))[1]
    assert "pieces that no merge makes, which a text may become all the same: 1" in warning
    assert "pairs that make a piece by no merge, which may be joined all the same: 1" in warning


def test_other_normalizers_are_reported(directory: Callable[..., Path]) -> None:
    parts = [{"type": "NFKC"}, PREPEND, REPLACE]
    normalizer = {"type": "Sequence", "normalizers": parts}
    (warning,) = converted(directory(lambda tokenizer: tokenizer.update(normalizer=normalizer)))[1]
    assert warning == "tokenizer.json normalises text (NFKC); GGUF cannot record that"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda t: t.update(normalizer=PREPEND), "spaces: kept as they are"),
        (
            lambda t: t.update(pre_tokenizer={"type": "Whitespace"}),
            "pre-tokenizer: Whitespace (Metaspace or none beside",
        ),
        (lambda t: t["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix: '##'"),
        (lambda t: t["model"].update(vocab={}), "vocab: missing or empty"),
        (lambda t: t["added_tokens"].append({"id": 300, "content": "<x>"}), "added token 300: '<x>'"),
    ],
)
def test_what_is_refused(directory: Callable[..., Path], edit: Edit, text: str) -> None:
    with pytest.raises(HotcoldError) as caught:
        converted(directory(edit))
    assert text in str(caught.value)
    assert caught.value.exit_code == 3


def test_no_pretokenizer_can_be_forced_on_it(directory: Callable[..., Path]) -> None:
    folder = directory()
    with pytest.raises(HotcoldError, match=r"tokenizer\.json has no pre-tokenizer"):
        convert(folder, None, folder / "out.gguf", "f16", force_pretokenizer="gpt-2")
