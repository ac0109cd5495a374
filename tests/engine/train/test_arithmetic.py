"""A layer's training over another array module, and which device it gets. No test here has a card."""

from typing import Any

import numpy as np
import pytest
from stub_arrays import CardArray, StubArrays

from hotcold.engine.device import card_arrays
from hotcold.engine.device.choice import parse_device
from hotcold.engine.train import arithmetic
from hotcold.engine.train.arithmetic import Arithmetic, arithmetic_on, on_card
from hotcold.engine.train.gate import gate_of_matrix
from hotcold.engine.train.predictor import held_back, train
from hotcold.engine.train.samples import Samples
from hotcold.engine.train.settings import Training
from hotcold.engine.train.signs import signs_quality
from hotcold.errors import DeviceError, SettingError

N_EMBD, N_FF, N_TOKENS = 32, 70, 3000


@pytest.fixture(scope="module")
def layer() -> tuple[Samples, Any]:
    random = np.random.default_rng(3)
    gate = random.standard_normal((N_FF, N_EMBD), np.float32)
    x = random.standard_normal((N_TOKENS, N_EMBD))
    fired = np.packbits(x @ gate.T > 6, axis=1, bitorder="little")
    return Samples(x.astype(np.float16), fired, N_FF), gate_of_matrix(gate)


def test_another_array_module_trains_the_same(layer: tuple[Samples, Any]) -> None:
    """To the bit, since NumPy computes behind it; it refuses arrays that are not its own, and what CuPy lacks."""
    samples, gate = layer
    stub = StubArrays()
    here = Arithmetic(np, on_card(None).each)
    found, wanted = (train(samples, 32, gate, Training(0.97, 130, 1), on=on) for on in (on_card(stub), here))
    assert (found.fc1 == wanted.fc1).all() and (found.fc2 == wanted.fc2).all()
    assert found.quality == wanted.quality and type(found.fc1) is np.ndarray
    held = held_back(N_TOKENS)
    by_signs = [signs_quality(samples, gate, held.start, held, 0.97, on) for on in (on_card(stub), here)]
    assert by_signs[0] == by_signs[1]
    assert {"matmul", "exp", "unpackbits", "where"} <= stub.used


def test_the_stand_in_refuses_what_a_card_would() -> None:
    stub, here = StubArrays(), np.ones((2, 2), np.float32)
    there = stub.asarray(here)
    assert type(there @ there) is CardArray and type(stub.exp(there)) is CardArray
    for mixed in (
        lambda: there @ here,
        lambda: stub.matmul(there, here),
        lambda: np.concatenate((there, there)),
    ):
        with pytest.raises(TypeError):
            mixed()


def test_what_is_used_is_in_cupy(layer: tuple[Samples, Any]) -> None:
    cupy = pytest.importorskip("cupy")
    stub = StubArrays()
    train(*layer[:1], 32, layer[1], Training(0.97, 3, 1), on=on_card(stub))
    assert not [name for name in stub.used if not callable(getattr(cupy, name, None))]


def test_signs_are_xor_and_a_count(layer: tuple[Samples, Any]) -> None:
    """By definition: agreeing sign bits are counted, and the count is the least that finds what is wanted."""
    samples, gate = layer
    held = held_back(N_TOKENS)
    found = signs_quality(samples, gate, held.start, held, 0.9, arithmetic.ALONE)
    x, fired = (
        samples.x.astype(np.float32),
        np.unpackbits(samples.bits, axis=1, count=N_FF, bitorder="little") > 0,
    )
    agree = ((x > 0)[:, None, :] == (gate.rows(slice(None)) > 0)[None]).sum(2)
    some = np.linspace(0, held.start - 1, 1024, dtype=np.int64)
    enough = next(n for n in range(N_EMBD, -1, -1) if (agree[some][fired[some]] >= n).mean() >= 0.9)
    listed = agree[held] >= enough
    assert found.listed == listed.mean() and found.recall == listed[fired[held]].mean()


def test_which_device_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="emulated"), arithmetic_on(parse_device("emulated"), 1):
        pass

    def no_card(cupy: Any) -> int:
        raise DeviceError("CUDA driver", "none", "a card needs one", "use --device cpu")

    monkeypatch.setattr(card_arrays, "load_cupy", StubCard)
    monkeypatch.setattr(card_arrays, "usable_cards", no_card)
    with arithmetic_on(parse_device("auto"), 2) as on:
        assert on.xp is np and on.n_threads == 2
    with pytest.raises(DeviceError, match="a card needs one"), arithmetic_on(parse_device("cuda"), 1):
        pass
    monkeypatch.setattr(card_arrays, "usable_cards", lambda cupy: 1)
    with pytest.raises(DeviceError, match=r"cuda:1 \(1 cards\)"), arithmetic_on(parse_device("cuda:1"), 1):
        pass
    for name in ("auto", "cuda", "cuda:0"):
        with arithmetic_on(parse_device(name), 1) as on:
            assert isinstance(on.xp, StubCard) and on.xp.entered == [0, 0]
    monkeypatch.setattr(StubCard, "ones", lambda card, shape, kind: 1 / 0)
    with pytest.raises(DeviceError, match="no products"), arithmetic_on(parse_device("cuda"), 1):
        pass
    with arithmetic_on(parse_device("auto"), 1) as on:
        assert on.xp is np


class StubCard(StubArrays):
    """A module with a card."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = list[int]()
        self.cuda = self

    def Device(self, index: int) -> "StubCard":
        self.entered.append(index)
        return self

    def ones(self, shape: tuple[int, ...], kind: type) -> Any:
        return self.asarray(np.ones(shape, kind))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass
