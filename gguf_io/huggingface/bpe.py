"""A byte-level BPE vocabulary as GGUF metadata, named as llama.cpp names it (`gpt2`).

It comes from tokenizer.json, from vocab.json and merges.txt, or from Mistral's tekken.json.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from hotcold.errors import FileError
from hotcold.gguf_io.byte_characters import BYTE_OF
from hotcold.gguf_io.huggingface import pretokenizer
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.tokenizer_json import (
    adds_bos,
    bpe_model,
    by_id,
    checked_ids,
    merge_pairs,
    normalizer_names,
    usable_merges,
)
from hotcold.gguf_io.huggingface.vocabulary import (
    AGAIN,
    CONTROL,
    HFVocabulary,
    Tokens,
    added_tokens,
    special_id_metadata,
)
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.oddities import REPEATED, Oddities
from hotcold.gguf_io.pretokenizers import KNOWN
from hotcold.gguf_io.writer import MetadataValue, array, boolean, string

VOCAB, MERGES = "vocab.json", "merges.txt"
OVERRIDE = f"--force-pretokenizer NAME says which one cuts text alike, {KNOWN}"


@dataclass(frozen=True)
class BpeSource:
    """What the files say.

    Attributes:
        origin: the file, for messages.
        ids: by text.
        merges: pairs, most important first.
        pre: llama.cpp's name of the pre-tokenizer, None if none fits; `cuts` describes it.
        oddities: what was mended in reading.
        adds_bos: whether the first thing of a text is BOS, as far as the files say.
        added: `added_tokens` of tokenizer.json, or tokens of another file that came later.
    """

    origin: Path
    ids: dict[str, int]
    merges: list[tuple[str, ...]]
    pre: str | None
    cuts: str
    oddities: Oddities = field(default_factory=Oddities)
    adds_bos: bool = False
    added: Any = field(default_factory=list)
    warnings: tuple[str, ...] = ()


def bpe_metadata(
    model_dir: Path,
    model: HFModel,
    settings: Mapping[str, Any],
    source: BpeSource,
    force_pretokenizer: str | None,
) -> tuple[dict[str, MetadataValue], HFVocabulary, tuple[str, ...]]:
    """`tokenizer.ggml.*` keys, the vocabulary, and warnings.

    Ids without a token, up to the model's n_vocab, are filled.

    Args:
        settings: tokenizer_config.json.
        force_pretokenizer: a name of `PRETOKENIZERS`, whatever the files say.

    Raises:
        FileError: damaged pieces, no pre-tokenizer that is known, many more tokens than the model has
            rows, or a special id beyond them.
    """
    pre = force_pretokenizer or source.pre
    if pre is None:
        raise FileError(f"{source.origin}: pre-tokenizer", source.cuts[:300], "no known one", OVERRIDE)
    if not force_pretokenizer:
        pre = dict(model.architecture.pretokenizers).get(pre, pre)
    vocabulary = HFVocabulary(model_dir, oddities=source.oddities)
    pieces: Tokens = by_id(source.origin, source.ids)
    vocabulary.fill(pieces, added_tokens(model_dir, settings, source.added), model.n_vocab, replace=False)
    merges = usable_merges(source.merges, source.ids, model.n_vocab, vocabulary.oddities)
    ids = vocabulary.special_ids(model, settings, {})
    made = BYTE_OF.keys() | {left + right for left, right in merges}
    for name in {"bos", "eos"} & ids.keys():
        if vocabulary.tokens[ids[name]].decode() not in made:  # else some text becomes it, whoever names it
            vocabulary.types[ids[name]] = CONTROL
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    add_bos = add_bos if isinstance(add_bos, bool) else source.adds_bos
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": array(vocabulary.tokens, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": array(vocabulary.types, GGUFValueType.INT32),
    }
    if merges:  # GGUF has no empty arrays
        metadata["tokenizer.ggml.merges"] = array([f"{a} {b}" for a, b in merges], GGUFValueType.STRING)
    metadata |= special_id_metadata(ids)
    metadata["tokenizer.ggml.add_bos_token"] = boolean("bos" in ids and add_bos)
    metadata["tokenizer.ggml.add_eos_token"] = boolean("eos" in ids and add_eos is True)
    return metadata, vocabulary, source.warnings


def read_fast(path: Path, tokenizer: Mapping[str, Any], oddities: Oddities) -> BpeSource:
    """What a tokenizer.json says."""
    model = bpe_model(path, tokenizer)
    names = normalizer_names(tokenizer)
    found = pretokenizer.recognise(tokenizer)
    text = f"tokenizer.json normalises text ({', '.join(names)}); GGUF cannot record that"
    return BpeSource(
        origin=path,
        ids=checked_ids(path, model.get("vocab")),
        merges=list(merge_pairs(path, model.get("merges"))),
        pre=found.name if found else None,
        cuts=pretokenizer.describe(tokenizer),
        oddities=oddities,
        adds_bos=adds_bos(tokenizer.get("post_processor")),
        added=tokenizer.get("added_tokens"),
        warnings=(*((text,) if names else ()), *((found.warning,) if found and found.warning else ())),
    )


def read_slow(model_dir: Path, settings: Mapping[str, Any]) -> BpeSource:
    """vocab.json and merges.txt, whose class in tokenizer_config.json says how text is cut."""
    name = settings.get("tokenizer_class")
    name = name.removesuffix("Fast") if isinstance(name, str) else "GPT2Tokenizer"
    prefixed = settings.get("add_prefix_space") is True
    oddities = Oddities()
    vocab = read_json_object(model_dir / VOCAB, oddities.of(REPEATED))
    return BpeSource(
        origin=model_dir / VOCAB,
        ids=checked_ids(model_dir / VOCAB, vocab),
        merges=list(_merge_lines(model_dir / MERGES)),
        pre=None if prefixed else pretokenizer.BY_CLASS.get(name),
        cuts=f"{name} with add_prefix_space" if prefixed else name,
        oddities=oddities,
    )


def _merge_lines(path: Path) -> Iterator[tuple[str, ...]]:
    try:
        lines = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise FileError(str(path), error.strerror or "cannot be read", "", "check the path") from error
    except UnicodeDecodeError as error:
        raise FileError(str(path), "no UTF-8", "one merge a line", AGAIN) from error
    first = 1 if lines[0].startswith("#version") else 0
    yield from merge_pairs(path, [line.removesuffix("\r") for line in lines[first:] if line.strip()])
