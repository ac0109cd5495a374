"""Thresholds at several levels: how much of what all neurons add to the residual is left out.

A neuron adds about |act(gate)| E|up| |down row|: the product of what it is on this token and of what does not depend on
the token much, its importance. A level leaves out the neurons that add least, so much of them that in each layer they
have together the level's part of the sum over all. The threshold of a neuron is the layer's divided by its importance
(Lee et al., 2024, CATS, have one threshold a layer; by neuron it selects better).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.calibrate.gates import Gates
from hotcold.engine.generation.generation import Engine
from hotcold.engine.host.stores import HostStore
from hotcold.engine.profile.firing import layer_lengths
from hotcold.engine.profile.passing import heard, run_chunk
from hotcold.engine.run.trace import Taken
from hotcold.gguf_io.names import threshold_name

LEVELS = 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3
"""Parts that are left out."""
STEPS, OCTAVES = 16, 96  # of the histogram of what neurons add: bins an octave, and how far down from 2^32
Thresholds = Mapping[str, NDArray[np.float32]]
"""By the names that tensors of a file have, see `threshold_name`."""


def none_yet(n_layer: int, n_ff: int, n_expert: int) -> dict[str, NDArray[np.float32]]:
    """Thresholds of 0, which every neuron reaches; n_expert is 0 for a model without."""
    shape = (n_expert, n_ff) if n_expert else (n_ff,)
    return {threshold_name(i, n_expert > 0): np.zeros(shape, np.float32) for i in range(n_layer)}


@dataclass(frozen=True)
class Worth:
    """What a model's neurons add, on the texts that passed.

    Attributes:
        importance: of each neuron, float64 [n_layer, n_expert, n_ff], of a model without experts [n_layer, 1, n_ff].
        sums: of each layer what its neurons added, by how much they did at once, float64 [n_layer, n_bins].
    """

    importance: NDArray[np.float64]
    sums: NDArray[np.float64]

    def fill(self, thresholds: Thresholds, level: float) -> None:
        """Set thresholds to this level, 0 for neurons that were never seen."""
        up_to = self.sums.cumsum(1)
        for i, (numbers, sums) in enumerate(zip(thresholds.values(), up_to, strict=True)):
            bin_ = int(np.searchsorted(sums, level * sums[-1]))
            least = 2.0 ** ((bin_ + 0.5) / STEPS - (OCTAVES - 32)) if level > 0 else 0.0
            own = self.importance[i]
            found = np.divide(least, own, out=np.zeros_like(own), where=own > 0)
            numbers[...] = np.minimum(found, np.finfo(np.float32).max).reshape(numbers.shape)


def measure_worth(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Worth:
    """Let the chunks pass twice: for the mean of |up|, then for what neurons add. Nothing may be left out meanwhile.

    Args:
        progress: hears chunks done and in all.
    """
    model, store = engine.model, HostStore(engine.file)
    experts = model.experts
    shape = (model.n_layer, *((1, model.n_ff) if experts is None else (experts.n_expert, experts.n_ff)))
    ups, n_seen = np.zeros(shape), np.zeros(shape[:2])
    gates, total = Gates(engine.executor, store), 2 * len(chunks)

    def hear_up(taken: Taken) -> None:
        for layer, e, _, up in gates.read(taken):
            ups[layer, e] += up.sum(0, dtype=np.float64)
            n_seen[layer, e] += len(up)

    for i in _passed(engine, chunks, hear_up):
        progress(i, total)
    lengths = np.stack([layer_lengths(store, layer) for layer in model.layers])
    importance = ups / np.maximum(n_seen, 1)[..., None] * lengths
    sums = np.zeros((model.n_layer, STEPS * OCTAVES))

    def hear_added(taken: Taken) -> None:
        for layer, e, act, _ in gates.read(taken):
            added = (act * importance[layer, e]).reshape(-1)
            with np.errstate(divide="ignore"):
                bins = STEPS * (np.log2(added) + (OCTAVES - 32))
            bins = np.clip(np.nan_to_num(bins, neginf=0), 0, sums.shape[1] - 1).astype(np.int64)
            sums[layer] += np.bincount(bins, added, sums.shape[1])

    for i in _passed(engine, chunks, hear_added):
        progress(len(chunks) + i, total)
    return Worth(importance, sums)


def _passed(
    engine: Engine, chunks: Sequence[NDArray[np.int32]], hear: Callable[[Taken], None]
) -> Iterator[int]:
    """Let the chunks pass; how many have."""
    engine.take_turn()
    with heard(engine.executor, hear):
        for i, chunk in enumerate(chunks, 1):
            run_chunk(engine.executor, chunk, lambda: None)
            yield i
