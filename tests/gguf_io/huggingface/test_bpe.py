"""Byte-level BPE vocabularies: the engine's ids against the tokenizers library's, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.errors import HotcoldError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.huggingface import pretokenizer as hf_pretokenizer
from hotcold.gguf_io.pretokenizers import PRETOKENIZERS

MakeModel = Callable[..., Any]  # the fixture hf_model

N_VOCAB = 640
TEXTS = [
    "Elizabeth hadn't seen 12345 of Mr. Darcy's 100000 letters; IT'S ALL WE'VE GOT!",
    "x = {'a': 3.14159, \"b\": [1,2]}  # tabs\t\tand\n\n  lines\r\n",
    "Größe, naïve, Привет мир, 人之初 2024年 👍🎉",
    "   leading and trailing   ",
    "",
]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
Split, Digits = pre_tokenizers.Split, pre_tokenizers.Digits
CL100K = (  # as in the tokenizer.json files of Llama 3 and Qwen2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def sequence(*steps: Any) -> Any:
    return pre_tokenizers.Sequence(list(steps))


PRE: dict[str, Any] = {
    "gpt-2": GPT2,
    "smollm": sequence(Digits(individual_digits=True), GPT2),
    "falcon": sequence(
        pre_tokenizers.Punctuation("contiguous"),
        GPT2,
        Digits(individual_digits=False),
        Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ),
    "llama-bpe": sequence(Split(Regex(CL100K % r"\p{N}{1,3}"), "isolated"), BYTES),
    "qwen2": sequence(Split(Regex(CL100K % r"\p{N}"), "isolated"), BYTES),
    "dbrx": sequence(Split(Regex(CL100K % r"\p{N}{1,3}"), "isolated"), BYTES),
    "tekken": sequence(Split(Regex(TEKKEN), "isolated"), BYTES),
    "gpt-4o": sequence(Split(Regex(O200K), "isolated"), BYTES),
    "deepseek-v3": sequence(
        Split(Regex(r"\p{N}{1,3}"), "isolated"),
        Split(Regex("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), "isolated"),
        Split(Regex(DEEPSEEK_V3), "isolated"),
        BYTES,
    ),
}
IGNORE_MERGES = {"llama-bpe", "tekken"}


def trained(pre: Any, ignore_merges: bool = False) -> Tokenizer:
    """A vocabulary of the texts; three special tokens in front, two added behind."""
    library = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    library.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 20,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS * 3, trainer)
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    library.add_special_tokens(["<|eot_id|>"])
    return library


def with_bos(library: Tokenizer) -> Tokenizer:
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair=None, special_tokens=[("<|begin_of_text|>", 0)]
            ),
        ]
    )
    return library


SETTINGS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": {"content": "<|end_of_text|>"},
    "pad_token": "<pad>",
}


@pytest.fixture
def bpe(hf_model: MakeModel) -> Callable[..., Path]:
    """A directory with this tokenizer.json, and no tokenizer.model."""

    def make(library: Tokenizer, kind: str = "llama", **settings: Any) -> Path:
        folder: Path = hf_model(kind, vocab_size=N_VOCAB).folder
        (folder / "tokenizer.model").unlink()
        library.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | settings))
        return folder

    return make


def converted(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The engine's tokenizer of the converted file, and the `tokenizer.ggml` keys."""
    out = folder / "out.gguf"
    convert(folder, None, out, "f16", force=True, **options)
    with open_gguf(out) as file:
        stem = "tokenizer.ggml."
        keys = {
            key.removeprefix(stem): value
            for key, value in file.metadata.items()
            if key.startswith(("tokenizer.", "hotcold.end"))
        }
        keys = {
            key: value if isinstance(value, str | bool | int) else list(value) for key, value in keys.items()
        }
        return load_tokenizer(file), keys


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(HotcoldError) as caught:
        convert(folder, None, folder / "out.gguf", "f16", **options)
    assert not (folder / "out.gguf").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits tokenizer.json."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", list(PRE))
def test_ids_are_those_of_the_library(bpe: Callable[..., Path], name: str) -> None:
    library = trained(PRE[name], ignore_merges=name in IGNORE_MERGES)
    if name == "llama-bpe":
        library = with_bos(library)
    tokenizer, keys = converted(bpe(library))
    assert (keys["model"], keys["pre"]) == ("gpt2", name)
    assert keys["add_bos_token"] == (name == "llama-bpe")
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == library.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text.encode()
    special = "<|eot_id|>a<tool>b<|begin_of_text|>"
    ids = tokenizer.encode(special, add_special=False, parse_special=True)
    assert ids == library.encode(special, add_special_tokens=False).ids


