"""Small models without exact zeros, thresholds for their neurons, and what NumPy makes of both."""

from pathlib import Path
from typing import Any

import hf_forward
import hf_models
import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.names import threshold_name
from hotcold.kernels.formats import EXACT_POSITIONS

IDS = np.array([1, 30, 4, 7, 39, 30, 2, 11, 0, 25, 3, 3, 17, 20, 9, 31, 5, 5, 28, 14], np.int32)
Thresholds = dict[str, NDArray[np.float32]]


def model_file(folder: Path, kind: str, sparse_layout: bool = True, **changes: Any) -> tuple[Path, Any]:
    """A GGUF in float32, and the directory that it is made from."""
    model = hf_models.make(folder / "model", kind, dtype="float32", **changes)
    path = folder / "out.gguf"
    convert(model.folder, None, path, "f32", sparse_layout=sparse_layout)
    return path, model


def forward(
    model: Any, ids: NDArray[np.int32], monkeypatch: pytest.MonkeyPatch, share: float = 0.5
) -> tuple[NDArray[np.float64], Thresholds]:
    """Logits with neurons left out behind the first positions, and the thresholds that leave them out.

    Of each neuron that some tokens meet, about `share` of them stay below its threshold, none of them narrowly.
    """
    experts = "num_experts" in model.config
    found: dict[tuple[int, int], NDArray[np.float32]] = {}
    place = _Place(model.config)
    activation, gated = hf_forward._Model.activation, hf_forward._Experts.gated

    def choose(act: NDArray[np.float64]) -> NDArray[np.float32]:
        ordered = np.sort(np.abs(act), axis=0)
        i = min(int(share * len(act)), len(act) - 2)
        return np.asarray((ordered[i] + ordered[i + 1]) / 2, np.float32)

    def thresholded(self: Any, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        act = activation(self, x, name)
        layer, e, tokens = place.next(len(act))
        if (layer, e) not in found:
            found[layer, e] = choose(act) if not experts else (np.abs(act[0]) * 1.5).astype(np.float32)
        is_exact = tokens[:, None] < EXACT_POSITIONS
        return np.where(is_exact | (np.abs(act) >= found[layer, e]), act, 0)

    def of_expert(self: Any, n: Any, where: str, names: Any) -> Any:
        place.expert = int(where.split(".")[-2])
        return gated(self, n, where, names)

    with monkeypatch.context() as patch:
        patch.setattr(hf_forward._Model, "activation", thresholded)
        patch.setattr(hf_forward._Experts, "gated", of_expert)
        logits = hf_forward.forward(model, ids)
    n_layer, n_ff = model.config["num_hidden_layers"], next(iter(found.values())).size
    if not experts:
        return logits, {threshold_name(i, False): found[i, 0] for i in range(n_layer)}
    n_expert = model.config["num_experts"]
    never = np.zeros(n_ff, np.float32)
    stacked = [np.stack([found.get((i, e), never) for e in range(n_expert)]) for i in range(n_layer)]
    return logits, {threshold_name(i, True): numbers for i, numbers in enumerate(stacked)}


class _Place:
    """Which layer, expert and tokens the next activation is of, from the order in which NumPy's pass takes them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.n_used = config.get("num_experts_per_tok", 0) if "num_experts" in config else 0
        self.expert, self._calls = 0, 0

    def next(self, n: int) -> tuple[int, int, NDArray[np.int64]]:
        call, self._calls = self._calls, self._calls + 1
        if not self.n_used:
            return call, 0, np.arange(n)
        layer, rest = divmod(call, len(IDS) * self.n_used)
        return layer, self.expert, np.array([rest // self.n_used])
