"""Predictors for every layer of a model, one after the other; what is finished is kept, and gone on from."""

import json
import platform
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.worker import ModelWorkers, WorkersModel, one_at_a_time, opened
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Layer, Weight
from hotcold.engine.train import collect as data
from hotcold.engine.train.predictor import F32, Quality, Trained, train
from hotcold.engine.train.ranks import best_rank, costs_of, deciding
from hotcold.engine.train.settings import Settings, Training
from hotcold.errors import FileError
from hotcold.gguf_io.blocks import dequantize
from hotcold.whole_file import whole_file, write_whole

STATE = "state.json"
STEPS_OF_A_TRIAL = 0.2
"""Of a training's steps, to see what a rank is good for."""


@dataclass(frozen=True)
class LayerResult:
    """One layer: its predictor's rank and quality, and the bytes of its FFN that a token reads with and without.

    Attributes:
        start: what its training began with.
    """

    layer: int
    rank: int
    recall: float
    listed: float
    firing: float
    predicted_bytes: float
    exact_bytes: float
    start: str


Progress = Callable[[str, int, int], None]
"""Hears what is going on: a text, steps or tokens done, and in all."""


def train_all(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    settings: Settings,
    folder: Path,
    identity: dict[str, Any],
    progress: Progress,
    finished: Callable[[LayerResult], None],
    by: ModelWorkers | None = None,
) -> list[LayerResult]:
    """Train every layer's predictor; the folder keeps what is needed to go on.

    Args:
        identity: of the model, the texts and the settings, which a folder to go on in has to agree with.
        finished: hears of each layer.
        by: does it in place of this engine, layers side by side.

    Raises:
        FileError: the folder is of something else. SettingError, DoesNotFitError: see `collect`.
    """
    _open_folder(folder, identity)
    state = folder / STATE
    if (begun := _read_state(state)["collected"]) < len(chunks):
        data.collect(
            engine,
            chunks,
            folder,
            lambda done, total: progress("inputs of all layers", done, total),
            by,
            begun,
            lambda done: _write_state(state, identity, done),
        )
    n_layer, results = engine.model.n_layer, []
    kept = [_kept(folder, i) for i in range(n_layer)]
    missing = [i for i, result in enumerate(kept) if result is None]
    trained: Iterator[LayerResult]
    if by is None:
        trained = (_train_layer(engine, i, settings, folder, progress) for i in missing)
    else:
        trained = by.in_order(partial(train_by_worker, by.model, folder.resolve(), settings), missing)
        progress("layers", n_layer - len(missing), n_layer)
    for result in kept:
        results.append(next(trained) if result is None else result)
        finished(results[-1])
        if by is not None:
            progress("layers", len(results), n_layer)
    return results


def train_by_worker(model: WorkersModel, folder: Path, settings: Settings, layer: int) -> LayerResult:
    """What a worker does: a layer, of samples in a folder that it sees, and there it keeps what it found.

    Raises:
        FileError: it does not see the folder. Others: see `opened`.
    """
    with one_at_a_time:
        engine = opened(model)
        if not (folder / STATE).exists():
            bound = f"{platform.node()} does not see it"
            raise FileError("training folder", folder, bound, "name an -o on a disk that all workers share")
        return _train_layer(engine, layer, settings, folder, lambda what, done, total: None)


def _open_folder(folder: Path, identity: dict[str, Any]) -> None:
    state = folder / STATE
    if state.exists():
        kept = _read_state(state)["identity"]
        if kept != identity:
            different = [name for name in identity if kept.get(name) != identity[name]]
            bound = f"it was begun with another {', '.join(different)}"
            raise FileError("training folder", folder, bound, "delete it, or name another -o")
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_state(state, identity, 0)


def _read_state(state: Path) -> dict[str, Any]:
    """What `_write_state` wrote; FileError unless it is that."""
    try:
        kept = json.loads(state.read_bytes())
    except OSError as error:
        raise FileError("training folder", state, error.strerror or str(error), "check it") from error
    except (ValueError, RecursionError):
        kept = None
    parts = (kept.get("identity"), kept.get("collected")) if isinstance(kept, dict) else (None, None)
    if not isinstance(parts[0], dict) or not isinstance(parts[1], int) or parts[1] < 0:
        raise FileError("training folder", state, "is damaged", f"delete {state.parent}, or name another -o")
    return dict(zip(("identity", "collected"), parts, strict=True))


def _write_state(state: Path, identity: dict[str, Any], collected: int) -> None:
    """What the folder is of, and how many chunks are collected."""
    write_whole(state, json.dumps({"identity": identity, "collected": collected}).encode(), option="-o")


def _train_layer(engine: Engine, i: int, settings: Settings, folder: Path, progress: Progress) -> LayerResult:
    layer, samples = engine.model.layers[i], data.open_samples(folder, i, engine.model.n_ff)
    gate, costs = deciding_matrix(HostStore(engine.file), layer), costs_of(layer)

    def trained_for(rank: int, training: Training, what: str) -> Trained:
        return train(
            samples, rank, gate, training, lambda n, all: progress(what, n, all), n_threads=engine.n_threads
        )

    def tried(rank: int) -> Quality:
        some = replace(settings, steps=max(1, round(STEPS_OF_A_TRIAL * settings.steps)))
        return trained_for(rank, some, f"layer {i}, trying rank {rank}").quality

    rank = best_rank(costs, tried) if settings.rank is None else settings.rank
    trained = trained_for(rank, settings, f"layer {i}, rank {rank}")
    found = trained.quality
    predicted, exact = costs.predicted(rank, found), costs.exact(found.firing)
    result = LayerResult(i, rank, found.recall, found.listed, found.firing, predicted, exact, trained.start)
    _keep(folder, result, trained)
    return result


def deciding_matrix(store: HostStore, layer: Layer) -> F32:
    """What decides which neurons fire, float32 [n_ff, n_embd], with the weight of its norm multiplied in."""
    norm = layer.ffn_norm if layer.ffn_norm is not None else layer.attn_norm
    matrix = _numbers(store, deciding(layer))
    return matrix if norm is None else matrix * _numbers(store, norm)


def _numbers(store: HostStore, weight: Weight) -> F32:
    return dequantize(store.rows(weight), weight.type)


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer_{layer}.npz"


def _keep(folder: Path, result: LayerResult, trained: Trained) -> None:
    with whole_file(_file(folder, result.layer), option="-o") as path, path.open("wb") as stream:
        fc1, fc2 = trained.fc1.astype(np.float16), trained.fc2.astype(np.float16)
        np.savez(stream, result=json.dumps(asdict(result)), fc1=fc1, fc2=fc2)


def _kept(folder: Path, layer: int) -> LayerResult | None:
    try:
        with np.load(_file(folder, layer), allow_pickle=False) as kept:
            return LayerResult(**json.loads(str(kept["result"])))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def write_predictors(folder: Path, n_layer: int, out: Path) -> None:
    """All layers in one safetensors file, float16, as `hotcold convert` reads it; the folder is removed then."""
    tensors = {}
    for i in range(n_layer):
        with np.load(_file(folder, i), allow_pickle=False) as kept:
            tensors[f"layers.{i}.fc1.weight"] = kept["fc1"]
            tensors[f"layers.{i}.fc2.weight"] = kept["fc2"]
    write_whole(out, save(tensors), option="-o")
    shutil.rmtree(folder)
