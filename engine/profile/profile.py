"""A model's neurons on a corpus: what each layer's do, how few of them do most, and whether these are stable."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.profile.counting import Chunk, ChunkCounts, Counter
from hotcold.engine.profile.firing import Counted, down_lengths
from hotcold.engine.profile.passing import check_executor
from hotcold.engine.profile.recency import MOST_TOKENS, SHARES, HitRates, Recency

FIRINGS, WEIGHT = "firings", "weight"

Progress = Callable[[int, int, float], None]
"""Hears of tokens done, tokens in all, and tokens a second."""


@dataclass(frozen=True)
class Profile:
    """What was counted.

    Attributes:
        of: "firings" (on how many tokens each neuron of a ReLU fired, or each expert was chosen), or "weight"
            (of a neuron that is never idle, the sum of |hidden| times the length of its row of `down`).
        n_tokens: that passed.
        n_chunks: into which their texts were cut, of `all_chunks`.
        counts: float64 [n_layer, n_ff], or of experts [n_layer, n_expert]; of their neurons [n_layer, n_expert n_ff].
        first_half: the same, of the first half of the chunks.
        hit_rates: of sets of neurons, by the firings of the first `n_followed` tokens.
    """

    of: str
    n_tokens: int
    n_chunks: int
    all_chunks: int
    counts: Counted
    first_half: Counted
    hit_rates: tuple[HitRates, ...] = ()
    n_followed: int = 0

    @property
    def firing(self) -> NDArray[np.float64] | None:
        """The mean share of neurons that fire on a token, for each layer; None where all do."""
        return self.counts.mean(1) / max(self.n_tokens, 1) if self.of == FIRINGS else None

    def covered(self) -> list[tuple[float, float]]:
        """Shares of the neurons, and the part of all that is counted which each layer's hottest ones hold."""
        hottest = -np.sort(-self.counts, axis=1)
        sums = hottest.sum(0).cumsum()
        sizes = [max(1, round(share * sums.size)) for share in SHARES]
        return [(share, float(sums[n - 1] / (sums[-1] or 1))) for share, n in zip(SHARES, sizes, strict=True)]

    def stability(self, share: float = 0.2) -> tuple[float, float]:
        """Of the second half's counts, what the hottest neurons of the first half hold, and its own hottest."""
        second = self.counts - self.first_half
        n, total = max(1, round(share * second.shape[1])), second.sum() or 1
        by_first = np.argsort(-self.first_half, axis=1, kind="stable")[:, :n]
        own = -np.sort(-second, axis=1)[:, :n]
        return float(np.take_along_axis(second, by_first, 1).sum() / total), float(own.sum() / total)


def empty(engine: Engine, n_chunks: int) -> Profile:
    """Nothing counted yet of so many chunks."""
    model = engine.model
    none = np.zeros((model.n_layer, model.n_units))
    fires = model.ffn_activation == "relu" or model.unit == "expert"
    return Profile(FIRINGS if fires else WEIGHT, 0, 0, n_chunks, none, none)


def measure(
    engine: Engine,
    chunks: Sequence[NDArray[np.int32]],
    profile: Profile,
    progress: Progress | None = None,
    keep: Callable[[Profile], None] | None = None,
    by: Callable[[Iterable[Chunk]], Iterator[ChunkCounts]] | None = None,
) -> Profile:
    """Let the chunks pass that a profile has not counted yet, and count them too.

    Args:
        by: counts chunks in their order, in place of this engine.
        keep: takes what is counted when this is interrupted or fails, whole chunks alone.

    Raises:
        SettingError: n_batch below 4.
    """
    model = engine.model
    lengths = 1.0 if profile.of == FIRINGS else down_lengths(engine.file, model)
    total, started, before = sum(chunk.size for chunk in chunks), time.perf_counter(), profile.n_tokens
    check_executor(engine.executor, on_device=True)
    recency, to_count = Recency(model.n_layer, model.n_units), _with_followed(chunks[profile.n_chunks :])
    engine.take_turn()
    try:
        for counted in map(Counter(engine).count, to_count) if by is None else by(to_count):
            for layer, bits in enumerate(counted.fired):
                recency.add(layer, np.unpackbits(bits, axis=1, count=model.n_units).astype(bool))
            profile = _with(profile, counted.counts * lengths, counted.n_tokens)
            if progress is not None:
                seconds = time.perf_counter() - started
                progress(profile.n_tokens, total, (profile.n_tokens - before) / max(seconds, 1e-9))
    except BaseException:
        if keep is not None and profile.n_chunks:
            keep(profile)
        raise
    if before:  # the tokens before were not followed
        return profile
    return replace(profile, hit_rates=tuple(recency.hit_rates(profile.counts)), n_followed=recency.n_tokens)


def _with_followed(chunks: Sequence[NDArray[np.int32]]) -> Iterator[Chunk]:
    """The chunks; the first tokens are followed one by one."""
    left = MOST_TOKENS
    for chunk in chunks:
        yield Chunk(chunk, min(left, chunk.size))
        left -= min(left, chunk.size)


def _with(profile: Profile, counts: Counted, n_tokens: int) -> Profile:
    """A profile and one chunk more."""
    is_first = profile.n_chunks < profile.all_chunks // 2
    return replace(
        profile,
        n_tokens=profile.n_tokens + n_tokens,
        n_chunks=profile.n_chunks + 1,
        counts=profile.counts + counts,
        first_half=profile.first_half + counts if is_first else profile.first_half,
    )


def merged(one: Profile, other: Profile) -> Profile:
    """Both together; what was followed token by token is not known of the two."""
    return Profile(
        one.of,
        one.n_tokens + other.n_tokens,
        one.n_chunks + other.n_chunks,
        one.all_chunks + other.all_chunks,
        one.counts + other.counts,
        one.first_half + other.first_half,
    )
