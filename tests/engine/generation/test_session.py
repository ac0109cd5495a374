"""A session's file: the next prompt runs only what is new in it, and no other file passes for one."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run

from hotcold import Engine, load
from hotcold.engine.generation.session import read, restore, save
from hotcold.errors import DoesNotFitError, FileError, SettingError

PROMPT = "It is a truth universally acknowledged, that a single man in possession of"
MORE = PROMPT + " a good fortune"
PLACES: dict[str, dict[str, Any]] = {
    "CPU": {"n_ctx": 96, "vram_budget": 0},
    "split": {"n_ctx": 96, "device": "emulated"},
    "device": {"n_ctx": 128, "device": "emulated", "vram_budget": "64MiB"},
}
BUDGETS = {"f16": "2350KiB", "f32": "2500KiB", "q8_0": "2250KiB"}  # some layers' caches fit, not all
SIDES = {"CPU": {"cpu"}, "split": {"cpu", "gpu"}, "device": {"gpu"}}


def text_of(engine: Engine, prompt: str, held: Any = None) -> tuple[str, int]:
    generation = engine.generate(prompt, 12, temp=0.0, after=held)
    return "".join(generation), generation.statistics.n_reused


def saved(engine: Engine, path: Path, prompt: str = PROMPT) -> None:
    generation = engine.generate(prompt, 4, temp=0.0)
    "".join(generation)
    save(engine, generation.held, path)


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize(("n_ctx", "sparsity"), [(64, "auto"), (300, "off")])
def test_a_restored_session_goes_on_as_if_nothing_had_been(
    tmp_path: Path, kv_type: str, n_ctx: int, sparsity: str
) -> None:
    path = tmp_path / "one.session"
    how: dict[str, Any] = {"threads": 1, "kv_type": kv_type, "sparsity": sparsity}
    with load(n_ctx=64, **how) as engine:
        wanted, _ = text_of(engine, MORE)
        n_prompt = len(engine.tokenizer.encode(PROMPT))
        saved(engine, path)
    with load(n_ctx=n_ctx, n_batch=16, **how) as engine:
        text_of(engine, "Emma")
        text, n_reused = text_of(engine, MORE, restore(engine, path))
        assert text == wanted and n_prompt - 1 <= n_reused <= n_prompt
        held = restore(engine, path)
        text_of(engine, "Emma")
        assert text_of(engine, MORE, held) == (wanted, 0)  # somebody else has used the cache since


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("place", ["CPU", pytest.param("device", marks=pytest.mark.slow)])
def test_windows_are_restored_as_they_were(data: Path, tmp_path: Path, place: str) -> None:
    path, model = tmp_path / "one.session", data / "llamacpp" / "gemma3.f16.gguf"
    how: dict[str, Any] = PLACES[place] | {"n_ctx": 512, "n_batch": 16, "threads": 1}
    ids = list(range(3, 203))
    with load(model, **how) as engine:
        assert {cache.side for cache in engine.executor.plan.caches} == SIDES[place]
        wanted = list(engine.generate([*ids, 7, 8], 6, temp=0.0, ignore_eos=True))
        generation = engine.generate(ids, 1, temp=0.0)
        "".join(generation)
        save(engine, generation.held, path)
    with load(model, **how) as engine:
        after = engine.generate([*ids, 7, 8], 6, temp=0.0, ignore_eos=True, after=restore(engine, path))
        assert list(after) == wanted and after.statistics.n_reused == 200
        assert not engine.executor.slots.can_go_on(60)


def gone_on(engine: Engine, after: Any) -> tuple[str, Any]:
    """The text behind what is held, and the logits of its last token."""
    generation = engine.generate(MORE, 5, temp=0.0, after=after)
    text = "".join(generation)
    assert generation.statistics.n_reused > 10
    return text, generation._rows._logits.copy()


QUICK = [("f16", "split", "split")]
SLOW = pytest.mark.slow
MOVES = [
    pytest.param(kv_type, *move, marks=[] if (kv_type, *move) in QUICK else SLOW)
    for kv_type in BUDGETS
    for move in [
        ("device", "device"),
        ("CPU", "split"),
        *itertools.product(("split",), PLACES),
        ("device", "CPU"),
    ]
]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("kv_type", "saved_on", "restored_on"), MOVES)
def test_a_session_goes_on_wherever_its_caches_were(
    tmp_path: Path, kv_type: str, saved_on: str, restored_on: str
) -> None:
    """Where it was saved each bit is as if it had never left; elsewhere its caches are, and the text."""
    path = tmp_path / "one.session"
    how: dict[str, Any] = {"n_batch": 16, "threads": 1, "kv_type": kv_type, "vram_budget": BUDGETS[kv_type]}
    with load(**how | PLACES[saved_on]) as engine:
        assert {cache.side for cache in engine.executor.plan.caches} == SIDES[saved_on]
        generation = engine.generate(PROMPT, 2, temp=0.0)
        "".join(generation)
        save(engine, generation.held, path)
        caches = read(engine, path).blocks
        wanted, logits = gone_on(engine, generation)
    with load(**how | PLACES[restored_on]) as engine:
        assert {cache.side for cache in engine.executor.plan.caches} == SIDES[restored_on]
        text_of(engine, "Emma")
        held = restore(engine, path)
        found = engine.executor.caches(len(held.ids))
        assert all(np.array_equal(one, other) for one, other in zip(caches, found, strict=True))
        text, found_logits = gone_on(engine, held)
    assert text == wanted
    if saved_on == restored_on:
        assert np.array_equal(found_logits, logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", r"no session's file\); name another file, or remove this one$"),
        (lambda data: b"To be or not", r"no session's file\); name another file$"),
        (lambda data: data[:40], "damaged"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data + b"x", "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: data.replace(b'"ids": [1,', b'"ids": [[],', 1), "damaged"),
        (lambda data: data.replace(b'"ids": [1,', b'"ids": [2,', 1), "damaged"),
        (lambda data: data[:8] + bytes.fromhex("a0860100") + b"[" * 100_000, "damaged"),
        (lambda data: data.replace(b'"oldest": 0', b'"oldest": 9', 1), "damaged"),
        (lambda data: data.replace(b'"kv_type": "f16"', b'"kv_type": "f32"', 1), "kv_type f32, not f16"),
        (lambda data: data.replace(b'"model": "', b'"model": "0', 1)[:-1], "damaged"),
    ],
)
def test_what_is_no_session_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    path = tmp_path / "one.session"
    with load(n_ctx=64, threads=1) as engine:
        saved(engine, path)
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(FileError, match=said):
            restore(engine, path)


def test_a_session_belongs_to_its_model_and_settings(
    tmp_path: Path, tiny_model: Callable[[str, bool], Path]
) -> None:
    path = tmp_path / "one.session"
    with load(tiny_model("f16", False), n_ctx=64, threads=1) as engine:
        saved(engine, path)
    with load(n_ctx=64, threads=1) as engine, pytest.raises(FileError, match="of another model"):
        restore(engine, path)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"n_ctx": 64, "kv_type": "q8_0"}, FileError, "kv_type f16, not q8_0"),
        ({"n_ctx": 8}, DoesNotFitError, "context holds 8"),
    ]
    for how, error, said in cases:
        with load(tiny_model("f16", False), threads=1, **how) as engine, pytest.raises(error, match=said):
            restore(engine, path)


def test_a_session_belongs_to_the_rotation_of_its_context(tmp_path: Path, data: Path) -> None:
    path, model = tmp_path / "one.session", data / "llamacpp/phi3.longrope.q8_0.gguf"
    with load(model, n_ctx=48, threads=1) as engine:
        assert engine.model.rope_scaling.n_ctx_orig == 64
        generation = engine.generate(range(5, 25), 2, temp=0.0)
        "".join(generation)
        save(engine, generation.held, path)
    with load(model, n_ctx=64, threads=1) as engine:
        assert restore(engine, path).ids == generation.held.ids
    with load(model, n_ctx=65, threads=1) as engine, pytest.raises(FileError, match="rope_factors_short"):
        restore(engine, path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.session"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with load(n_ctx=64, threads=1) as engine:
        saved(engine, path)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DoesNotFitError, match="No space left"):
                saved(engine, path, MORE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_command_keeps_it(tmp_path: Path) -> None:
    path = str(tmp_path / "one.session")
    options = ("-c", "64", "-n", "8", "--temp", "0", "-t", "1")
    plain = run("generate", "-p", MORE, *options)
    first = run("generate", "-p", PROMPT, *options, "--session", path)
    assert first.returncode == 0 and "reused" not in first.stderr
    again = run("generate", "-p", MORE, *options, "--session", path)
    assert again.returncode == 0 and again.stdout == plain.stdout and " reused)" in again.stderr
    (tmp_path / "one.session").write_text("something else")
    result = run("generate", "-p", MORE, *options, "--session", path)
    assert result.returncode == 3 and "no session's file" in result.stderr
    assert (tmp_path / "one.session").read_text() == "something else"
    result = run("generate", "-p", MORE, *options, "--session", str(tmp_path))
    assert result.returncode == 3 and "is a directory" in result.stderr


def test_what_somebody_has_written_over_is_not_saved(tmp_path: Path) -> None:
    with load(n_ctx=64, threads=1) as engine:
        generation = engine.generate(PROMPT, 3, temp=0.0)
        "".join(generation)
        engine.logits([1, 2])
        with pytest.raises(SettingError, match="overtaken by a later call"):
            save(engine, generation.held, tmp_path / "one")
    assert not list(tmp_path.iterdir())
