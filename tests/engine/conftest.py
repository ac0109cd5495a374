"""Models, recordings and a relative distance for the engine's tests."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import recorded_files
from numpy.typing import NDArray

from hotcold.engine.run.executor import Executor
from hotcold.gguf_io.convert.conversion import convert
from hotcold.kernels.cuda.device.device import Device

DATA = Path(__file__).parent.parent / "data"
TINY = Path(__file__).parent.parent.parent / "models" / "tiny-relu-llama"


def relative_rms(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """sqrt(sum (a - b)^2 / sum b^2), in float64."""
    wide = b.astype(np.float64)
    return float(np.sqrt(((a - wide) ** 2).sum() / (wide**2).sum()))


def all_logits(executor: Executor, ids: NDArray[np.int32], step: int) -> NDArray[np.float32]:
    """Logits after every token, `step` tokens a run."""
    out = np.zeros((len(ids), executor.model.n_vocab), np.float32)
    for i in range(0, len(ids), step):
        executor.run(ids[i : i + step], i, out[i : i + step])
    return out


@pytest.fixture(scope="session")
def distance() -> Callable[[NDArray[np.float32], NDArray[np.float32]], float]:
    """`relative_rms`."""
    return relative_rms


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Executor, NDArray[np.int32], int], NDArray[np.float32]]:
    """`all_logits`."""
    return all_logits


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of recordings."""
    return DATA


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """recorded(name): a recorded model by its place in tests/data, made if it is one that is not kept."""
    folder = tmp_path_factory.mktemp("recorded")

    return lambda name: recorded_files.find(DATA / f"{name}.gguf", folder)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The bundled model's Hugging Face directory."""
    return TINY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Path]]:
    """The bundled model converted to a type, with or without its predictors; each made once."""
    folder, made = tmp_path_factory.mktemp("tiny"), dict[tuple[str, bool], Path]()

    def make(outtype: str, predictors: bool = False) -> Path:
        key = (outtype, predictors)
        if key not in made:
            path = folder / f"{outtype}-{predictors}.gguf"
            convert(TINY, TINY / "predictors.safetensors" if predictors else None, path, outtype)
            made[key] = path
        return made[key]

    yield make


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def split_device(request: pytest.FixtureRequest) -> Device:
    """A device for split runs: emulated, where enqueued work runs as late as it may, and a card."""
    if request.param == "cuda":
        opened: Device = request.getfixturevalue("card")
    else:
        opened = request.getfixturevalue("open_emulated")(build_kind="fast", policy="late")
    return opened


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Writes a file with nothing but `tokenizer.ggml.*` keys; None leaves one out."""

    def write(values: Mapping[str, Any]) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        add: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            str: writer.add_string,
            list: writer.add_array,
        }
        for key, value in values.items():
            if value is not None:
                add[type(value)](f"tokenizer.ggml.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return write
