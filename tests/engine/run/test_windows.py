"""Layers that see a window keep its keys and values alone, and compute what they would with all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_runs import (
    Case,
    Logits,
    budget_bytes,
    cpu_logits,
    mixed_logits,
    model_of,
    on_device,
    plan_with,
    some_neurons,
    split_plan,
)

import hotcold
from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import cache_line
from hotcold.engine.generation.generation import ROLLED_OVER
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import DoesNotFitError
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import cache_positions

IDS = np.random.default_rng(3).integers(3, 600, 300).astype(np.int32)
N_CTX, WINDOW = 512, 8


@pytest.fixture
def file(data: Path) -> Iterator[GGUFFile]:
    """Five layers with a window of 8, and one that sees all."""
    with open_gguf(data / "llamacpp" / "gemma3.f16.gguf") as opened:
        yield opened


def executor(file: GGUFFile, n_batch: int, kv_type: str = "f16") -> Executor:
    return Executor(plan_for_cpu(load_model(file), Wanted("off", N_CTX, n_batch, kv_type)), file, 2)


def logits_of(it: Executor, ids: NDArray[np.int32] = IDS) -> Logits:
    out = np.zeros((ids.size, it.model.n_vocab), np.float32)
    for start in range(0, ids.size, it.n_batch):
        it.run(ids[start : start + it.n_batch], start, out[start : start + it.n_batch])
    return out


@pytest.mark.parametrize(
    ("window", "n_batch", "n_positions"),
    [
        (0, 4, 512),
        (8, 1, 128),
        (8, 4, 128),
        (64, 1, 128),
        (65, 1, 128),
        (66, 1, 192),
        (8, 512, 512),
        (600, 1, 512),
    ],
)
def test_a_cache_holds_a_window_and_a_batch(window: int, n_batch: int, n_positions: int) -> None:
    """Whole blocks, and one more, since a window begins in the middle of one."""
    assert cache_positions(N_CTX, window, n_batch) == n_positions


def test_what_is_seen_together_never_shares_a_block() -> None:
    for window in range(1, 140, 3):
        for n_batch in (1, 2, 63, 64, 65, 200):
            n_blocks = cache_positions(1 << 20, window, n_batch) // 64
            for last in range(window + n_batch, window + n_batch + 64):
                first = last - n_batch + 1 - window + 1
                assert last // 64 - first // 64 < n_blocks


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_a_window_that_goes_round_changes_no_bit(kv_type: str, file: GGUFFile) -> None:
    """300 tokens in caches of 128 positions, against caches of all."""
    seen, held = set(), []
    for n_batch in (1, 4, 37, 512):
        with executor(file, n_batch, kv_type) as it:
            held.append([cache.n_positions for cache in it.plan.caches])
            seen.add(logits_of(it).tobytes())
    assert held[1] == [128] * 5 + [512] and held[3] == [512] * 6
    assert len(seen) == 1


def test_the_plan_counts_a_windows_bytes(file: GGUFFile) -> None:
    model = load_model(file)
    whole, some = (plan_for_cpu(model, Wanted("off", 4096, n, "f16")).caches for n in (4096, 4))
    assert [cache.n_bytes for cache in whole] == [whole[5].n_bytes] * 6
    assert [cache.n_bytes * 32 for cache in some[:5]] == [some[5].n_bytes] * 5
    plan = split_plan(model, Case("off", "f16", 4096, 4), 64 << 20)
    assert plan.totals.kv_cache == sum(cache.n_bytes for cache in plan.caches)
    assert plan.caches[0].why == "128 positions of layer 0, a window of 8"
    assert plan.caches[5].why == "4096 positions of layer 5"


@pytest.mark.parametrize("share", [0.5, *(pytest.param(n, marks=pytest.mark.slow) for n in (0.0, 1.0))])
def test_windows_go_round_on_the_device(
    share: float, file: GGUFFile, split_device: Device, distance: Callable[[Logits, Logits], float]
) -> None:
    ids, case = IDS[:160], Case("off", "f32", N_CTX, 32)
    model = model_of(file)
    with Executor(plan_for_cpu(model, Wanted("off", N_CTX, 32, "f32")), file, 2) as it:
        wanted = logits_of(it, ids)
    smallest, largest = (budget_bytes(model, case, which) for which in ("one layer", "everything"))
    plan = split_plan(model, case, smallest + int(share * (largest - smallest)))
    assert share < 1 or plan.totals.kv_cache > 0
    with on_device(plan, file, split_device) as it:
        assert split_device.counters.live_bytes == plan.totals.used
        assert distance(logits_of(it, ids), wanted) <= 1e-5


@pytest.mark.sample(5)
@pytest.mark.parametrize("n_hot", [0, 23, 64])
def test_neurons_of_a_gelu_gated_ffn_are_divided(
    n_hot: int, data: Path, tmp_path: Path, split_device: Device, distance: Callable[[Logits, Logits], float]
) -> None:
    """With a down projection that has a row a neuron; norms follow the merge."""
    convert(data / "llamacpp" / "gemma3.f16.gguf", None, tmp_path / "rows.gguf", "f16", sparse_layout=True)
    with open_gguf(tmp_path / "rows.gguf") as rows:
        model, case = model_of(rows), Case("off", n_ctx=64)
        plan = plan_with(model, case, some_neurons(model, n_hot))
        assert [split.n_hot for split in plan.layers] == [n_hot] * 6
        with on_device(plan, rows, split_device) as it:
            assert distance(mixed_logits(it), cpu_logits(model, rows, case)) <= 1e-5


def test_a_window_that_has_moved_on_cannot_be_cut_back(file: GGUFFile) -> None:
    with executor(file, 4) as it:
        logits = logits_of(it, IDS[:200])
        assert (
            it.slots.can_go_on(200)
            and it.slots.can_go_on(80)
            and not it.slots.can_go_on(78)
            and it.slots.can_go_on(0)
        )
        with pytest.raises(DoesNotFitError, match="position to go on from: 40 .*start again at position 0"):
            it.run(IDS[40:44], 40)
        assert logits_of(it, IDS[:60]).tobytes() == logits[:60].tobytes()
        assert it.slots.can_go_on(30)
        it.run(IDS[30:34], 30)


def test_what_the_window_still_holds_is_used_again(file: GGUFFile) -> None:
    """Cut back as far as it goes, the next tokens are those of a text that was never longer."""
    with executor(file, 4) as it:
        logits = logits_of(it, IDS[:200])
        it.run(IDS[:4], 190)
        out = np.zeros((10, it.model.n_vocab), np.float32)
        for at in range(100, 110):
            it.run(IDS[at : at + 1], at, out[at - 100 : at - 99])
        assert out.tobytes() == logits[100:110].tobytes()


def test_a_prompt_starts_again_where_windows_have_moved_on(data: Path) -> None:
    with hotcold.load(data / "llamacpp" / "gemma3.f16.gguf", n_ctx=N_CTX, n_batch=4, device="cpu") as engine:
        first = engine.generate(IDS[:200].tolist(), 4, temp=0.0, ignore_eos=True)
        list(first)
        near = engine.generate([*IDS[:150].tolist(), 7], 1, temp=0.0, after=first)
        list(near)
        assert (near.statistics.n_reused, near.warnings) == (150, ())
        far = engine.generate([*IDS[:20].tolist(), 7], 4, temp=0.0, ignore_eos=True, after=near)
        list(far)
        assert (far.statistics.n_reused, far.warnings) == (0, (ROLLED_OVER,))
        alone = engine.generate([*IDS[:20].tolist(), 7], 4, temp=0.0, ignore_eos=True)
        list(alone)
        assert far.ids == alone.ids


def test_the_dump_shows_what_each_layer_holds(file: GGUFFile) -> None:
    plan = plan_for_cpu(load_model(file), Wanted("off", 4096, 4, "f16"))
    rows = as_json(plan, "model")["kv_cache"]
    assert [row["positions"] for row in rows] == [128] * 5 + [4096]
    assert cache_line(rows[0]).split() == [
        "KV",
        "cache",
        "of",
        "layer",
        "0",
        "128",
        "positions",
        "32768",
        "cpu",
    ]
