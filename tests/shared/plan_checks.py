"""Plans of the tests: a budget, what always adds up, and which neurons are hot."""

from hotcold.engine.graph.placed import GPU
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.plan import CardPlan, Plan
from hotcold.kernels.formats import granules


def budget(n_bytes: int) -> Budget:
    return Budget(str(n_bytes), n_bytes, "as asked for")


def check_sums(plan: Plan) -> None:
    layers = [i for card in plan.cards for i in card.layers]
    assert layers == list(range(plan.model.n_layer)) and all(len(card.layers) for card in plan.cards)
    assert sum(card.budget.n_bytes for card in plan.cards) == plan.budget.n_bytes
    for card in plan.cards:
        check_card(plan, card)
    totals = plan.totals
    assert totals.used <= totals.budget == plan.budget.n_bytes
    assert totals.used + totals.left_over == totals.budget
    for entry in plan.weights:
        file_rows_on_device = entry.n_bytes // entry.n_rows * entry.device_rows
        assert entry.host_bytes + file_rows_on_device == entry.n_bytes
    weights = sum(entry.device_bytes for entry in plan.weights)
    assert weights == totals.weights + totals.predictors + totals.hot_rows
    assert totals.kv_cache == sum(cache.n_bytes for cache in plan.caches if cache.side == GPU)
    assert totals.workspace == sum(plan.workspace.values())
    assert totals.index == sum(layer.index_bytes for layer in plan.layers)


def check_card(plan: Plan, card: CardPlan) -> None:
    """Its budget is the cap of what is its own, and nothing else is there."""
    totals = card.totals
    assert totals.used <= totals.budget == card.budget.n_bytes
    assert totals.used == sum(granules(n_bytes) for n_bytes in totals.slabs)
    entries = [entry for entry in plan.weights if entry.device_rows and entry.card == card.number]
    assert sum(e.device_bytes for e in entries) == totals.weights + totals.predictors + totals.hot_rows
    with_head = {None, *card.layers} if plan.model.n_layer - 1 in card.layers else {*card.layers}
    assert {entry.layer for entry in entries} <= with_head
    assert totals.kv_cache == sum(c.n_bytes for c in plan.caches if c.side == GPU and c.layer in card.layers)
    assert totals.index == sum(plan.layers[i].index_bytes for i in card.layers)
    assert totals.workspace == sum(card.workspace.values())
    for graph in (plan.decode, plan.batch, *plan.all_graphs):
        assert totals.arena >= graph.arenas[card.side].n_bytes
        for p in graph.placed.nodes:
            if p.side == card.side and p.node.op not in ("copy", "add"):
                assert p.node.layer in with_head


def hot(plan: Plan) -> list[list[int]]:
    return [layer.hot.tolist() for layer in plan.layers]
