"""The dump as data, text and page; and the golden listings of the bundled model."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hotcold.engine.dump import inputs as dump
from hotcold.engine.dump.html import STYLE, page
from hotcold.engine.dump.report import as_json, select
from hotcold.engine.dump.text import TOTALS, bar, short_form
from hotcold.engine.measure.traffic import sparse_token_bytes
from hotcold.engine.model.model_path import model_path
from hotcold.engine.plan import planning
from hotcold.engine.plan.coverage import coverage_curve
from hotcold.engine.plan.plan import Plan
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.traffic import token_traffic
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Tracing
from hotcold.errors import SettingError
from hotcold.gguf_io import open_gguf
from hotcold.kernels.formats import GRANULE

GOLDEN = Path(__file__).parent.parent.parent / "data" / "offload-dump"
BUDGETS = ["0", "3MiB", "6MiB"]


def planned(budget: str, sparsity: str = "auto", n_ctx: int = 256, n_batch: int = 64) -> Plan:
    source = dump.open_source(None, None, None, None)
    how = planning.wanted(source, sparsity, n_ctx, n_batch, "f16")
    return planning.make_plan(source, how, dump.budget_of(budget, None))


def report(budget: str) -> dict[str, Any]:
    return as_json(planned(budget), "tiny-relu-llama.q8_0.gguf")


@pytest.mark.sample(5)
@pytest.mark.parametrize("budget", BUDGETS)
def test_sums_are_those_of_the_file_as_the_gguf_package_reads_it(budget: str, tmp_path: Path) -> None:
    """The package knows GGUF's magic alone, so it gets a copy with that."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(b"GGUF" + model_path(None).read_bytes()[4:])
    tensors = {t.name: t for t in GGUFReader(copy).tensors}
    got = report(budget)
    rows = {row["name"]: row for row in got["weights"]}
    assert {name: row["bytes"] for name, row in rows.items()} == {n: t.n_bytes for n, t in tensors.items()}
    assert {name: row["ne"] for name, row in rows.items()} == {
        n: t.shape.tolist() for n, t in tensors.items()
    }
    on_device = sum(t.n_bytes * rows[n]["device_rows"] // rows[n]["rows"] for n, t in tensors.items())
    assert got["totals"]["cpu"]["weights"] + on_device == sum(t.n_bytes for t in tensors.values())
    gpu = got["totals"]["gpu"]
    assert sum(n for key, n in gpu.items() if key != "budget") == gpu["budget"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_object_goes_through_json(budget: str) -> None:
    got = report(budget)
    assert json.loads(json.dumps(got)) == got
    keys = {"schema_version", "budget", "weights", "layers", "intermediates", "arenas", "traffic", "totals"}
    assert keys <= set(got)
    assert got["schema_version"] == 1


def test_thresholds_do_not_matter() -> None:
    from dataclasses import replace

    source = dump.open_source(None, None, None, None)
    texts = set()
    for threshold in (-100.0, 0.0, 100.0):
        changed = replace(source, model=replace(source.model, sparse_threshold=threshold))
        how = planning.wanted(changed, "auto", 256, 64, "f16")
        plan = planning.make_plan(changed, how, dump.budget_of("6MiB", None))
        texts.add(json.dumps(as_json(plan)) + str([split.hot.tolist() for split in plan.layers]))
    assert len(texts) == 1


@pytest.mark.parametrize("sparsity", ["predictor", "exact", "off"])
def test_the_listed_steps_are_those_of_the_executor(sparsity: str) -> None:
    """On the CPU alone: what its trace hears is what the dump lists."""
    got = as_json(planned("0", sparsity))
    with open_gguf(model_path(None)) as file:
        model = dump.open_source(None, None, None, None).model
        with Executor(plan_for_cpu(model, Wanted(sparsity, 256, 64)), file, 1) as executor:
            for name, n_tokens in (("decode", 1), ("batch", 64)):
                steps: list[tuple[int, str, str]] = []
                heard = lambda taken, steps=steps: steps.append((taken.step, taken.node.name, taken.node.op))
                executor.taking = Tracing(executor, heard)
                executor.run(np.zeros(n_tokens, np.int32), 0)
                rows = got["intermediates"][name]
                assert [(row["step"], row["name"], row["op"]) for row in rows] == steps


@pytest.mark.parametrize("name", ["llama", "bamboo", "falcon", "opt"])
@pytest.mark.parametrize("budget", ["0", "1MiB", "2MiB", "64MiB"])
def test_every_architecture_is_planned_from_its_file(name: str, budget: str) -> None:
    """Bytes of all rows are the file's; at budget 0 the steps and the traffic are the executor's."""
    path = GOLDEN.parent / "powerinfer" / f"{name}-q4_0.powerinfer.gguf"
    source = dump.open_source(path, None, None, None)
    how = planning.wanted(source, "predictor", 64, 4, "f16")
    plan = planning.make_plan(source, how, dump.budget_of(budget, None))
    got = as_json(plan)
    with open_gguf(path) as file:
        by_tensor: dict[str, int] = {}
        for row in got["weights"]:
            by_tensor[row["tensor"]] = by_tensor.get(row["tensor"], 0) + row["bytes"]
        assert by_tensor == {tensor: info.n_bytes for tensor, info in file.tensors.items()}
        if budget != "0":
            return
        steps: list[str] = []
        with Executor(plan_for_cpu(source.model, Wanted("predictor", 64, 4)), file, 1) as executor:
            executor.taking = Tracing(executor, lambda taken: steps.append(taken.node.name))
            executor.run(np.zeros(1, np.int32), 0)
        assert [row["name"] for row in got["intermediates"]["decode"]] == steps
    neurons = [float(plan.model.n_ff)] * plan.model.n_layer
    expected = sparse_token_bytes(plan.model, "predictor", neurons, neurons)
    assert token_traffic(plan).host_bytes == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("sparsity", ["predictor", "exact", "off"])
def test_traffic_on_the_cpu_is_what_the_formulas_of_the_cpu_say(sparsity: str) -> None:
    plan = planned("0", sparsity)
    firing = [split.measured / plan.peak_count for split in plan.layers]
    listed = firing if sparsity == "predictor" else [float(plan.model.n_ff)] * len(firing)
    traffic = token_traffic(plan)
    assert traffic.host_bytes == pytest.approx(
        sparse_token_bytes(plan.model, sparsity, listed, firing), abs=1
    )
    assert traffic.device_bytes == traffic.bus_bytes == traffic.copies == 0


def test_rooflines() -> None:
    traffic = token_traffic(planned("6MiB"))
    slow_host = traffic.seconds(1e-3, 1e9, 1e9)
    assert slow_host == pytest.approx(traffic.host_bytes / 1e6, rel=1e-3)
    assert traffic.seconds(1e9, 1e9, 1e-3) == pytest.approx(traffic.bus_bytes / 1e6, rel=1e-3)


def test_what_a_merge_reads_over_the_bus_is_told_and_counted() -> None:
    rows, plan = report("6MiB")["intermediates"]["decode"], planned("6MiB")
    readers = {row["name"]: row["reads_over_bus"] for row in rows if row["reads_over_bus"]}
    assert readers == {f"ffn_out-{i}": [f"ffn_out_cpu-{i}"] for i in range(plan.model.n_layer)}
    traffic, vector = token_traffic(plan), 4 * plan.model.n_embd
    assert (traffic.in_place, traffic.to_device) == (
        plan.model.n_layer * vector,
        (plan.model.n_layer + 1) * vector,
    )


def test_every_intermediate_knows_its_layer() -> None:
    """Of parts and copies it is that of the node which made the numbers."""
    rows = [row for budget in ("3MiB", "6MiB") for row in report(budget)["intermediates"]["decode"]]
    layers = {row["name"]: row["layer"] for row in rows}
    assert {"ffn_out_cpu-0", "inp_embd@gpu", "ffn_norm_q8-3@cpu", "Qcur-3@cpu"} <= layers.keys()
    for name, layer in layers.items():
        numbers = re.findall(r"-(\d+)", name)
        assert layer == (int(numbers[0]) if numbers else None), name


def test_a_layer_and_a_pattern_are_selected() -> None:
    whole = report("6MiB")
    got = select(whole, layer=2)
    assert {row["layer"] for row in (*got["weights"], *got["layers"], *got["intermediates"]["batch"])} == {2}
    got = select(whole, "attn_q|Qcur")
    assert len(got["weights"]) == 6
    assert all("Qcur" in row["name"] for row in got["intermediates"]["decode"])
    assert got["totals"] == whole["totals"]


@pytest.mark.parametrize(
    ("tensors", "layer", "message"),
    [
        ("(", None, "no regular expression"),
        ("zebra", None, "no weight"),
        (None, 6, "0 to 5"),
        (None, -1, "0 to 5"),
    ],
)
def test_selections_that_mean_nothing(tensors: str | None, layer: int | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        select(report("0"), tensors, layer)


@given(st.floats(-1, 2), st.integers(1, 30))
def test_bars_have_their_width(share: float, width: int) -> None:
    assert len(bar(share, width)) == width


def test_the_short_form_says_what_is_hot() -> None:
    text = "\n".join(short_form(report("6MiB")))
    assert "6 of 6 layers" in text
    assert re.search(r"\d+\.\d% of the neurons are hot", text)
    assert short_form(report("0"))[1] == "everything runs on the CPU"


def test_the_curve_agrees_with_plans() -> None:
    """A plan for a point's budget covers what the point says."""
    source = dump.open_source(None, None, None, None)
    how = planning.wanted(source, "auto", 256, 64, "f16")
    curve = coverage_curve(source.model, how, source.frequencies, n_points=9)
    assert curve[-1][1] == 1.0
    for n_bytes, share in curve:
        plan = planning.make_plan(source, how, dump.budget_of(f"{n_bytes}B", None))
        assert plan.coverage == pytest.approx(share, abs=1e-12)
        assert plan.totals.left_over + plan.totals.padding == 3 * (GRANULE - 1) * (n_bytes > 0)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_page_stands_alone(budget: str) -> None:
    text = page(report(budget), [(10, 0.0), (20, 1.0)])
    assert "<script" not in text and "http" not in text and "url(" not in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_names_cannot_break_the_page() -> None:
    got = report("6MiB")
    got["model"]["name"] = "<script>alert(1)</script>"
    got["weights"][0]["name"] = "<img src=x>"
    text = page(got, [])
    assert "<script" not in text and "<img" not in text


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.integers(0, 14 << 20))
def test_any_budget_gives_a_page_and_the_bars_stay_inside(n_bytes: int) -> None:
    try:
        got = as_json(planned(f"{n_bytes}B"), "m")
    except Exception as error:  # noqa: BLE001
        assert "smallest useful plan" in str(error)
        return
    for x, width in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', page(got, [])):
        assert float(x) + float(width) <= 400.5


def test_every_part_of_the_memory_has_its_colour() -> None:
    """In light and in dark; one without is black."""
    for i, key in enumerate(TOTALS):
        assert STYLE.count(f"--c{i}:#") == 2, key


def test_what_is_left_over_alone_looks_like_nothing() -> None:
    """As the ground of the bars does; parts that hold something have colours of their own."""
    for scheme in STYLE.split("prefers-color-scheme:dark"):
        (ground,) = re.findall(r"--ground:(#\w+)", scheme)
        colours = [re.findall(rf"--c{i}:(#\w+)", scheme)[0] for i in range(len(TOTALS))]
        assert len({*colours}) == len(TOTALS) and [*TOTALS][colours.index(ground)] == "left_over"


def test_the_readme_shows_the_sums_of_the_golden_listing() -> None:
    """Both are of the bundled model at 6 MiB."""
    readme = (GOLDEN.parent.parent.parent / "README.md").read_text("utf-8").splitlines()
    golden = {line.rstrip() for line in (GOLDEN / "tiny-relu-llama.6MiB.txt").read_text("utf-8").splitlines()}
    first = readme.index("    on the GPU       bytes   MiB")
    block = [line.strip() for line in readme[first : readme.index("", first)]]
    assert len(block) == 11 and golden >= {*block}


def test_the_chinese_readme_shows_the_first_layer_of_its_command() -> None:
    readme = (GOLDEN.parent.parent.parent / "README.zh-CN.md").read_text("utf-8")
    assert "hotcold offload-dump --like falcon-40b:q4_0 --vram-budget 8GiB\n" in readme
    source = dump.open_source(None, "falcon-40b:q4_0", None, None)
    how = planning.wanted(source, "auto", None, 512, "f16", stream_batch=None)
    layer = as_json(planning.make_plan(source, how, dump.budget_of("8GiB", None)), "m")["layers"][0]
    for name in ("gpu_idx", "gpu_bucket"):
        assert f"    {name} {layer[name]}\n" in readme


def test_commands_of_the_chinese_readme_stand_in_the_english_one() -> None:
    folder = GOLDEN.parent.parent.parent
    texts = [(folder / name).read_text("utf-8") for name in ("README.zh-CN.md", "README.md")]
    chinese, english = (
        {line for line in text.splitlines() if line.startswith("    hotcold ")} for text in texts
    )
    assert len(chinese) > 10 and chinese <= english


@pytest.mark.parametrize("budget", BUDGETS)
def test_golden_listings(budget: str) -> None:
    """As text of 80 columns, every line."""
    import io

    from rich.console import Console

    from hotcold.engine.dump.text import show

    stream = io.StringIO()
    got = report(budget)
    got["frequencies_from"] = "the model's file"
    show(got, Console(file=stream, width=80, color_system=None, highlight=False, legacy_windows=False))
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    assert max(map(len, text.splitlines())) <= 80
    assert np.all([line == line.rstrip() for line in text.splitlines()])
    assert text == (GOLDEN / f"tiny-relu-llama.{budget}.txt").read_text()
