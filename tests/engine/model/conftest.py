"""Model files with changes."""

from pathlib import Path
from typing import Any

import pytest
from model_files import (
    DENSE,
    METADATA,
    SPARSE,
    FileWith,
    Metadata,
    Tensors,
    tensors,
    write,
)


@pytest.fixture
def file_with(tmp_path: Path) -> FileWith:
    """A good file with changes."""

    def make(
        metadata: Metadata | None = None,
        changes: Tensors | None = None,
        magic: str = "GGUF",
        architecture: Any = "llama",
    ) -> Path:
        path = tmp_path / "model.gguf"
        table = tensors(DENSE if magic == "GGUF" else SPARSE) | (changes or {})
        write(path, METADATA | (metadata or {}), table, architecture, magic)
        return path

    return make
