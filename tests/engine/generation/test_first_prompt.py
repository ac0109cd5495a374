"""What the first prompt says of a model: predictors of other weights, a function that its file does not say."""

import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.generation.first_prompt import FirstPrompt
from hotcold.engine.generation.generation import Engine
from hotcold.engine.host.steps import take_all
from hotcold.engine.measure.perplexity import measure
from hotcold.engine.run import recall
from hotcold.gguf_io.convert.conversion import convert

TinyModel = Callable[[str, bool], Path]
TINY = Path(__file__).parents[3] / "models" / "tiny-relu-llama"
TEXT = "Elizabeth was so much caught by what passed, as to leave her very little attention for her book"


def of_other_layers(source: Path, target: Path) -> None:
    """The same predictors, each for the next layer."""
    content = source.read_bytes()
    size = struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8 : 8 + size])
    moved = {}
    for name, entry in header.items():
        head, _, rest = name.partition("layers.")
        layer, dot, rest = rest.partition(".")
        moved[f"{head}layers.{(int(layer) + 1) % 6}{dot}{rest}" if layer.isdigit() else name] = entry
    text = json.dumps(moved).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def of_other_rows(source: Path, target: Path) -> None:
    """The same header over numbers that lie the other way round."""
    content = source.read_bytes()
    size = struct.unpack_from("<Q", content)[0]
    numbers = np.frombuffer(content[8 + size :], "<u2")[::-1]
    target.write_bytes(content[: 8 + size] + numbers.tobytes())


@pytest.fixture(scope="module", params=[of_other_layers, of_other_rows])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    request.param(TINY / "predictors.safetensors", folder / "predictors.safetensors")
    convert(TINY, folder / "predictors.safetensors", folder / "model.gguf", "f16")
    return folder / "model.gguf"


@pytest.fixture
def engine(tiny_model: TinyModel) -> Iterator[Engine]:
    with load(tiny_model("f16", True), n_ctx=128, threads=1) as loaded:
        yield loaded


def test_predictors_of_its_own_are_good(engine: Engine) -> None:
    generation = engine.generate(TEXT, 2, temp=0.0)
    assert generation.findings == ()
    list(generation)
    assert generation.findings == ()
    (line,) = generation.lines
    found = re.match(r"predictors list (\d+)% of the neurons that fire: ", line)
    assert found and int(found[1]) >= 85


@pytest.mark.parametrize("prompt", ["Mr. Darcy looked", TEXT])
def test_predictors_of_other_weights_are_said(foreign: Path, prompt: str) -> None:
    with load(foreign, n_ctx=128, threads=1) as engine:
        first = engine.generate(prompt, 1, temp=0.0)
        list(first)
        second = engine.generate(prompt, 1, temp=0.0)
        list(second)
    (warning,) = first.findings
    assert "the predictors list only " in warning and "--sparsity exact" in warning
    assert second.findings == ()


def test_a_perplexity_looks_at_them_too(foreign: Path, engine: Engine) -> None:
    text = (TEXT * 8).encode()
    with load(foreign, n_ctx=64, threads=1) as other:
        measure(other, text)
        assert "the predictors list only" in other.first_prompt.warnings[0]
    measure(engine, text)
    assert engine.first_prompt.warnings == ()


@pytest.mark.parametrize("sparsity", ["exact", "off"])
def test_other_modes_have_nothing_to_say(foreign: Path, sparsity: str) -> None:
    with load(foreign, n_ctx=128, threads=1, sparsity=sparsity) as engine:
        generation = engine.generate(TEXT, 1, temp=0.0)
        list(generation)
    assert (generation.findings, generation.lines) == ((), ())


@pytest.mark.parametrize("n_tokens", [1, 3, 20])
@pytest.mark.parametrize(("n_layers", "layers"), [(1, (3,)), (3, (0, 3, 5))])
def test_the_recall_is_that_of_the_gates(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, n_tokens: int, n_layers: int, layers: tuple[int, ...]
) -> None:
    """Against what the executor counts: with all neurons sampled, those listed that fire are the counted ones."""
    monkeypatch.setattr(recall, "N_NEURONS", 100_000)
    monkeypatch.setattr(recall, "N_TOKENS", 100)
    ids = np.array(engine.tokenizer.encode(TEXT)[:n_tokens], np.int32)
    engine.executor.taking = watching = recall.Watching(engine.executor, engine.file, n_layers)
    before = engine.executor.counts.sum(1)[:, 1].copy()
    engine.executor.run(ids, 0)
    found = watching.recall()
    assert found.layers == layers
    assert found.n_listed == (engine.executor.counts.sum(1)[:, 1] - before)[list(layers)].sum()
    assert found.n_listed <= found.n_firing <= found.n_listed * 1.3


@pytest.mark.parametrize("its_own", [True, False])
def test_a_sample_is_on_the_side_of_all(
    tiny_model: TinyModel, foreign: Path, monkeypatch: pytest.MonkeyPatch, its_own: bool
) -> None:
    with load(tiny_model("f16", True) if its_own else foreign, n_ctx=128, threads=1) as engine:
        ids = np.array(engine.tokenizer.encode(TEXT), np.int32)
        for n in (recall.N_NEURONS, 100_000):
            monkeypatch.setattr(recall, "N_NEURONS", n)
            engine.executor.taking = watching = recall.Watching(engine.executor, engine.file)
            engine.executor.run(ids, 0)
            assert bool(watching.recall().warning()) != its_own


