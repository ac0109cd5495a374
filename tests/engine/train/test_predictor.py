"""Training of one layer's predictor: its arithmetic by definition, and what it learns."""

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from hotcold.engine.train.arithmetic import ALONE, threads
from hotcold.engine.train.descent import Adam, Quality, gradients, quality
from hotcold.engine.train.gate import gate_of_matrix
from hotcold.engine.train.predictor import Trained, train
from hotcold.engine.train.ranks import Costs, best_rank
from hotcold.engine.train.samples import Samples
from hotcold.engine.train.settings import Training
from hotcold.engine.train.starts import directions_start

N_EMBD, N_FF = 32, 64


def loss(
    fc1: NDArray[np.float64], fc2: NDArray[np.float64], x: NDArray[np.float64], fired: NDArray[np.bool_]
) -> float:
    """By its definition, a firing neuron counting threefold."""
    z = np.maximum(x @ fc1.T, 0) @ fc2.T
    return float(np.where(fired, 3 * np.logaddexp(0, -z), np.logaddexp(0, z)).mean())


def test_gradients_are_the_slopes_of_the_loss() -> None:
    random = np.random.default_rng(0)
    fc1, fc2, x = (
        random.standard_normal((5, 7)),
        random.standard_normal((6, 5)),
        random.standard_normal((9, 7)),
    )
    fired = random.random((9, 6)) < 0.3
    narrow = [array.astype(np.float32) for array in (fc1, fc2, x)]
    by_fc1, by_fc2, recall = gradients(narrow[0], narrow[1], narrow[2], fired, 3.0)
    says = np.maximum(x @ fc1.T, 0) @ fc2.T >= 0
    assert recall == pytest.approx((says & fired).sum() / fired.sum())
    for matrix, got in ((fc1, by_fc1), (fc2, by_fc2)):
        for at in np.ndindex(matrix.shape):
            low, high = matrix[at] - 1e-6, matrix[at] + 1e-6
            values = []
            for matrix[at] in (low, high):
                values.append(loss(fc1, fc2, x, fired))
            matrix[at] = (low + high) / 2
            assert got[at] == pytest.approx((values[1] - values[0]) / 2e-6, abs=2e-5)


def test_adam_is_adam() -> None:
    random = np.random.default_rng(1)
    matrix, steps = random.standard_normal((3, 4)), random.standard_normal((20, 3, 4))
    got, adam = matrix.astype(np.float32), Adam((3, 4))
    mean = square = np.zeros((3, 4))
    for t, gradient in enumerate(steps, 1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        matrix = matrix - 0.01 * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        adam.update(got, gradient.astype(np.float32), 0.01)
    assert got == pytest.approx(matrix, abs=1e-5)


@pytest.fixture(scope="module")
def planted() -> tuple[Samples, NDArray[np.float32]]:
    """Neurons whose gates have eight directions alone: a predictor exists."""
    random = np.random.default_rng(2)
    gate = (random.standard_normal((N_FF, 8)) @ random.standard_normal((8, N_EMBD))).astype(np.float32)
    x = random.standard_normal((6000, N_EMBD)) * random.uniform(0.5, 20, (6000, 1))
    fired = x @ gate.T > 3 * np.abs(x).mean(1, keepdims=True) * np.sqrt(8)
    return Samples(x.astype(np.float16), np.packbits(fired, axis=1, bitorder="little"), N_FF), gate


def test_what_can_be_foreseen_is_learned(planted: tuple[Samples, NDArray[np.float32]]) -> None:
    samples, gate = planted
    found = train(samples, 32, gate_of_matrix(gate), Training(0.97, 250, 1)).quality
    assert 0.1 < found.firing < 0.4
    assert found.recall > 0.95 and found.listed < 1.35 * found.firing


def test_the_same_seed_trains_the_same(planted: tuple[Samples, NDArray[np.float32]]) -> None:
    samples, gate = planted
    first, again, other = (
        train(samples, 32, gate_of_matrix(gate), Training(0.97, 20, seed)) for seed in (1, 1, 2)
    )
    assert (first.fc1 == again.fc1).all() and (first.fc2 == again.fc2).all()
    assert (first.fc2 != other.fc2).any()


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def trained_by(n: int, samples: Samples, gate: NDArray[np.float32]) -> Trained:
    with threads(n) as on:
        return train(samples, 32, gate_of_matrix(gate), Training(0.97, 20, 1), on=on)


def test_any_number_of_threads_trains_the_same(planted: tuple[Samples, NDArray[np.float32]]) -> None:
    samples, gate = planted
    with threadpool_limits(2, "blas"):
        one, three = (trained_by(n, samples, gate) for n in (1, 3))
        with threads(2) as on:
            in_each = on.each(lambda part: blas_threads(), 5, 2)
    assert (one.fc1 == three.fc1).all() and (one.fc2 == three.fc2).all() and one.quality == three.quality
    assert len(in_each) == 3 and all(in_each) and all(n == 1 for found in in_each for n in found)


def test_a_start_from_the_gates_directions_lists_what_fires(
    planted: tuple[Samples, NDArray[np.float32]],
) -> None:
    """Gates of eight directions need sixteen rows, and are positive wherever they fire."""
    samples, gate = planted
    fc1, fc2 = directions_start(samples, gate_of_matrix(gate), 16, 5000, ALONE)
    found = quality(fc1, fc2, samples, slice(5000, 6000))
    assert fc1.shape == (16, N_EMBD) and fc2.shape == (N_FF, 16) and found.recall == 1 and found.listed < 0.55


@pytest.mark.parametrize(
    ("listed", "rank"),
    [
        ({32: 0.5, 64: 0.2, 128: 0.19, 256: 0.19}, 64),
        ({32: 0.2, 64: 0.2, 128: 0.2, 256: 0.2}, 32),
        ({32: 0.23, 64: 0.2, 128: 0.19, 256: 0.19}, 32),  # 8.7 kB of fc1, 8.4 kB of gate rows
        ({32: 0.24, 64: 0.2, 128: 0.19, 256: 0.19}, 64),
        ({32: 1.0, 64: 0.6, 128: 0.2, 256: 0.19}, 128),
    ],
)
def test_the_rank_of_the_least_time(listed: dict[int, float], rank: int) -> None:
    costs = Costs(n_embd=256, n_ff=1024, first_row=272, other_rows=544, bits=8.5)
    tried: list[int] = []

    def after_some_training(of: int) -> Quality:
        tried.append(of)
        return Quality(0.97, listed[of], 0.05)

    assert best_rank(costs, after_some_training) == rank
    assert len(tried) == len(set(tried)), "none is trained twice"
    lacking = {32: 0.9}  # a recall that is no choice, whatever it reads
    assert best_rank(costs, lambda of: Quality(lacking.get(of, 0.97), listed[of], 0.05), 0.97) == max(
        rank, 64
    )
    assert best_rank(costs, lambda of: Quality(0.97, 1.0, 0.05), 0.97) is None, "none pays"
    tried.clear()
    best_rank(costs, after_some_training, 0.97, largest=40)
    assert set(tried) == {32}
    # all rows of gate, against the predictor and what it lists
    assert costs.exact(0.05) == 1024 * (272 + 0.05 * 544)
    assert costs.predicted(64, Quality(1, 0.2, 0.05)) == 64 * 1280 * 8.5 / 8 + 1024 * (0.2 * 272 + 0.05 * 544)
