r"""Finds llama.cpp's name (`tokenizer.ggml.pre`) for how a tokenizer.json cuts text into words.

llama.cpp compares a hash of some encoded text; here the description itself is compared, step by step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Step = tuple[Any, ...]

# \p{N} of these two differs in how many digits make a word
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS: Step = ("ByteLevel", True)
BYTES: Step = ("ByteLevel", False)

# steps, the normalizers that may come first, and whether whole words in the vocabulary ignore merges
DESCRIPTIONS: dict[str, tuple[tuple[Step, ...], tuple[str, ...], bool]] = {
    "gpt-2": ((WORDS,), (), False),
    "smollm": ((("Digits", True), WORDS), (), False),
    "falcon": (
        (("Punctuation", "Contiguous"), WORDS, ("Digits", False), ("Split", "[0-9][0-9][0-9]")),
        (),
        False,
    ),
    "llama-bpe": ((("Split", CL100K % r"\p{N}{1,3}"), BYTES), (), True),
    "qwen2": ((("Split", CL100K % r"\p{N}"), BYTES), ("NFC",), False),
}
BY_CLASS = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}  # of a tokenizer without tokenizer.json
NAMES = ("default", "gpt-2", "llama-bpe", "falcon", "smollm", "qwen2", "opt")


def recognise(tokenizer: Mapping[str, Any]) -> str | None:
    """The name that fits a tokenizer.json, or None."""
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    normalizers = tuple(normalizer_names(tokenizer))
    model = tokenizer.get("model")
    ignore_merges = isinstance(model, dict) and model.get("ignore_merges") is True
    for name, (wanted, allowed, ignoring) in DESCRIPTIONS.items():
        if steps == wanted and set(normalizers) <= set(allowed) and ignore_merges is ignoring:
            return name
    return None


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether words become the characters that stand for bytes."""
    return any(step in (WORDS, BYTES) for step in _steps(tokenizer.get("pre_tokenizer")))


def normalizer_names(tokenizer: Mapping[str, Any]) -> list[str]:
    """The types of the normalizers, in order."""
    return [str(part.get("type")) for part in flattened(tokenizer.get("normalizer"), "normalizers")]


def describe(tokenizer: Mapping[str, Any]) -> str:
    """The steps in words, for a message."""
    steps = [" ".join(map(str, step)) for step in _steps(tokenizer.get("pre_tokenizer"))]
    return ", then ".join([*normalizer_names(tokenizer), *steps]) or "no pre_tokenizer"


def flattened(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The parts of a "Sequence", or the part itself; `inner` is what the sequence calls them."""
    pending = [part]
    while pending:
        first = pending.pop(0)
        if not isinstance(first, dict):
            continue
        parts = first.get(inner)
        if first.get("type") == "Sequence" and isinstance(parts, list):
            pending = parts + pending
        else:
            yield first


def _steps(pre_tokenizer: Any) -> Iterator[Step]:
    """Each step as its type and what decides how it cuts."""
    for part in flattened(pre_tokenizer, "pretokenizers"):
        kind = part.get("type")
        if kind == "ByteLevel" and not part.get("add_prefix_space", True):
            yield (kind, part.get("use_regex", True) is True)
        elif kind == "Digits":
            yield (kind, part.get("individual_digits") is True)
        elif kind == "Punctuation":
            yield (kind, part.get("behavior", "Isolated"))
        elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert", False):
            pattern = part.get("pattern")
            yield (kind, pattern.get("Regex") if isinstance(pattern, dict) else None)
        else:
            yield ("other", str(kind))