@pytest.mark.sample(5)
@pytest.mark.parametrize("budget", ["2MiB", "6MiB", "24MiB"])
def test_a_device_changes_nothing_or_it_is_said(foreign: Path, budget: str) -> None:
    """A layer whose FFN is wholly on the device is not looked at."""
    options: dict[str, Any] = {"device": "emulated", "vram_budget": budget, "n_ctx": 64, "n_batch": 16}
    with load(foreign, threads=1, **options) as engine:
        list(generation := engine.generate(TEXT, 1, temp=0.0))
    (line,) = generation.lines
    assert ("are on the device" in line) == (budget == "24MiB")
    assert bool(generation.findings) == (budget != "24MiB")


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("its_own", "budget"),
    [(False, "6MiB"), *(pytest.param(True, budget, marks=pytest.mark.slow) for budget in ("5MiB", "7MiB"))],
)
def test_a_device_that_is_sent_rows_is_looked_at(
    tiny_model: TinyModel,
    foreign: Path,
    compiler: str,
    monkeypatch: pytest.MonkeyPatch,
    its_own: bool,
    budget: str,
) -> None:
    """What it lists and what fires is what the CPU says, of as many tokens."""
    monkeypatch.setattr(recall, "N_NEURONS", 100_000)
    monkeypatch.setattr(recall, "N_TOKENS", recall.N_FETCHED)
    options: dict[str, Any] = {"device": "emulated", "vram_budget": budget, "stream_batch": 4, "n_batch": 32}
    path, found = tiny_model("q8_0", True) if its_own else foreign, list[recall.Recall]()
    for more in ({}, options):
        with load(path, n_ctx=64, threads=1, **more) as engine:
            assert (engine.executor.plan.streaming is not None) == bool(more)
            engine.executor.taking = watching = recall.Watching(engine.executor, engine.file)
            engine.executor.run(np.array(engine.tokenizer.encode(TEXT), np.int32), 0)
            found.append(watching.recall())
    there, on_the_cpu = found[1], found[0]
    assert there.layers == on_the_cpu.layers and bool(there.warning()) != its_own
    assert abs(there.n_firing - on_the_cpu.n_firing) < 0.01 * on_the_cpu.n_firing
    assert abs(there.n_listed - on_the_cpu.n_listed) < 0.01 * on_the_cpu.n_firing


def test_the_logits_are_those_of_an_ordinary_run(engine: Engine) -> None:
    ids = np.array(engine.tokenizer.encode(TEXT), np.int32)
    wanted = engine.logits(ids)[-1:]
    got: NDArray[np.float32] = np.empty_like(wanted)
    FirstPrompt(engine.executor, engine.file).run(ids, 0, got)
    assert np.array_equal(got, wanted)
    assert engine.executor.taking is take_all


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ([5], "a first prompt of one token is too short$"),
        ([5, 6], r"only \d+ sampled neurons? fired on the first prompt, in layer 3$"),
    ],
)
def test_too_few_neurons_are_said(foreign: Path, prompt: list[int], why: str) -> None:
    with load(foreign, n_ctx=64, threads=1) as engine:
        list(generation := engine.generate(prompt, 1, temp=0.0))
    assert generation.findings == ()
    (line,) = generation.lines
    assert re.search(f"not told: {why}", line)


def test_a_look_adds_less_than_a_hundredth_of_the_weights(engine: Engine) -> None:
    """Of those that a token reads at the least: without the FFN's, which are listed or not."""
    watching, model = recall.Watching(engine.executor, engine.file), engine.model
    assert watching.added[True] == []
    n_read = sum(r["n_rows"] * r["k"] for r in watching.added[False] if "k" in r)
    others = [
        t for t in engine.file.tensors.values() if ".ffn_" not in t.name and t.name != "token_embd.weight"
    ]
    assert 0 < n_read < 0.01 * sum(int(np.prod(t.ne)) for t in others)
    assert n_read == recall.N_NEURONS * model.n_embd


def test_a_prompt_without_sense_to_the_model_is_said(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Only where the function is a guess, and the prompt long enough to tell cheaply."""
    silu = tmp_path / "some.gguf"
    content = tiny_model("f16", False).read_bytes()
    silu.write_bytes(content.replace(b"hotcold.ffn_activation", b"another.ffn_activation"))
    strange = "~ % { } ; zq xv 9 8 7 " * 12
    for path, prompt, said in (
        (silu, strange, True),
        (silu, "zq xv", False),
        (tiny_model("f16", False), strange, False),
    ):
        with load(path, n_ctx=512, threads=1) as engine:
            generation = engine.generate(prompt, 1, temp=0.0)
            list(generation)
        assert bool(generation.findings) == said
    with load(silu, n_ctx=512, threads=1, ffn_activation="relu") as engine:
        list(generation := engine.generate(strange, 1, temp=0.0))
    assert generation.findings == ()
