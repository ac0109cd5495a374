r"""Finds llama.cpp's name (`tokenizer.ggml.pre`) for how a tokenizer.json cuts text into words.

llama.cpp compares a hash of some encoded text; here the description itself is compared, step by step,
with the patterns of `gguf_io/pretokenizers.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hotcold.gguf_io.huggingface.tokenizer_json import flattened, normalizer_names
from hotcold.gguf_io.pretokenizers import AFTER_BYTES, CONTRACTIONS, GPT2_WORDS, PUNCTUATION_RUN, TABLE

BY_CLASS = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}  # of a tokenizer without tokenizer.json
KEPT_NORMALIZERS = {"NFC"}  # GGUF cannot record it, and it leaves most text as it is
ESCAPES = {"\r": r"\r", "\n": r"\n", "\t": r"\t"}  # a pattern may hold either

TAKES_ALL = (r"|\s+", r"|\s{1}")  # letters, numbers, and other signs stand in front, in all of the table


@dataclass(frozen=True)
class Recognised:
    """The name that fits, and what does not quite fit, for a warning."""

    name: str
    warning: str = ""


def recognise(tokenizer: Mapping[str, Any]) -> Recognised | None:
    """The name that fits a tokenizer.json, or None."""
    if not is_byte_level(tokenizer) or not set(normalizer_names(tokenizer)) <= KEPT_NORMALIZERS:
        return None
    model = tokenizer.get("model")
    ignore_merges = isinstance(model, dict) and model.get("ignore_merges") is True
    return recognise_patterns(tuple(_patterns(tokenizer.get("pre_tokenizer"))), ignore_merges)


def recognise_patterns(patterns: tuple[str, ...], ignore_merges: bool) -> Recognised | None:
    """The name of what cuts text by these patterns; one that takes whole words alike comes first."""
    wanted = tuple(map(_comparable, patterns))
    fitting = [
        entry
        for entry in TABLE
        if any(wanted == tuple(map(_comparable, spelled)) for spelled in (entry.patterns, *entry.spelled))
    ]
    for entry in fitting:
        if entry.ignore_merges is ignore_merges:
            return Recognised(entry.names[0])
    if not fitting:
        return None
    name, says = fitting[0].names[0], "true" if ignore_merges else "false"
    return Recognised(
        name,
        f"ignore_merges is {says}, and GGUF's {name} says the opposite: "
        "words that are pieces without merges are cut otherwise",
    )


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether words become the characters that stand for bytes."""
    parts = flattened(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(part.get("type") == "ByteLevel" for part in parts)


def describe(tokenizer: Mapping[str, Any]) -> str:
    """The steps in words, for a message."""
    parts = flattened(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return ", then ".join([*normalizer_names(tokenizer), *map(_described, parts)]) or "no pre_tokenizer"


def _patterns(pre_tokenizer: Any) -> Iterator[str]:
    """Each step's pattern; what comes behind the step that makes bytes cuts their characters."""
    *parts, last = flattened(pre_tokenizer, "pretokenizers")
    for part in parts:
        yield from _step(part)
        if part.get("type") == "ByteLevel":
            yield AFTER_BYTES
    yield from _step(last)


def _step(part: Mapping[str, Any]) -> Iterator[str]:
    """The pattern by which a step cuts, "" if none does the same; none if it does not cut."""
    kind, pattern = part.get("type"), part.get("pattern")
    if kind == "ByteLevel":
        if part.get("add_prefix_space", True):
            yield ""
        elif part.get("use_regex", True) is True:
            yield GPT2_WORDS
    elif kind == "Digits":
        yield r"\p{N}" if part.get("individual_digits") is True else r"\p{N}+"
    elif kind == "Punctuation":
        yield PUNCTUATION_RUN if part.get("behavior") == "Contiguous" else ""
    elif kind == "Split":
        found = pattern.get("Regex") if isinstance(pattern, dict) else None
        yield found if isinstance(found, str) and _isolates(part, found) else ""
    else:
        yield ""


def _isolates(split: Mapping[str, Any], pattern: str) -> bool:
    """Whether matches and what lies between them become the words.

    Some files keep the matches and remove the rest: the same where nothing is between them.
    """
    how = (split.get("behavior"), split.get("invert", False) is True)
    return how == ("Isolated", False) or (how == ("Removed", True) and pattern.endswith(TAKES_ALL))


def _comparable(pattern: str) -> str:
    """A pattern as it is compared: the same characters escaped, contractions written the same way."""
    for character, escape in ESCAPES.items():
        pattern = pattern.replace(character, escape)
    for spelled in ("'(?i:[sdmt]|ll|ve|re)", "(?i:[sdmt]|'ll|'ve|'re)"):
        pattern = pattern.replace(spelled, CONTRACTIONS)
    return pattern


def _described(part: Mapping[str, Any]) -> str:
    kind, pattern = part.get("type"), part.get("pattern")
    patterns = list(_step(part))
    if "" in patterns:
        return f"other {kind}"
    if kind == "Split" and isinstance(pattern, dict):
        return f"{kind} {pattern.get('Regex')}"
    says = {"ByteLevel": part.get("use_regex", True) is True, "Digits": part.get("individual_digits") is True}
    return f"{kind} {says.get(str(kind), part.get('behavior'))}"
