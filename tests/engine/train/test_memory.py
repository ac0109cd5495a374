"""--memory: what is chosen for it, what is refused, and that it holds."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run

from hotcold import load
from hotcold.engine.model.shapes import like
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.train import collect
from hotcold.engine.train.arithmetic import ALONE
from hotcold.engine.train.memory import Bound, training_bytes, within
from hotcold.engine.train.samples import Samples, open_samples
from hotcold.engine.train.settings import Settings
from hotcold.errors import DoesNotFitError

GB = 10**9
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_what_is_chosen() -> None:
    """Of a model of 7 B: all, then smaller ranks, then one start; then nothing is left to choose."""
    plan = plan_for_cpu(like("llama-2-7b:q8_0", 1024), Wanted("off", 512, 512, "f16"))
    auto, fixed = Settings(0.97, 100, 1), Settings(0.97, 100, 1, rank=4096)

    def chosen(settings: Settings, n_bytes: float) -> tuple[bool, int | None, str]:
        found, said = within(Bound(int(n_bytes), GB // 5), plan, settings, 2, 0)
        return found.both_starts, found.largest_rank, said

    assert chosen(fixed, 8 * GB)[:2] == (True, None) and chosen(fixed, 1.6 * GB)[:2] == (False, None)
    both, largest, said = chosen(auto, 8 * GB)
    assert (both, largest) == (True, 4096) and "both starts are tried, all ranks; at most" in said
    _, largest, said = chosen(auto, GB)
    assert largest is not None and 32 <= largest < 4096 and f"ranks up to {largest}" in said
    assert (
        training_bytes(plan.model, largest, 1, 2) <= 0.8 * GB < training_bytes(plan.model, largest + 32, 1, 2)
    )
    with pytest.raises(
        DoesNotFitError, match=r"--memory: 1000 MB .* when a layer's predictor of rank 4096 is trained"
    ):
        chosen(fixed, GB)
    with pytest.raises(DoesNotFitError, match=r"--memory: 300 MB .* when runs of 512 ids pass, 200 of them"):
        chosen(auto, 0.3 * GB)


def test_pages_that_are_given_back_are_read_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, array in (
        ("inputs_0", random.standard_normal((3000, 64)).astype(np.float16)),
        ("fired_0", random.integers(0, 256, (3000, 5), np.uint8)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    plain, frugal = (open_samples(tmp_path, 0, 37, gives_back) for gives_back in (False, True))
    for which in (np.sort(random.integers(0, 3000, 700)), slice(11, 600), slice(2900, 3000)):
        for one, other in zip(plain.batch(which, ALONE), frugal.batch(which, ALONE), strict=True):
            assert (one == other).all()
    assert pages_of(frugal) <= 16 * 4096 < pages_of(plain)


def pages_of(samples: Samples) -> int:
    """Bytes of the map of x that are in this process's memory."""
    first, found, here = f"{samples.x.ctypes.data & ~4095:x}", 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            here = line.startswith(first)
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_a_disk_that_fills_keeps_what_has_passed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts, kept = tmp_path / "whole", tmp_path / "parts", list[int]()
    with load(n_ctx=256, sparsity="off") as engine:
        ids = engine.tokenizer.encode((tiny / "valid_excerpt.txt").read_bytes())
        chunks = [np.array(ids[:4096], np.int32)[i : i + 256] for i in range(0, 4096, 256)]
        for folder in (whole, parts):
            folder.mkdir()
        collect.collect(engine, chunks, whole)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fails_after(100, os.pwrite))
            with pytest.raises(DoesNotFitError, match="No space left.*what has passed is kept"):
                collect.collect(engine, chunks, parts, keep=kept.append)
        assert kept == [6]  # of 12 heads, and 12 pieces a chunk, some of which are written by halves
        collect.collect(engine, chunks, parts, begun=6, keep=kept.append, gives_back=True)
    for file in whole.iterdir():
        assert file.read_bytes() == (parts / file.name).read_bytes()


def fails_after(n: int, write: Callable[..., int]) -> Callable[..., int]:
    left = n

    def some(file: int, data: Any, at: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, bytes(data)[: max(1, len(data) // 2)] if left % 9 == 0 else data, at)

    return some


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--rank", "128"), ("--rank", "64", "--workers", "2")])
def test_the_bound_holds(tiny: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The most that the process had, by the system."""
    bound = 380 * 10**6
    command = [
        sys.executable,
        "-m",
        "hotcold",
        "train-predictor",
        "-f",
        str(tiny / "valid_excerpt.txt"),
        "-c",
        "256",
    ]
    command += ["-o", str(tmp_path / "p.safetensors"), "--steps", "30", "--memory", "380MB", *options]
    compiled = run(
        "train-predictor",
        *command[4:8],
        "-o",
        str(tmp_path / "first.safetensors"),
        "--rank",
        "32",
        "--steps",
        "1",
    )
    assert compiled.returncode == 0, "what compiles kernels takes more"
    # by way of a small process: where one starts another, the second's peak counts what the first one has
    watched = subprocess.run(
        [sys.executable, "-c", PEAK, *command], check=False, capture_output=True, text=True
    )
    assert watched.returncode == 0 and "--memory: " in watched.stderr, watched.stderr
    assert int(watched.stdout.splitlines()[-1]) * 1024 < bound


@pytest.mark.slow
def test_too_little_is_refused(tiny: Path, tmp_path: Path) -> None:
    shown = run(
        "train-predictor",
        "-f",
        str(tiny / "valid_excerpt.txt"),
        "-o",
        str(tmp_path / "p.safetensors"),
        "--memory",
        "100MB",
    )
    assert shown.returncode == 4 and "--memory: 100 MB" in shown.stderr and not list(tmp_path.iterdir())
