"""A model divided between a device and the CPU computes what the CPU alone does, whatever the division."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from split_runs import (
    BUDGETS,
    MIXED,
    Case,
    Logits,
    OpenEmulated,
    budget_bytes,
    cpu_executor,
    cpu_logits,
    mixed_logits,
    model_of,
    on_device,
    plan_named,
    some_neurons,
    split_plan,
)

import hotcold
from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import Plan
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cuda.device.device import Device

pytestmark = pytest.mark.pairwise
Distance = Callable[[Logits, Logits], float]
TinyModel = Callable[[str, bool], Path]
OpenModel = Callable[[str], tuple[GGUFFile, Model]]

# one number that falls on the other side of a tie is 16 times as far off in q8_0 as in f16: 1/127 against 2^-11
BOUNDS = {"f32": 1e-5, "f16": 3e-4, "q8_0": 5e-3}
SPARSITIES = ("off", "exact", "predictor")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def open_model(tiny_model: TinyModel, data: Path, request: pytest.FixtureRequest) -> Iterator[OpenModel]:
    """Opens `tiny-f32` or `tiny-f16`, the first layers of the bundled model, or `llama-f16`, PowerInfer's."""
    files: list[GGUFFile] = []

    @cache
    def open_named(name: str) -> tuple[GGUFFile, Model]:
        tiny = name.startswith("tiny-")
        path = (
            tiny_model(name.removeprefix("tiny-"), True)
            if tiny
            else data / f"powerinfer/{name}.powerinfer.gguf"
        )
        files.append(open_gguf(path))
        return files[-1], model_of(files[-1], 4 if tiny else None)

    yield open_named
    for file in files:
        file.close()


@pytest.fixture(scope="module")
def wanted(open_model: OpenModel) -> Callable[[str, Case], Logits]:
    """The CPU's logits; each made once."""

    @cache
    def logits(name: str, case: Case) -> Logits:
        file, model = open_model(name)
        return cpu_logits(model, file, case)

    return logits


def logits_on(device: Device, plan: Plan, file: GGUFFile, sizes: Sequence[int] = MIXED) -> Logits:
    """Of the runs of `mixed_logits`, on a device that holds just what the plan says."""
    with on_device(plan, file, device) as executor:
        assert device.counters.live_bytes == plan.totals.used
        return mixed_logits(executor, sizes)


def _is_quick(name: str, kv_type: str, sparsity: str) -> bool:
    return (name, kv_type) == ("llama-f16", "f16") or (name, kv_type, sparsity) in (
        ("tiny-f32", "f32", "predictor"),
        ("tiny-f32", "q8_0", "off"),
    )


@pytest.mark.sample(2)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("name", "kv_type", "sparsity"),
    [
        pytest.param(*which, marks=() if _is_quick(*which) else slow)
        for which in [
            *product(("tiny-f32", "tiny-f16", "llama-f16"), ("f32", "f16"), SPARSITIES),
            *product(["tiny-f32"], ["q8_0"], SPARSITIES),
        ]
    ],
)
def test_every_budget_gives_the_cpus_logits(
    name: str,
    kv_type: str,
    sparsity: str,
    budget: str,
    open_model: OpenModel,
    wanted: Callable[[str, Case], Logits],
    split_device: Device,
    distance: Distance,
) -> None:
    (file, model), case = open_model(name), Case(sparsity, kv_type)
    plan = plan_named(model, case, budget)
    logits = logits_on(split_device, plan, file)
    expected = wanted(name, case)
    assert distance(logits, expected) <= BOUNDS[kv_type]
    assert (logits.argmax(1) == expected.argmax(1)).all()


def test_the_budgets_are_what_they_are_called(open_model: OpenModel) -> None:
    """Or the tests above would compare the CPU with itself."""
    _, model = open_model("tiny-f32")
    case = Case("predictor")
    plans = {name: plan_named(model, case, name) for name in BUDGETS}
    assert [plans[name].n_dense_layers for name in BUDGETS] == [0, 1, 2, 4, 4, 4, 4, 4]
    assert [round(plans[name].hot_share, 2) for name in BUDGETS] == [0, 0, 0, 0, 0.01, 0.17, 0.5, 1]
    merges = [sum(p.node.op == "merge" for p in plans[name].decode.placed.nodes) for name in BUDGETS]
    assert merges == [0, 0, 0, 0, 4, 4, 4, 0]


