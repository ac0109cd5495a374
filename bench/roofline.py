"""What eight cards would take for a model, by arithmetic alone: rising budgets, until all of it is there.

    python bench/roofline.py --like relullama-7b:q4_0

The model is in engine/plan/estimate.py; `hotcold offload-dump --card NAME` says the same of one card and budget. When a
card runs, `bench/gpu.py` prints the model beside what it measures.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hotcold.engine.dump.inputs import open_source
from hotcold.engine.graph.placed import GPU
from hotcold.engine.plan.budget import DeviceFacts, parse_budget, resolve_budget
from hotcold.engine.plan.cards import CARDS
from hotcold.engine.plan.estimate import estimate
from hotcold.engine.plan.estimate_prompt import DP4A, FMA, MATRICES, MMA, PROMPT
from hotcold.engine.plan.graph_memory import graph_bytes
from hotcold.engine.plan.planning import make_plan, wanted
from hotcold.errors import DoesNotFitError

SHARES = "10%", "25%", "50%", "auto"
"""Of a card's memory."""


def rows(like: str | None, path: Path | None, n_ctx: int) -> list[str]:
    """A line of the table for each card and budget."""
    source, lines = open_source(path, like, None, None), []
    how = wanted(source, "auto", n_ctx, PROMPT, "f16", stream_batch=None)
    of_graphs = graph_bytes(source.model, how.sparsity, how.kv_type, how.n_slots)
    for name, card in CARDS.items():
        for share in SHARES:
            facts = DeviceFacts(name, card.memory, graph_bytes=of_graphs)
            try:
                plan = make_plan(source, how, resolve_budget(parse_budget(share), facts))
            except DoesNotFitError:
                lines.append(f"| {card.title} | {share} | does not fit | | | | | | | | |")
                continue
            found = estimate(plan, card)
            cells = [
                card.title,
                share,
                f"{plan.hot_share:.0%}",
                f"{1 / found.token:.0f}",
                f"{1e3 * found.memory:.1f}",
            ]
            cells += [f"{1e3 * found.waits:.1f}", f"{PROMPT / found.prompt.seconds:.0f}"]
            of_prompt = found.prompt.units[MMA], found.prompt.units[DP4A], found.prompt.units[FMA]
            cells += [f"{1e3 * seconds:.1f}" for seconds in (*of_prompt, found.prompt.host, found.prompt.bus)]
            lines.append("| " + " | ".join(cells) + " |")
            if all(entry.side == GPU for entry in plan.weights if entry.role in (*MATRICES, "head")):
                break
    return lines


def run(given: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", dest="path", type=Path, help="a file")
    parser.add_argument("--like", help="or a well-known model; relullama-7b:q4_0 by default")
    parser.add_argument("-c", dest="n_ctx", type=int, default=1024, help="positions; half of them are read")
    arguments = parser.parse_args(given)
    like = arguments.like or ("relullama-7b:q4_0" if arguments.path is None else None)
    print("A model: nothing in this table was measured.\n")
    of_prompt = f"prompt, tokens/s | {MMA}, ms | `{DP4A}` | {FMA} | CPU | bus"
    print(f"| card | budget | hot | tokens/s | ms for the bytes | ms of waiting for the CPU | {of_prompt} |")
    print("| --- | --- |" + 10 * " ---: |")
    print("\n".join(rows(like, arguments.path, arguments.n_ctx)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
