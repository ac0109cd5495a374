"""Experts in the dump: who is where, in words, in the report and as a grid on the page."""

import re
from pathlib import Path

import numpy as np
import pytest
from expert_files import numbers_of, write_mixture
from rich.console import Console
from split_runs import Case, budget_bytes, model_of, split_plan

from hotcold.engine.dump.alike import Band
from hotcold.engine.dump.html import page
from hotcold.engine.dump.report import Report, as_json
from hotcold.engine.dump.text import split_table
from hotcold.engine.plan.footprint import neuron_bytes
from hotcold.gguf_io import open_gguf

N_EXPERT, N_FF = 4, 32


@pytest.fixture(scope="module", params=["neurons", "experts"])
def report(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A third of all neurons is hot, or of all experts; counts rise with an expert's number."""
    by_neuron = request.param == "neurons"
    architecture, metadata, tensors = numbers_of(data / "llamacpp" / "smallthinker.window5.q4_0.gguf")
    path = tmp_path_factory.mktemp("grid") / "a.gguf"
    with open_gguf(write_mixture(path, architecture, metadata, tensors, by_neuron)) as file:
        model = model_of(file)
    counts = [np.repeat(np.arange(N_EXPERT) + 1, model.n_units // N_EXPERT)] * model.n_layer
    each = neuron_bytes(model.layers[0])
    n_bytes = budget_bytes(model, Case("off"), "dense") + each * (model.n_layer * model.n_units // 3)
    return as_json(split_plan(model, Case("off"), n_bytes, frequencies=counts), "a")


def test_the_report_says_what_of_each_expert_is_hot(report: Report) -> None:
    for row in report["layers"]:
        experts, each = row["experts"], row["gpu_idx"][0] // N_EXPERT
        assert each == experts["rows"] == (N_FF if report["model"]["unit"] == "neuron" else 1)
        assert sum(experts["hot"]) == row["gpu_bucket"][0]
        assert experts["counted"] == [each * (e + 1) for e in range(N_EXPERT)]
        assert experts["gpu"] == sum(n == each for n in experts["hot"])
        assert experts["gpu"] + experts["split"] + experts["cpu"] == N_EXPERT
        assert experts["hot"] == sorted(experts["hot"])
    if report["model"]["unit"] == "neuron":
        assert sum(row["experts"]["split"] for row in report["layers"]) >= 1


def test_the_table_says_it_in_words(report: Report) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(split_table([Band((row,)) for row in report["layers"]]))
    printed = console.export_text()
    for row in report["layers"]:
        gpu, cpu = row["experts"]["gpu"], row["experts"]["cpu"]
        said = ", ".join(f"{n} {text}" for n, text in ((gpu, "on the GPU"), (cpu, "on the CPU")) if n)
        assert "experts " + said in printed or row["experts"]["split"]
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80


def test_the_grid_draws_every_expert_where_it_lies_hottest_first(report: Report) -> None:
    grid = page(report, []).split("<h2>Experts of each layer</h2>")[1].split("</svg>")[0]
    found = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" .*?class="(\w+)".*?<title>layer (\d), expert (\d): ', grid
    )
    for row in report["layers"]:
        own = [(float(x), side, int(e)) for x, _, side, layer, e in found if int(layer) == row["layer"]]
        assert [e for e in dict.fromkeys(e for _, _, e in sorted(own))] == [3, 2, 1, 0]
        for e, n_hot in enumerate(row["experts"]["hot"]):
            sides = {side for _, side, other in own if other == e}
            assert ("gpu" in sides) == (n_hot > 0)
            assert ("cpu" in sides) == (n_hot < row["experts"]["rows"])


def test_a_model_without_experts_has_no_grid(report: Report) -> None:
    rows = [{**row, "experts": None} for row in report["layers"]]
    assert "Experts of each layer" not in page({**report, "layers": rows}, [])