@st.composite
def divisions(draw: st.DrawFn) -> tuple[Case, float | list[int], int, list[int]]:
    """How to run, a share of the largest budget or numbers of hot neurons, a seed, and sizes of runs."""
    n_batch = draw(st.integers(1, 6))
    case = Case(draw(st.sampled_from(SPARSITIES)), "f32", draw(st.sampled_from([16, 32, 1100])), n_batch)
    n_hot = st.one_of(st.sampled_from([0, 1, 31, 32, 33, 1023, 1024]), st.integers(0, 1024))
    division = draw(st.one_of(st.floats(0, 1), st.lists(n_hot, min_size=2, max_size=2)))
    sizes = draw(st.lists(st.integers(1, n_batch), max_size=11))
    return case, division, draw(st.integers(0, 99)), sizes


def check_division(
    which: tuple[Case, float | list[int], int, list[int]],
    file: GGUFFile,
    model: Model,
    open_emulated: OpenEmulated,
    distance: Distance,
) -> None:
    case, division, seed, sizes = which
    largest = budget_bytes(model, case, "everything")
    if isinstance(division, list):
        hot = [some_neurons(model, n, seed + i)[0] for i, n in enumerate(division)]
        plan = split_plan(model, case, largest, hot)
    else:
        smallest = budget_bytes(model, case, "one layer")
        plan = split_plan(model, case, smallest + int(division * (largest - smallest)))
    with cpu_executor(model, file, case) as executor:
        expected = mixed_logits(executor, sizes)
    device = open_emulated(build_kind="fast", policy="random", seed=seed, order=seed)
    assert distance(logits_on(device, plan, file, sizes), expected) <= BOUNDS["f32"]


FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=FIXTURES)
@given(which=divisions())
def test_random_divisions_give_the_cpus_logits(
    which: tuple[Case, float | list[int], int, list[int]],
    open_model: OpenModel,
    open_emulated: OpenEmulated,
    distance: Distance,
) -> None:
    check_division(which, *open_model("llama-f16"), open_emulated, distance)


@slow
@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
@given(which=divisions())
def test_many_random_divisions_give_the_cpus_logits(
    which: tuple[Case, float | list[int], int, list[int]],
    open_model: OpenModel,
    open_emulated: OpenEmulated,
    distance: Distance,
) -> None:
    check_division(which, *open_model("llama-f16"), open_emulated, distance)


@pytest.mark.sample(3)
@pytest.mark.parametrize("share", [0.3, 1.0, *(pytest.param(share, marks=slow) for share in (0.0, 0.7))])
@pytest.mark.parametrize(
    "name",
    [
        "llama.f16",
        "llama.f32",
        "llama.biases.f16",
        "falcon.f16",
        "qwen2.f16",
        "qwen3.f16",
        "phi3.f16",
        "gemma3.f16",
        "granite.q4_0",
        "qwen3.q4_0",
        "gemma3.q4_0",
        "phi3.longrope.q8_0",
        pytest.param("llama.bf16", marks=slow),
        "llama.ropefreqs.f16",
    ],
)
def test_models_that_cannot_skip_neurons_give_the_cpus_logits(
    name: str, share: float, recorded: Callable[[str], Path], split_device: Device, distance: Distance
) -> None:
    """Their FFNs are placed whole: between the dense parts alone and everything."""
    with open_gguf(recorded(f"llamacpp/{name}")) as file:
        model, case = model_of(file), Case("off")
        smallest, largest = (budget_bytes(model, case, which) for which in ("one layer", "everything"))
        plan = split_plan(model, case, smallest + int(share * (largest - smallest)))
        logits = logits_on(split_device, plan, file)
        bound = 1.5e-2 if name.endswith(("q4_0", "q8_0")) else BOUNDS["f32"]  # rounded inputs fall at ties
        assert distance(logits, cpu_logits(model, file, case)) <= bound


PROMPT = "Once upon a time"


@pytest.mark.parametrize(
    ("outtype", "sparsity", "vram_budget"),
    [
        ("f16", "predictor", "9MiB"),
        pytest.param("f32", "exact", "14MiB", marks=slow),
        *(pytest.param("f32", "predictor", budget, marks=slow) for budget in ("4MiB", "20MiB", "100MiB")),
        *(pytest.param("f16", "off", budget, marks=slow) for budget in ("3MiB", "9MiB", "100MiB")),
    ],
)
def test_greedy_text_is_the_cpus(
    outtype: str, sparsity: str, vram_budget: str, tiny_model: TinyModel, compiler: str
) -> None:
    texts = []
    for where in ({"device": "cpu"}, {"device": "emulated", "vram_budget": vram_budget, "strict": True}):
        path = tiny_model(outtype, True)
        with hotcold.load(path, n_ctx=64, n_batch=8, sparsity=sparsity, **where) as engine:
            generation = engine.generate(PROMPT, 10, temp=0.0, repeat_penalty=1.0)
            texts.append(("".join(generation), generation.ids))
    assert len(texts[0][1]) == 10
    assert texts[0] == texts[1]
