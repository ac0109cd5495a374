"""Directories with a tokenizer.json of byte-level BPE."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe_directories import (
    N_VOCAB,
    SETTINGS,
    MakeModel,
)
from tokenizers import Tokenizer


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