def test_an_nfc_tokenizer_is_qwen2_and_the_loss_is_reported(bpe: Callable[..., Path]) -> None:
    library = trained(PRE["qwen2"])
    library.normalizer = normalizers.NFC()
    folder = bpe(library)
    assert converted(folder)[1]["pre"] == "qwen2"
    warnings = convert(folder, None, folder / "out.gguf", "f16", force=True).warnings
    assert warnings == ("tokenizer.json normalises text (NFC); GGUF cannot record that",)


def test_tokens_types_and_special_ids(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    _, keys = converted(bpe(library))
    n = library.get_vocab_size()
    assert keys["tokens"][:n] == [str(library.id_to_token(i)).encode() for i in range(n)]
    assert keys["tokens"][n:] == [b"[PAD%d]" % i for i in range(n, N_VOCAB)]
    tool, eot = (library.get_vocab()[text] for text in ("<tool>", "<|eot_id|>"))
    wanted = [3, 3, 3] + [1] * (n - 3) + [5] * (N_VOCAB - n)
    wanted[tool], wanted[eot] = 4, 3
    assert keys["token_type"] == wanted
    merges = json.loads(library.to_str())["model"]["merges"]
    assert keys["merges"] == [" ".join(pair).encode() for pair in merges]
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["padding_token_id"]) == (0, 1, 2)
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (False, False)
    assert "scores" not in keys


