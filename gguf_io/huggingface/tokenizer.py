"""The tokenizer of a Hugging Face directory as GGUF metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotcold.errors import SettingError
from hotcold.gguf_io.huggingface import bpe as hf_bpe
from hotcold.gguf_io.huggingface import chat_template as hf_chat_template
from hotcold.gguf_io.huggingface import ends, tekken, tokenizer_json
from hotcold.gguf_io.huggingface import sentencepiece as hf_sentencepiece
from hotcold.gguf_io.huggingface.llama_kind import is_llama_kind, llama_kind_metadata
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.vocabulary import HFVocabulary, read_settings
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.oddities import REPEATED, Oddities
from hotcold.gguf_io.writer import MetadataValue

Made = tuple[dict[str, MetadataValue], HFVocabulary, tuple[str, ...]]

OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    hf_chat_template.FILE,
    hf_chat_template.OLD_FILE,
    ends.FILE,
)
# the first set that is complete counts
VOCABULARIES = (
    (hf_sentencepiece.FILE,),
    (tokenizer_json.FILE,),
    (tekken.FILE,),
    (hf_bpe.VOCAB, hf_bpe.MERGES),
)
FILES = (*OPTIONAL, *(name for names in VOCABULARIES for name in names))


def missing_files(model_dir: Path) -> tuple[str, ...]:
    """What a vocabulary lacks: nothing, or the files of the set that is nearest to complete."""
    lacking = [tuple(n for n in names if not (model_dir / n).is_file()) for names in VOCABULARIES]
    if not all(lacking):
        return ()
    begun = [lack for lack, names in zip(lacking, VOCABULARIES, strict=True) if len(lack) < len(names)]
    return begun[0] if begun else (f"{hf_sentencepiece.FILE} or {tokenizer_json.FILE}",)


def tokenizer_metadata(
    model_dir: Path, model: HFModel, force_pretokenizer: str | None = None
) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """`tokenizer.*` keys of `model_dir`, and warnings.

    Raises:
        FileError: as `sentencepiece_metadata`, `llama_kind_metadata`, `bpe_metadata`, `read_tekken` and
            `chat_template_metadata`.
        SettingError: a pre-tokenizer for a SentencePiece vocabulary.
    """
    settings = read_settings(model_dir)
    metadata, vocabulary, warnings = _vocabulary(model_dir, model, settings, force_pretokenizer)
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    end_ids, of_ends = ends.end_metadata(model_dir, vocabulary.tokens, None if eos is None else eos.value)
    metadata |= end_ids
    metadata |= hf_chat_template.chat_template_metadata(model_dir, settings)
    return metadata, (*warnings, *of_ends, *vocabulary.oddities.warnings())


def _vocabulary(
    model_dir: Path, model: HFModel, settings: Mapping[str, Any], force_pretokenizer: str | None
) -> Made:
    """By the first complete set of `VOCABULARIES`."""
    if (model_dir / hf_sentencepiece.FILE).is_file():
        _refuse_pretokenizer(hf_sentencepiece.FILE, force_pretokenizer)
        return hf_sentencepiece.sentencepiece_metadata(model_dir, model, settings)
    if (path := model_dir / tokenizer_json.FILE).is_file():
        oddities = Oddities()
        tokenizer = read_json_object(path, oddities.of(REPEATED))
        if is_llama_kind(tokenizer):
            _refuse_pretokenizer(tokenizer_json.FILE, force_pretokenizer)
            return llama_kind_metadata(path, tokenizer, model, settings, oddities)
        source = hf_bpe.read_fast(path, tokenizer, oddities)
    elif (model_dir / tekken.FILE).is_file():
        source = tekken.read_tekken(model_dir / tekken.FILE)
    else:
        source = hf_bpe.read_slow(model_dir, settings)
    return hf_bpe.bpe_metadata(model_dir, model, settings, source, force_pretokenizer)


def _refuse_pretokenizer(name: str, forced: str | None) -> None:
    if forced is not None:
        raise SettingError("force_pretokenizer", forced, f"{name} has no pre-tokenizer", "leave it out")
