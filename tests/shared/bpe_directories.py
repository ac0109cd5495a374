"""Hugging Face directories with a trained byte-level BPE tokenizer, and what their conversion gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers

from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.errors import HotcoldError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert

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


def save_slow(library: Tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt instead of tokenizer.json."""
    library.model.save(str(folder))
    (folder / "tokenizer.json").unlink()


def odd_conversion(folder: Path) -> tuple[Any, dict[str, Any], str]:
    """What is converted, and the one warning of what is odd."""
    out = folder / "out.gguf"
    (warning,) = convert(folder, None, out, "f16", force=True).warnings
    assert warning.startswith("odd vocabulary (")
    return (*converted(folder), warning)


def nth_piece(library: Tokenizer, number: int) -> str:
    """A piece of plain letters that a merge makes."""
    products = ["".join(merge) for merge in json.loads(library.to_str())["model"]["merges"]]
    return [text for text in products if text.isascii() and text.isalpha()][number]
