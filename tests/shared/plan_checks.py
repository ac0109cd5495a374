"""Plans of the tests: a budget, what always adds up, and which neurons are hot."""

from hotcold.engine.graph.placed import GPU
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.plan import Plan
from hotcold.kernels.formats import granules


def budget(n_bytes: int) -> Budget:
    return Budget(str(n_bytes), n_bytes, "as asked for")


def check_sums(plan: Plan) -> None:
    totals = plan.totals
    assert totals.used <= totals.budget == plan.budget.n_bytes
    assert totals.used + totals.left_over == totals.budget
    assert totals.used == sum(granules(n_bytes) for n_bytes in totals.slabs)
    for entry in plan.weights:
        file_rows_on_device = entry.n_bytes // entry.n_rows * entry.device_rows
        assert entry.host_bytes + file_rows_on_device == entry.n_bytes
    weights = sum(entry.device_bytes for entry in plan.weights)
    assert weights == totals.weights + totals.predictors + totals.hot_rows
    assert totals.kv_cache == sum(cache.n_bytes for cache in plan.caches if cache.side == GPU)
    assert totals.workspace == sum(plan.workspace.values())
    assert totals.index == sum(layer.index_bytes for layer in plan.layers)
    assert totals.arena >= max(plan.decode.arenas[GPU].n_bytes, plan.batch.arenas[GPU].n_bytes)


def hot(plan: Plan) -> list[list[int]]:
    return [layer.hot.tolist() for layer in plan.layers]