def test_merges_as_text_and_a_model_without_its_type(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2))
    before = converted(folder)[1]

    def older(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
        del tokenizer["model"]["type"]
        tokenizer["model"]["byte_fallback"] = True  # of no effect among bytes

    change(folder, older)
    assert converted(folder)[1] == before


def slow(library: Tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt instead of tokenizer.json."""
    library.model.save(str(folder))
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("llama", "gpt-2", {"tokenizer_class": "GPT2Tokenizer"}),
        ("llama", "gpt-2", {}),
        ("opt", "opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}),
        ("qwen2", "qwen2", {"tokenizer_class": "Qwen2TokenizerFast"}),
    ],
)
def test_vocab_and_merges(bpe: Callable[..., Path], kind: str, name: str, settings: dict[str, Any]) -> None:
    library = trained(PRE.get(name, GPT2))
    folder = bpe(library, kind, **settings)
    slow(library, folder)
    assert (folder / "merges.txt").read_text().startswith("#version")
    tokenizer, keys = converted(folder)
    assert keys["pre"] == name
    assert keys["token_type"][:4] == [3, 3, 1, 1]  # nothing says of <pad> that it was added
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == [0] * (name == "opt") + ids


def test_a_tokenizer_model_counts_first(hf_model: MakeModel) -> None:
    folder = hf_model("llama").folder
    trained(GPT2).save(str(folder / "tokenizer.json"))
    assert converted(folder)[1]["model"] == "llama"


def test_missing_files_of_a_vocabulary(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder = bpe(library)
    slow(library, folder)
    (folder / "merges.txt").unlink()
    assert "1 missing; merges.txt (fetch it" in refusal(folder)
    (folder / "vocab.json").unlink()
    assert "1 missing; tokenizer.model or tokenizer.json (fetch it" in refusal(folder)


def test_special_tokens_map_names_what_the_config_does_not(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    (folder / "special_tokens_map.json").write_text(
        '{"eos_token": "<pad>", "bos_token": "<|begin_of_text|>"}'
    )
    keys = converted(folder)[1]
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (0, 1)


def test_added_tokens_of_the_other_files(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder, n = bpe(library), library.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": n, "<b>": n + 2}))
    decoder = {
        str(n): {"content": "<a>", "special": True},
        str(n + 3): {"content": "<|c|>", "special": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"added_tokens_decoder": decoder}))
    keys = converted(folder)[1]
    assert keys["tokens"][n : n + 5] == [b"<a>", b"[PAD%d]" % (n + 1), b"<b>", b"<|c|>", b"[PAD%d]" % (n + 4)]
    assert keys["token_type"][n : n + 5] == [3, 5, 4, 3, 5]


def no_pretokenizer(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = None


UNKNOWN: list[tuple[Any, str]] = [
    (sequence(Digits(individual_digits=True), BYTES), "Digits True, then ByteLevel False"),
    (pre_tokenizers.ByteLevel(add_prefix_space=True), "other ByteLevel"),
    (sequence(Split(Regex(r"\p{N}{1,2}"), "isolated"), BYTES), r"Split \p{N}{1,2}, then ByteLevel False"),
    (sequence(Split(Regex(CL100K % r"\p{N}"), "removed"), BYTES), "other Split"),
    (sequence(BYTES, Split(Regex(r"\p{N}"), "isolated"), GPT2), "ByteLevel False, then Split"),  # of bytes
    (sequence(Split(Regex(r"\p{N}"), "removed", invert=True), GPT2), "other Split"),
    (pre_tokenizers.Whitespace(), "other Whitespace"),
]


@pytest.mark.parametrize(("pre", "text"), UNKNOWN)
def test_unknown_pretokenizers_are_described(bpe: Callable[..., Path], pre: Any, text: str) -> None:
    library = trained(GPT2)
    library.pre_tokenizer = pre
    folder = bpe(library)
    message = refusal(folder)
    assert f"pre-tokenizer: {text}" in message
    assert "--force-pretokenizer NAME says which one cuts text alike, known: default, gpt-2" in message
    assert converted(folder, force_pretokenizer="default")[1]["pre"] == "default"


def test_other_normalizers_are_not_known(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    library.normalizer = normalizers.Lowercase()
    assert "pre-tokenizer: Lowercase, then ByteLevel True (no known one)" in refusal(bpe(library))


def test_other_classes_of_slow_tokenizers_are_not_known(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder = bpe(library, tokenizer_class="OtherTokenizer")
    slow(library, folder)
    assert "vocab.json: pre-tokenizer: OtherTokenizer (no known one)" in refusal(folder)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "GPT2Tokenizer with add_prefix_space" in refusal(folder)
    assert converted(folder, force_pretokenizer="gpt-2")[1]["pre"] == "gpt-2"


def test_a_forced_pretokenizer_must_be_known_and_of_use(
    bpe: Callable[..., Path], hf_model: MakeModel
) -> None:
    assert "force_pretokenizer: mystery (known: default, gpt-2" in refusal(
        bpe(trained(GPT2)), force_pretokenizer="mystery"
    )
    folder = hf_model("llama", "spm").folder
    assert "tokenizer.model has no pre-tokenizer" in refusal(folder, force_pretokenizer="gpt-2")
    convert(folder, None, folder / "out.gguf", "f16")
    with pytest.raises(SettingError, match="a GGUF file keeps its own"):
        convert(folder / "out.gguf", None, folder / "q.gguf", "q8_0", force_pretokenizer="gpt-2")


@pytest.mark.parametrize("pre", ["qwen2", "gpt-4o"])
def test_only_ignore_merges_is_another(bpe: Callable[..., Path], pre: str) -> None:
    """Then the name that cuts alike is written, and said not to take whole words so."""
    folder = bpe(trained(PRE[pre], ignore_merges=True))
    assert converted(folder)[1]["pre"] == pre
    (warning,) = convert(folder, None, folder / "out.gguf", "f16", force=True).warnings
    assert f"ignore_merges is true, and GGUF's {pre} says the opposite" in warning


def test_patterns_are_compared_however_they_escape_the_same(bpe: Callable[..., Path]) -> None:
    pattern = (CL100K % r"\p{N}").replace(r"\r", "\r").replace(r"\n", "\n")
    short = pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
    for spelled in (pattern, short):
        library = trained(sequence(Split(Regex(spelled), "isolated"), BYTES))
        assert converted(bpe(library))[1]["pre"] == "qwen2"


@pytest.mark.parametrize("pre", ["qwen2", "gpt-4o"])
def test_matches_kept_and_the_rest_removed(bpe: Callable[..., Path], pre: str) -> None:
    """As in tokenizer.json files made from tiktoken's; nothing is between the matches."""
    pattern = {"qwen2": CL100K % r"\p{N}", "gpt-4o": O200K}[pre]
    library = trained(sequence(Split(Regex(pattern), "removed", invert=True), BYTES))
    tokenizer, keys = converted(bpe(library))
    assert keys["pre"] == pre
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids


def test_classes_of_slow_tokenizers_have_names_that_are_known() -> None:
    assert set(hf_pretokenizer.BY_CLASS.values()) <= set(PRETOKENIZERS)


BROKEN: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda t: t.pop("model"), "model type: missing"),
    (lambda t: t["model"].update(type="Unigram"), "model type: 'Unigram'"),
    (lambda t: (t["model"].update(byte_fallback=True), t.update(pre_tokenizer=None)), "spaces: kept as they are"),
    (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix: '</w>'"),
    (lambda t: t["model"].update(vocab=[]), "vocab: missing or empty"),
    (lambda t: t["model"]["vocab"].update(Ġx=True), "id of 'Ġx': True"),
    (lambda t: t["model"]["vocab"].update(Ġx=-1), "id of 'Ġx': -1"),
    (lambda t: t["model"]["vocab"].update(Ġx=2**40), "id of 'Ġx'"),
    (lambda t: t["model"]["vocab"].update(Ġx=2**30), f"1073741825 tokens (config.json: vocab_size {N_VOCAB})"),
    (lambda t: t["model"]["vocab"].update(Ġxyz=5), "id 5: "),
    (lambda t: t["model"]["vocab"].update({"\udc80": 639}), "must be whole characters"),
    (lambda t: t["model"].update(merges=None), "merges: missing"),
    (lambda t: t["model"]["merges"].insert(7, ["a"]), "merge 7: ['a']"),
    (lambda t: t["model"]["merges"].insert(7, ["a", ""]), "merge 7: ['a', '']"),
    (lambda t: t["model"]["merges"].insert(7, ["a", "b", "c"]), "merge 7: ['a', 'b', 'c']"),
    (lambda t: t["model"]["merges"].insert(7, "ab"), "merge 7: 'ab'"),
    (lambda t: t.update(added_tokens=[{"id": 1.5, "content": "x"}]), "added_tokens: {'id': 1.5"),
    (lambda t: t["added_tokens"].append({"id": 9, "content": "<new>"}), "added token 9: '<new>' (the vocabulary has"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "text"), BROKEN)
def test_damaged_vocabularies(
    bpe: Callable[..., Path], edit: Callable[[dict[str, Any]], object], text: str
) -> None:
    folder = bpe(trained(GPT2))
    change(folder, edit)
    assert text in refusal(folder)


def test_damaged_merges_files(bpe: Callable[..., Path]) -> None:
    library = trained(GPT2)
    folder = bpe(library)
    slow(library, folder)
    good = (folder / "merges.txt").read_bytes()
    for content, text in (
        (b"a  b\n", "merge 0: 'a  b'"),
        (b"\xff\xfe", "no UTF-8"),
        (b"a\n", "merge 0: 'a'"),
    ):
        (folder / "merges.txt").write_bytes(content)
        assert text in refusal(folder)
    (folder / "merges.txt").write_bytes(good.replace(b"\n", b"\r\n"))
    converted(folder)


def odd(folder: Path) -> tuple[Any, dict[str, Any], str]:
    """What is converted, and the one warning of what is odd."""
    out = folder / "out.gguf"
    (warning,) = convert(folder, None, out, "f16", force=True).warnings
    assert warning.startswith("odd vocabulary (")
    return (*converted(folder), warning)


ABSENT = "merges of or into pieces that are not there, left out: "
MERGES: list[tuple[Any, int]] = [
    ([["a", "b c"]], 1),
    ([["q\u1e9e", "7"], ["ẞ", "ß"]], 2),
    (["a b c", "q 7\u1e9e"], 2),
    ([["a", "\u1e9e"], ["a", "\u1e9e"], ["\u1e9e", "a"]], 3),
]


@pytest.mark.parametrize(("more", "n"), MERGES)
def test_merges_that_cannot_be_are_counted(bpe: Callable[..., Path], more: list[Any], n: int) -> None:
    folder = bpe(trained(GPT2))
    _, before = converted(folder)
    change(folder, lambda t: t["model"].update(merges=[*more, *t["model"]["merges"]]))
    tokenizer, after, warning = odd(folder)
    assert after == before
    assert ABSENT + str(n) in warning
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0].encode()


