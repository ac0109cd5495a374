"""Predictors for every layer of a model, one after the other; what is finished is kept, and gone on from."""

import json
import mmap
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

from hotcold.engine.device.choice import parse_device
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.worker import ModelWorkers, WorkersModel, one_at_a_time, opened
from hotcold.engine.host.stores import HostStore
from hotcold.engine.train import collect as data
from hotcold.engine.train.arithmetic import Arithmetic, arithmetic_on
from hotcold.engine.train.descent import Quality
from hotcold.engine.train.gate import Gate, deciding, gate_of
from hotcold.engine.train.predictor import Trained, held_back, train
from hotcold.engine.train.ranks import Costs, best_rank, costs_of, is_enough
from hotcold.engine.train.samples import Samples, open_samples
from hotcold.engine.train.settings import Place, Settings, Training
from hotcold.engine.train.signs import signs_quality
from hotcold.errors import DoesNotFitError, FileError
from hotcold.gguf_io.names import EXACT_LAYERS
from hotcold.gguf_io.residency import advise, ranges_of
from hotcold.whole_file import whole_file, write_whole

STATE = "state.json"
STEPS_OF_A_TRIAL = 0.2
"""Of a training's steps, to see what a rank is good for."""


@dataclass(frozen=True)
class LayerResult:
    """One layer: its predictor's rank and quality, and the bytes of its FFN that a token reads with and without.

    Attributes:
        rank: 0 where the layer is better off without; the others are then of `exact`, which lists all and misses none.
        start: what its training began with.
        signs_recall, signs_listed, signs_bytes: of the signs of gate and input in the predictor's place (see `signs`).
    """

    layer: int
    rank: int
    recall: float
    listed: float
    firing: float
    predicted_bytes: float
    exact_bytes: float
    start: str
    signs_recall: float
    signs_listed: float
    signs_bytes: float


Progress = Callable[[str, int, int], None]
"""Hears what is going on: a text, steps or tokens done, and in all."""


def train_all(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    settings: Settings,
    place: Place,
    identity: dict[str, Any],
    progress: Progress,
    finished: Callable[[LayerResult], None],
    by: ModelWorkers | None = None,
) -> list[LayerResult]:
    """Train every layer's predictor; the place's folder, open, keeps what is needed to go on.

    Args:
        identity: see `open_folder`.
        finished: hears of each layer.
        by: does it in place of this engine, layers side by side.

    Raises:
        FileError: the folder is damaged. SettingError, DoesNotFitError: see `collect`.
    """
    folder = place.folder
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
            place.gives_back,
        )
    n_layer, results = engine.model.n_layer, []
    kept = [_kept(folder, i) for i in range(n_layer)]
    missing = [i for i, result in enumerate(kept) if result is None]
    trained: Iterator[LayerResult]
    if by is None:
        trained = (_train_layer(engine, i, settings, place, progress) for i in missing)
    else:
        trained = by.in_order(
            partial(train_by_worker, by.model, settings, replace(place, folder=folder.resolve())), missing
        )
        progress("layers", n_layer - len(missing), n_layer)
    for result in kept:
        results.append(next(trained) if result is None else result)
        finished(results[-1])
        if by is not None:
            progress("layers", len(results), n_layer)
    return results


def train_by_worker(model: WorkersModel, settings: Settings, place: Place, layer: int) -> LayerResult:
    """What a worker does: a layer, of samples in a folder that it sees, and there it keeps what it found.

    Raises:
        FileError: it does not see the folder. Others: see `opened`.
    """
    with one_at_a_time:
        engine, folder = opened(model), place.folder
        if not (folder / STATE).exists():
            bound = f"{platform.node()} does not see it"
            raise FileError("training folder", folder, bound, "name an -o on a disk that all workers share")
        return _train_layer(engine, layer, settings, place, lambda what, done, total: None)


