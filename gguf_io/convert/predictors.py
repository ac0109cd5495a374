"""The predictors of a model: two small matrices a layer that foresee which neurons fire."""

from dataclasses import dataclass
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.json_object import read_json_object
from hotcold.gguf_io.names import EXACT_LAYERS
from hotcold.gguf_io.safetensors_file import metadata_text, open_safetensors
from hotcold.gguf_io.source_tensor import SourceTensor, of_torch
from hotcold.gguf_io.torch_pickle import open_state_dict

LARGEST = 1e30  # far inside what a float32 holds


@dataclass(frozen=True)
class Predictors:
    """fc1 [rank, n_embd] and fc2 [n_ff, rank] of each layer; the rank may differ between layers.

    Attributes:
        layers: None for a layer of which the file says that it has none.
        threshold: sparse_threshold of the config.json beside them, or None.
    """

    layers: tuple[tuple[SourceTensor, SourceTensor] | None, ...]
    threshold: float | None

    @property
    def exact_layers(self) -> tuple[int, ...]:
        """Layers without a predictor."""
        return tuple(i for i, layer in enumerate(self.layers) if layer is None)


def predictor_files(path: Path, n_layer: int) -> tuple[Path, ...]:
    """The files that `path` must consist of, present or not: itself, or model_{i}.pt in the folder."""
    if path.is_dir():
        return tuple(path / f"model_{i}.pt" for i in range(n_layer))
    return (path,)


def open_predictors(path: Path, n_layer: int, n_embd: int, n_ff: int) -> Predictors:
    """Predictors for a model of these sizes; their numbers are not read.

    `path` is a safetensors file with layers.{i}.fc1.weight and layers.{i}.fc2.weight, or PowerInfer's
    folder of model_{i}.pt files, each a state dict with fc1.weight and fc2.weight. A safetensors file may say in its
    header, as hotcold.exact_layers, which layers have none ("0,3"); any other that lacks one is of another model.

    Raises:
        FileError: unreadable or damaged files, a layer without predictors or one too many, shapes of
            another model, anything besides fc1 and fc2, or a threshold that is no number.
    """
    found = _open_folder(path, n_layer) if path.is_dir() else dict(open_safetensors(path))
    exact = frozenset() if path.is_dir() else _exact_layers(path, n_layer)
    with_one = [i for i in range(n_layer) if i not in exact]
    expected = [f"layers.{i}.fc{k}.weight" for i in with_one for k in (1, 2)]
    if missing := [name for name in expected if name not in found]:
        raise _another_model(path, _listed("no", missing), f"the model has {n_layer} layers")
    if extra := sorted(set(found) - set(expected)):
        raise _another_model(
            path, _listed("also", extra), f"fc1 and fc2 for {len(with_one)} layers and nothing else"
        )
    layers = {i: (found[f"layers.{i}.fc1.weight"], found[f"layers.{i}.fc2.weight"]) for i in with_one}
    for fc1, fc2 in layers.values():
        _check_shapes(path, fc1, fc2, n_embd, n_ff)
    threshold = _threshold(path if path.is_dir() else path.parent)
    return Predictors(tuple(map(layers.get, range(n_layer))), threshold)


def _exact_layers(path: Path, n_layer: int) -> frozenset[int]:
    """Layers of which the file says that they have no predictor."""
    text = metadata_text(path, EXACT_LAYERS)
    if text is None:
        return frozenset()
    words = text.split(",")
    numbers = [
        int(word) if word.isascii() and word.isdigit() and len(word) < 10 else n_layer for word in words
    ]
    if numbers != sorted(set(numbers)) or numbers[-1] >= n_layer:
        raise _another_model(path, f"{EXACT_LAYERS} {text[:80]!r}", f"ascending, each below {n_layer}")
    if len(numbers) == n_layer:
        bound = "convert the model without predictors"
        raise FileError(f"predictors {path}", "in no layer", "exact is cheaper in all of them", bound)
    return frozenset(numbers)


def _open_folder(path: Path, n_layer: int) -> dict[str, SourceTensor]:
    found = {}
    if (path / f"model_{n_layer}.pt").exists():
        raise _another_model(path, f"also model_{n_layer}.pt", f"the model has {n_layer} layers")
    for i, file in enumerate(predictor_files(path, n_layer)):
        for name, tensor in open_state_dict(file).items():
            found[f"layers.{i}.{name}"] = of_torch(f"layers.{i}.{name}", tensor)
    return found


def _check_shapes(path: Path, fc1: SourceTensor, fc2: SourceTensor, n_embd: int, n_ff: int) -> None:
    rank = fc1.shape[0] if len(fc1.shape) == 2 else 0
    if rank == 0 or fc1.shape != (rank, n_embd):
        raise _another_model(
            path, f"{fc1.name} has shape {list(fc1.shape)}", f"the model needs [rank, {n_embd}]"
        )
    if fc2.shape != (n_ff, rank):
        raise _another_model(
            path, f"{fc2.name} has shape {list(fc2.shape)}", f"the model needs [{n_ff}, {rank}]"
        )


def _threshold(folder: Path) -> float | None:
    config = folder / "config.json"
    value = read_json_object(config).get("sparse_threshold") if config.exists() else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise FileError(
            f"{config}: sparse_threshold",
            repr(value)[:100],
            f"a number between -{LARGEST} and {LARGEST}",
            "correct it",
        )
    return float(value)


def _listed(word: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{word} {', '.join(names[:3])}{more}"


def _another_model(path: Path, value: str, bound: str) -> FileError:
    return FileError(f"predictors {path}", value, bound, "give the predictors of this model")