def made(library: Tokenizer, number: int) -> str:
    """A piece of plain letters that a merge makes."""
    products = ["".join(merge) for merge in json.loads(library.to_str())["model"]["merges"]]
    return [text for text in products if text.isascii() and text.isalpha()][number]


def test_a_pad_token_that_is_an_ordinary_piece_stays_one(bpe: Callable[..., Path]) -> None:
    """Whoever names it: config.json by its id, tokenizer_config.json by its text, as unknown, as BOS or EOS."""
    library = trained(GPT2)
    named = {"pad_token": "!", "unk_token": made(library, 0), "bos_token": "a", "eos_token": made(library, 1)}
    tokenizer, keys = converted(bpe(library, **named))
    for text in named.values():
        assert keys["token_type"][library.token_to_id(text)] == 1
        assert tokenizer.decode(tokenizer.encode(f"x{text}y")) == f"x{text}y".encode()
    assert keys["padding_token_id"] == library.token_to_id("!")


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id"])
def test_an_id_of_the_config_makes_no_control_piece(bpe: Callable[..., Path], name: str) -> None:
    library = trained(GPT2)
    folder = bpe(library)
    (folder / "tokenizer_config.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    exclamation = library.token_to_id("!")
    (folder / "config.json").write_text(json.dumps(config | {name: exclamation}))
    tokenizer, keys = converted(folder)
    assert keys["token_type"][exclamation] == 1
    assert tokenizer.encode("!", parse_special=True, add_special=False) == [exclamation]


@pytest.mark.parametrize(
    ("text", "special", "kind"), [("made", False, 4), ("!", True, 3), ("<tool>", True, 3)]
)
def test_an_added_token_that_is_there_already_says_its_type(
    bpe: Callable[..., Path], text: str, special: bool, kind: int
) -> None:
    """As in the library, which gives it the first id; no text becomes the second."""
    library = trained(GPT2)
    text = made(library, 0) if text == "made" else text
    folder, first = bpe(library), library.token_to_id(text)
    entry = {"id": 630, "content": text, "special": special, "normalized": False}
    change(folder, lambda t: t["added_tokens"].append(entry))
    tokenizer, keys, warning = odd(folder)
    assert (keys["tokens"][630], keys["token_type"][630]) == (b"[PAD630]", 5)
    assert "pieces with the text of another one, which no text becomes: 1" in warning
    assert keys["token_type"][first] == kind
    assert tokenizer.encode(text, parse_special=True, add_special=False) == [first]


@pytest.mark.parametrize("n", [1, 2, 20])
def test_pieces_without_a_row_are_left_out(hf_model: MakeModel, n: int) -> None:
    """Those of the vocabulary, with their merges, and those that were added."""
    library = trained(GPT2)
    n_vocab = library.get_vocab_size() - n
    folder = hf_model("llama", vocab_size=n_vocab).folder
    (folder / "tokenizer.model").unlink()
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>"}))
    tokenizer, keys, warning = odd(folder)
    assert f"pieces for which the model has no row, left out: {n}" in warning
    assert len(keys["tokens"]) == tokenizer.n_vocab == n_vocab
    assert (ABSENT in warning) == (n > 2)  # <|eot_id|> and <tool> are the last two
    assert "eos_token_id" not in keys
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize(
    ("config", "generation", "keys"),
    [
        ([1, 400], None, {"eot_token_id": 400}),
        (1, [1, 400], {"eot_token_id": 400}),
        ([1, 300], [301, 302, 400], {"eot_token_id": 400, "hotcold.end_token_ids": [300, 301, 302]}),
        ([1, 300, 301], 1, {"eot_token_id": 300, "hotcold.end_token_ids": [301]}),
        ([301, 1], [301, 9999, -1, True], {"eot_token_id": 301}),
        (1, 1, {}),
    ],
)
def test_every_id_that_ends_a_text_is_kept(
    bpe: Callable[..., Path], config: Any, generation: Any, keys: dict[str, Any]
) -> None:
    """400 is `<|eot_id|>`; the end of a turn has a key of llama.cpp's."""
    folder = bpe(trained(GPT2))
    assert trained(GPT2).token_to_id("<|eot_id|>") == 400
    values = json.loads((folder / "config.json").read_text()) | {"eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    tokenizer, found = converted(folder)
    assert found["eos_token_id"] == 1
    ends = {k: v for k, v in found.items() if k in ("eot_token_id", "eom_token_id", "hotcold.end_token_ids")}
    assert ends == keys
    wanted = {
        1,
        400,
        *(n for ids in (config, generation) for n in (ids if isinstance(ids, list) else [ids or 1])),
    }
    assert tokenizer.end_ids == {n for n in wanted if type(n) is int and 0 <= n < N_VOCAB}


@pytest.mark.parametrize("of", ["vocab", "vocab.json"])
def test_a_piece_that_is_listed_again_counts_once(bpe: Callable[..., Path], of: str) -> None:
    """With its last id, as in the library."""
    library = trained(GPT2)
    folder, text = bpe(library), made(library, 0)
    first = library.get_vocab()[text]
    if of == "vocab.json":
        slow(library, folder)
    path = folder / ("vocab.json" if of == "vocab.json" else "tokenizer.json")
    content = path.read_text()
    mark = f'"{text}":{first},' if f'"{text}":{first},' in content else f'"{text}": {first},'
    assert mark in content
    path.write_text(content.replace(mark, f"{mark}{json.dumps(text)}:630,"))
    tokenizer, keys, warning = odd(folder)
    assert "lists again, of which the last counts: 1" in warning
    assert (keys["tokens"][630], keys["tokens"][first]) == (text.encode(), b"[PAD%d]" % first)
    assert tokenizer.encode(text, add_special=False) == [630]


def test_the_only_end_that_is_named_is_eos(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 301]}))
    tokenizer, keys = converted(folder)
    assert (keys["eos_token_id"], keys["eot_token_id"]) == (300, 301)
    assert tokenizer.end_ids == {1, 300, 301, 400}  # two are known by their text