def open_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Make it, or go on in it.

    Args:
        identity: of the model, the texts and the settings, which a folder to go on in has to agree with.

    Raises:
        FileError: it is of something else, or damaged.
    """
    state = folder / STATE
    if state.exists():
        kept = _read_state(state)["identity"]
        if kept != identity:
            unsaid = [name for name in identity if name not in kept]
            different = [name for name in identity if name in kept and kept[name] != identity[name]]
            bound = f"it was begun with other {', '.join(different)}"
            if unsaid and not different:
                bound = f"it was begun by a hotcold that did not keep its {', '.join(unsaid)}"
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


def _train_layer(engine: Engine, i: int, settings: Settings, place: Place, progress: Progress) -> LayerResult:
    layer = engine.model.layers[i]
    pages = ranges_of(engine.file, deciding(layer).names) if place.gives_back else []
    samples = open_samples(place.folder, i, engine.model.n_ff, place.gives_back)
    gate = gate_of(HostStore(engine.file), layer, lambda: advise(pages, mmap.MADV_DONTNEED))
    try:
        with arithmetic_on(parse_device(place.device), engine.n_threads) as on:
            work = _Layer(i, samples, gate, costs_of(layer), settings, on, progress)
            trained = work.trained()
            result = work.result(trained)
    except MemoryError as error:  # a card's too
        bound = str(error) or "there is not that much memory"
        step = "lower --rank, or bound it with --memory"
        raise DoesNotFitError("training", f"layer {i}", bound, step) from error
    _keep(place.folder, result, trained)
    return result


@dataclass(frozen=True)
class _Layer:
    """What one layer is trained with."""

    i: int
    samples: Samples
    gate: Gate
    costs: Costs
    settings: Settings
    on: Arithmetic
    progress: Progress

    def trained(self) -> Trained | None:
        """Its predictor; None where `exact` is cheaper, or no predictor finds what is wanted."""
        settings = self.settings
        if settings.rank is not None:
            return self._trained(settings.rank, settings, f"layer {self.i}, rank {settings.rank}")
        rank = best_rank(self.costs, self._tried, settings.recall, settings.largest_rank)
        if rank is None:
            return None
        trained = self._trained(rank, settings, f"layer {self.i}, rank {rank}")
        found = trained.quality
        pays = self.costs.pays(rank, found) and is_enough(found.recall, settings.recall)
        return trained if pays else None

    def _tried(self, rank: int) -> Quality:
        some = replace(self.settings, steps=max(1, round(STEPS_OF_A_TRIAL * self.settings.steps)))
        return self._trained(rank, some, f"layer {self.i}, trying rank {rank}").quality

    def _trained(self, rank: int, training: Training, what: str) -> Trained:
        def hear(done: int, total: int) -> None:
            self.progress(what, done, total)

        return train(self.samples, rank, self.gate, training, hear, self.on)

    def result(self, trained: Trained | None) -> LayerResult:
        """What is told of it."""
        held = held_back(self.samples.x.shape[0])
        signs = signs_quality(self.samples, self.gate, held.start, held, self.settings.recall, self.on)
        found = Quality(1.0, 1.0, signs.firing) if trained is None else trained.quality
        exact = self.costs.exact(found.firing)
        return LayerResult(
            self.i,
            0 if trained is None else trained.rank,
            found.recall,
            found.listed,
            found.firing,
            exact if trained is None else self.costs.predicted(trained.rank, found),
            exact,
            "" if trained is None else trained.start,
            signs.recall,
            signs.listed,
            self.costs.by_signs(signs),
        )


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer_{layer}.npz"


def _keep(folder: Path, result: LayerResult, trained: Trained | None) -> None:
    matrices = {} if trained is None else {"fc1": trained.fc1, "fc2": trained.fc2}
    narrow = {name: matrix.astype(np.float16) for name, matrix in matrices.items()}
    with whole_file(_file(folder, result.layer), option="-o") as path, path.open("wb") as stream:
        np.savez(stream, result=json.dumps(asdict(result)), allow_pickle=False, **narrow)


def _kept(folder: Path, layer: int) -> LayerResult | None:
    try:
        with np.load(_file(folder, layer), allow_pickle=False) as kept:
            return LayerResult(**json.loads(str(kept["result"])))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def write_predictors(folder: Path, results: Sequence[LayerResult], out: Path) -> bool:
    """The predictors in one safetensors file, float16, as `hotcold convert` reads it; the folder is removed then.

    The header names layers without one. Where no layer has any nothing is written, and this is False.
    """
    tensors, exact = dict[str, NDArray[np.float16]](), [each.layer for each in results if not each.rank]
    for i in (each.layer for each in results if each.rank):
        with np.load(_file(folder, i), allow_pickle=False) as kept:
            tensors[f"layers.{i}.fc1.weight"] = kept["fc1"]
            tensors[f"layers.{i}.fc2.weight"] = kept["fc2"]
    if tensors:
        metadata = {EXACT_LAYERS: ",".join(map(str, exact))} if exact else None
        write_whole(out, save(tensors, metadata), option="-o")
    shutil.rmtree(folder)
    return bool(tensors)
