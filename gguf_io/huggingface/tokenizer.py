"""The tokenizer of a Hugging Face directory as GGUF metadata."""

from pathlib import Path

from hotcold.errors import SettingError
from hotcold.gguf_io.huggingface import bpe as hf_bpe
from hotcold.gguf_io.huggingface import chat_template as hf_chat_template
from hotcold.gguf_io.huggingface import sentencepiece as hf_sentencepiece
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.vocabulary import read_settings
from hotcold.gguf_io.writer import MetadataValue

OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    hf_chat_template.FILE,
    hf_chat_template.OLD_FILE,
)
# the first set that is complete counts
VOCABULARIES = ((hf_sentencepiece.FILE,), (hf_bpe.FAST,), (hf_bpe.VOCAB, hf_bpe.MERGES))
FILES = (*OPTIONAL, *(name for names in VOCABULARIES for name in names))


def missing_files(model_dir: Path) -> tuple[str, ...]:
    """What a vocabulary lacks: nothing, or the files of the set that is nearest to complete."""
    lacking = [tuple(n for n in names if not (model_dir / n).is_file()) for names in VOCABULARIES]
    if not all(lacking):
        return ()
    begun = [lack for lack, names in zip(lacking, VOCABULARIES, strict=True) if len(lack) < len(names)]
    return begun[0] if begun else (f"{hf_sentencepiece.FILE} or {hf_bpe.FAST}",)


def tokenizer_metadata(
    model_dir: Path, model: HFModel, force_pretokenizer: str | None = None
) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """`tokenizer.*` keys of `model_dir`, and warnings.

    Raises:
        FileError: as `sentencepiece_metadata`, `bpe_metadata` and `chat_template_metadata`.
        SettingError: a pre-tokenizer for a SentencePiece vocabulary.
    """
    settings = read_settings(model_dir)
    if (model_dir / hf_sentencepiece.FILE).is_file():
        if force_pretokenizer is not None:
            bound = f"{hf_sentencepiece.FILE} has no pre-tokenizer"
            raise SettingError("force_pretokenizer", force_pretokenizer, bound, "leave it out")
        metadata, warnings = hf_sentencepiece.sentencepiece_metadata(model_dir, model, settings)
    else:
        metadata, warnings = hf_bpe.bpe_metadata(model_dir, model, settings, force_pretokenizer)
    return metadata | hf_chat_template.chat_template_metadata(model_dir, settings), warnings