def test_chat_templates(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2), chat_template="{{ a }}")
    assert converted(folder)[1]["tokenizer.chat_template"] == "{{ a }}"
    several = [{"name": "default", "template": "{{ b }}"}, {"name": "tool_use", "template": "{{ c }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"chat_template": several}))
    keys = converted(folder)[1]
    assert keys["tokenizer.chat_template"] == "{{ b }}"
    assert keys["tokenizer.chat_template.tool_use"] == "{{ c }}"
    assert keys["tokenizer.chat_templates"] == [b"tool_use"]
    (folder / "chat_template.json").write_text('{"chat_template": "{{ d }}"}')
    assert converted(folder)[1]["tokenizer.chat_template"] == "{{ d }}"
    (folder / "chat_template.jinja").write_text("{{ é }}")
    assert converted(folder)[1]["tokenizer.chat_template"] == "{{ é }}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (7, "chat_template: 7 (text, or a list of names and templates)"),
        ([{"name": "default"}], "chat_template: {'name': 'default'}"),
        ([{"name": "a.b\n", "template": "x"}], "chat_template: {'name': 'a.b"),
        ("x" * ((1 << 20) + 1), "chat template default: 1048577 characters (at most 1048576 bytes)"),
        ("\udc80", "chat template default: '\\udc80' (must be whole characters)"),
    ],
)
def test_templates_that_are_refused(bpe: Callable[..., Path], content: Any, text: str) -> None:
    folder = bpe(trained(GPT2), chat_template=content)
    assert text in refusal(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja: no UTF-8" in refusal(folder)


def test_random_damage_gives_one_of_our_errors(bpe: Callable[..., Path]) -> None:
    """Values of tokenizer.json anywhere in the tree become something else."""
    folder = bpe(with_bos(trained(PRE["falcon"])))
    whole = json.loads((folder / "tokenizer.json").read_text())
    random = np.random.default_rng(5)
    others: list[Any] = [None, -1, 2**70, "x", "\udc80", [], {}, [[]], True, 0.5]
    refused = 0
    for _ in range(150):
        damaged = json.loads(json.dumps(whole))
        at = damaged
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = keys[int(random.integers(len(keys)))]
            if not isinstance(at[key], dict | list) or not at[key] or random.integers(4) == 0:
                break
            at = at[key]
        at[key] = others[int(random.integers(len(others)))]
        (folder / "tokenizer.json").write_text(json.dumps(damaged))
        try:
            convert(folder, None, folder / "out.gguf", "f16", force=True)
        except HotcoldError:
            refused += 1
    assert refused > 30
