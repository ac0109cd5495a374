"""Whole divided runs under the checking builds of the emulated device, on a model of odd sizes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as T
from random_model import LlamaShape, write_sparse
from split_runs import (
    Case,
    Logits,
    OpenEmulated,
    cpu_logits,
    mixed_logits,
    model_of,
    on_device,
    plan_with,
    some_neurons,
)

from hotcold.gguf_io import GGUFFile, open_gguf

pytestmark = pytest.mark.slow
FLOATS = (T.F32, T.F16)


def odd_shape(kind: T) -> LlamaShape:
    """Words of masks, tiles, groups and warps all have a tail."""
    n_ff = 200 if kind in FLOATS else 224  # in whole blocks
    return LlamaShape(n_embd=96, n_ff=n_ff, n_layer=2, n_head=1, n_head_kv=1, n_vocab=410, n_ctx=64)


@pytest.fixture(params=[T.F32, T.F16, T.Q8_0, T.Q4_0], ids=lambda kind: kind.name)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GGUFFile]:
    path = tmp_path / "odd.gguf"
    write_sparse(path, odd_shape(request.param), request.param, 32)
    with open_gguf(path) as opened:
        yield opened


@pytest.mark.parametrize("n_hot", [1, 31, "all"])
@pytest.mark.parametrize("sparsity", ["predictor", "exact", "off"])
@pytest.mark.parametrize(("build_kind", "order"), [("checked", 0), ("checked", 1), ("races", 7)])
def test_a_run_without_a_finding(
    build_kind: str,
    order: int,
    sparsity: str,
    n_hot: int | str,
    file: GGUFFile,
    open_emulated: OpenEmulated,
    distance: Callable[[Logits, Logits], float],
) -> None:
    """A finding ends the run."""
    model, case = model_of(file), Case(sparsity, "f16")
    plan = plan_with(model, case, some_neurons(model, model.n_ff if n_hot == "all" else int(n_hot)))
    with on_device(plan, file, open_emulated(build_kind=build_kind, order=order)) as executor:
        logits = mixed_logits(executor)
    bound = 3e-4 if model.output.type in FLOATS else 1.5e-2
    assert distance(logits, cpu_logits(model, file, case)) <= bound
