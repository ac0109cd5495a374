"""`hotcold tune`: the time of a token in each mode that a model can run in, predicted and measured."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import FFNActivation, Json, KVType, ModelPath, Quiet, Threads
from hotcold.engine.commands.reports import note
from hotcold.engine.commands.terminal import write_line
from hotcold.engine.generation.run_options import RunOptions
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from hotcold.engine.generation.generation import Engine
    from hotcold.engine.measure.tune import ModeTime


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """Time of a token in each mode, predicted and measured."""

    path: ModelPath = None
    threads: Threads = RunOptions.threads
    kv_type: KVType = RunOptions.kv_type
    ffn_activation: FFNActivation = RunOptions.ffn_activation
    vram_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Model the modes on a card with so much memory too.")
    ] = None
    card: Annotated[str | None, typer.Option(metavar="NAME", help="Which card that is, such as rtx4090.")] = (
        None
    )
    quiet: Quiet = False
    as_json: Json = False

    @property
    def n_ctx(self) -> int:
        """Positions of prompt and tokens."""
        from hotcold.engine.measure.tune import N_CTX

        return N_CTX

    def run(self) -> None:
        """Load once a mode, measure, print."""
        if (self.vram_budget is None) != (self.card is None):
            raise SettingError("--vram-budget and --card", "one of them", "both or none", "add the other")
        from hotcold.engine.measure.tune import tune
        from hotcold.engine.model.model_path import model_path

        path = model_path(self.path)
        modes = modes_of(path, self.ffn_activation)
        cards = {} if self.card is None else self._on_card(path, modes)  # what cannot be is told at once
        engines: dict[str, Engine] = {}
        with ExitStack() as stack:
            for mode in modes:
                engine = open_engine(
                    self, self.quiet or bool(engines), device="cpu", vram_budget="auto", sparsity=mode
                )
                engines[mode] = stack.enter_context(engine)
            warn(engines["off"], self.quiet)
            found = tune(engines)
        if self.as_json:
            rows = [each.numbers() | ({"on_card": cards[each.mode]} if cards else {}) for each in found]
            write_line(json.dumps({"modes": rows}))
            return
        write_line(HEAD + (f"  {self.card}" if cards else ""))
        for each in found:
            write_line(
                row(each) + (f"  {1e3 * cards[each.mode]:>{len(self.card or '')}.2f}" if cards else "")
            )
        if not self.quiet:
            best = min(found, key=lambda each: each.predicted)
            note(f"fastest by the prediction: --sparsity {best.mode}")

    def _on_card(self, path: Path, modes: list[str]) -> dict[str, float]:
        """Modelled seconds of a token of each mode on the card, or on as many as there are budgets."""
        from hotcold.engine.dump.inputs import budget_of, facts_for, open_source, with_graphs
        from hotcold.engine.plan.cards import card_named
        from hotcold.engine.plan.estimate import estimate
        from hotcold.engine.plan.planning import make_plan, wanted

        source = open_source(path, ffn_activation=self.ffn_activation)
        card = card_named(self.card or "")
        facts, found = facts_for(None, self.vram_budget, self.card), {}
        for mode in modes:
            how = wanted(source, mode, self.n_ctx, RunOptions.n_batch, self.kv_type)
            budget = budget_of(self.vram_budget, with_graphs(facts, source, how))
            found[mode] = estimate(make_plan(source, how, budget), card).token
        return found


HEAD = "mode       computed  MB a token  predicted ms  measured ms  off by"


def row(each: "ModeTime") -> str:
    """A mode of the table."""
    times = f"{1e3 * each.predicted:>12.2f}  {1e3 * each.measured:>11.2f}  {each.error:>+6.0%}"
    return f"{each.mode:9}  {each.computed:>8.1%}  {each.n_bytes / 1e6:>10.2f}  {times}"


def modes_of(path: Path, ffn_activation: str | None) -> list[str]:
    """The modes that a file can run in, off first."""
    from hotcold.engine.model.ffn_activation import with_activation
    from hotcold.engine.model.load import load_model
    from hotcold.engine.model.sparsity import SPARSITY_CHOICES, resolve_sparsity
    from hotcold.gguf_io import open_gguf

    with open_gguf(path) as file:
        model = with_activation(load_model(file), file, ffn_activation)
    found = ["off"]
    for mode in SPARSITY_CHOICES:
        try:
            resolved, _ = resolve_sparsity(model, mode)
        except SettingError:
            continue
        if resolved == mode and mode not in found:
            found.append(mode)
    return found
