"""Several sequences in one run: the bits of each are those that it has alone."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slot_runs import N_STEPS, Logits, alone, prompts, together

from hotcold.engine.dump.report import as_json
from hotcold.engine.dump.text import cache_line
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.kernels.cpu import sizes

N_SLOTS, N_CTX = 3, 48


def opened(path: Path, sparsity: str, kv_type: str, n_ctx: int = N_CTX, n_threads: int = 2) -> Executor:
    file = open_gguf(path)
    how = Wanted(sparsity, n_ctx, 16, kv_type, N_SLOTS)
    return Executor(plan_for_cpu(load_model(file), how), file, n_threads)


CASES = [
    ("llamacpp/llama.q4_k", "off", "f16"),
    ("llamacpp/llama.f32", "off", "f32"),
    ("llamacpp/gemma3.q4_0", "off", "f16"),
    ("llamacpp/qwen2moe.q4_0", "off", "f32"),
    ("llamacpp/mixtral.q4_0", "off", "f16"),
    ("powerinfer/llama-q4_0.powerinfer", "predictor", "f16"),
    ("powerinfer/bamboo-f16.powerinfer", "exact", "f32"),
    ("powerinfer/falcon-q4_0.powerinfer", "predictor", "f16"),
    ("powerinfer/opt-f16.powerinfer", "predictor", "f16"),
]


@pytest.mark.parametrize(("name", "sparsity", "kv_type"), CASES)
def test_bits_do_not_depend_on_neighbours(name: str, sparsity: str, kv_type: str, data: Path) -> None:
    with opened(data / f"{name}.gguf", sparsity, kv_type) as executor:
        each = prompts(executor.model.n_vocab)
        wanted = [alone(executor, prompt, N_STEPS) for prompt in each]
        for order in ([0, 1, 2], [2, 0, 1], [1, 2]):
            some = each[: len(order)]
            for found, of_one in zip(together(executor, some, order), wanted, strict=False):
                assert [a.tobytes() for a in found] == [a.tobytes() for a in of_one]


def test_parts_of_a_long_context_are_joined_for_each(data: Path) -> None:
    dice = np.random.default_rng(1)
    with opened(data / "llamacpp" / "llama.f16.gguf", "off", "f16", 600) as executor:
        each = [dice.integers(3, 200, n).astype(np.int32) for n in (540, 8, 513)]
        wanted = [long_alone(executor, prompt) for prompt in each]
        for slot, prompt in enumerate(each):
            for start in range(0, prompt.size - 1, 16):
                executor.run(prompt[start : min(start + 16, prompt.size - 1)], start, None, slot)
        logits = np.empty((3, executor.model.n_vocab), np.float32)
        executor.run_apart(
            np.array([p[-1] for p in each], np.int32), [p.size - 1 for p in each], [0, 1, 2], logits
        )
    assert [row.tobytes() for row in logits] == [row.tobytes() for row in wanted]


def long_alone(executor: Executor, prompt: NDArray[np.int32]) -> Logits:
    logits = np.empty((1, executor.model.n_vocab), np.float32)
    for start in range(0, prompt.size, 16):
        executor.run(prompt[start : start + 16], start, logits)
    row: Logits = logits[0]
    return row


def test_more_sequences_than_there_is_room_for_parts(data: Path) -> None:
    """In one run, of a context of several parts: their attention goes in turns."""
    dice, n = np.random.default_rng(2), sizes.SPLIT_TOKENS + 2
    file = open_gguf(data / "llamacpp" / "llama.f16.gguf")
    plan = plan_for_cpu(load_model(file), Wanted("off", 600, 32, "f16", n))
    with Executor(plan, file, 2) as executor:
        each = [dice.integers(3, 200, 3 + slot % 4).astype(np.int32) for slot in range(n)]
        wanted = [long_alone(executor, prompt) for prompt in each]
        for slot, prompt in enumerate(each):
            executor.run(prompt[:-1], 0, None, slot)
        logits = np.empty((n, executor.model.n_vocab), np.float32)
        last = np.array([p[-1] for p in each], np.int32)
        executor.run_apart(last, [p.size - 1 for p in each], range(n), logits)
    assert [row.tobytes() for row in logits] == [row.tobytes() for row in wanted]


def test_a_slot_that_is_none_is_refused(data: Path) -> None:
    with opened(data / "llamacpp" / "llama.f16.gguf", "off", "f16") as executor:
        logits = np.empty((2, executor.model.n_vocab), np.float32)
        two = np.array([3, 4], np.int32)
        with pytest.raises(SettingError, match="slot: 3"):
            executor.run(two, 0, None, 3)
        for places in (([0, 0], [1, 1]), ([0], [1]), ([0, 0, 0], [0, 1, 2])):
            with pytest.raises(SettingError, match="sequences of one run"):
                executor.run_apart(two, *places, logits)
        with pytest.raises(DoesNotFitError, match="context holds 48"):
            executor.run_apart(two, [0, 48], [0, 1], logits)


def test_a_plan_counts_every_slot(data: Path) -> None:
    with open_gguf(data / "llamacpp" / "llama.f16.gguf") as file:
        model = load_model(file)
        one, three = (plan_for_cpu(model, Wanted("off", N_CTX, 16, "f16", n)) for n in (1, 3))
    assert [cache.n_bytes for cache in three.caches] == [3 * cache.n_bytes for cache in one.caches]
    assert as_json(three, "")["settings"]["n_slots"] == 3
    assert "3 x 48 positions" in cache_line(as_json(three, "")["kv_cache"][0])


def test_slots_of_windows_move_on_by_themselves(data: Path) -> None:
    with opened(data / "llamacpp" / "gemma3.f16.gguf", "off", "f16", 512) as executor:
        long = np.arange(3, 203, dtype=np.int32)
        for start in range(0, 200, 16):
            executor.run(long[start : start + 16], start, None, 1)
        assert not executor.slots.can_go_on(60, 1) and executor.slots.can_go_on(60, 0)
