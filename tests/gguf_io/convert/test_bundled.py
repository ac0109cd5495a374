"""The shipped model is what the converter makes of the sources beside it."""

from pathlib import Path

import pytest
from gguf import GGUFReader

from hotcold.gguf_io.convert.conversion import convert

MODEL_DIR = Path(__file__).parents[3] / "models" / "tiny-relu-llama"
SHIPPED = MODEL_DIR / "tiny-relu-llama.q8_0.gguf"


def as_plain_gguf(path: Path, copy: Path) -> GGUFReader:
    """A reader for a PowerInfer file: the gguf package knows only the plain magic."""
    content = path.read_bytes()
    assert content[:4] == b"PWRI"
    copy.write_bytes(b"GGUF" + content[4:])
    return GGUFReader(copy)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[GGUFReader, GGUFReader]:
    folder = tmp_path_factory.mktemp("bundled")
    convert(MODEL_DIR, MODEL_DIR / "predictors.safetensors", folder / "again.gguf", "q8_0")
    return as_plain_gguf(SHIPPED, folder / "1"), as_plain_gguf(folder / "again.gguf", folder / "2")


def test_every_key_is_equal(readers: tuple[GGUFReader, GGUFReader]) -> None:
    shipped, again = (
        {name: (f.types, f.contents()) for name, f in reader.fields.items()} for reader in readers
    )
    assert list(shipped) == list(again)
    assert shipped == again
    assert [len(shipped[f"hotcold.activation.{i}"][1]) for i in range(6)] == [1024] * 6


def test_every_tensor_is_equal(readers: tuple[GGUFReader, GGUFReader]) -> None:
    shipped, again = ({t.name: t for t in reader.tensors} for reader in readers)
    assert list(shipped) == list(again)
    for name, tensor in shipped.items():
        other = again[name]
        assert (tensor.tensor_type, tensor.shape.tolist()) == (other.tensor_type, other.shape.tolist()), name
        assert tensor.data.tobytes() == other.data.tobytes(), name
    assert len(shipped) == 3 + 6 * 11
