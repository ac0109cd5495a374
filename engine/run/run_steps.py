"""The steps of runs by their number of tokens, made once and kept."""

from typing import TYPE_CHECKING

from hotcold.engine.graph.graph import Node
from hotcold.engine.host.records import Record
from hotcold.engine.host.side import HostSide
from hotcold.engine.host.steps import Step
from hotcold.engine.plan.plan import GraphPlan, Plan

if TYPE_CHECKING:
    from hotcold.engine.device.cards import Cards

TAILS = 8  # lengths of a prompt's last batch whose launches are kept


class RunSteps:
    """What a run consists of.

    Attributes:
        walks: the CPU's part of a run, by number of tokens of its graph (1, n_batch).
        kept: the steps of runs of one sequence, by number of tokens.
        last: the graph of the last run.
        stream_from: tokens from which on a run has cold rows sent to the device; None: none has.
    """

    def __init__(self, plan: Plan, host: HostSide, cards: "Cards | None") -> None:
        self._plan, self._host, self._cards = plan, host, cards
        self.walks = {graph.placed.n_tokens: host.walks(graph) for graph in plan.graphs}
        self._apart = dict[int, list[Step]]()
        streaming = plan.streaming
        self.last = plan.decode
        self.kept = {n: self._make(n) for n in self.walks}
        self.stream_from = None if streaming is None else streaming.least
        self._sent_walks = [] if streaming is None else host.walks(streaming.graph)
        self._sent = dict[int, list[Step]]()

    @property
    def lowered(self) -> dict[int, list[tuple[Node, list[Record]]]]:
        """By number of tokens (1, n_batch), every node of the CPU with its op records."""
        return {n: [pair for walk in walks for pair in walk.lowered] for n, walks in self.walks.items()}

    def _graph(self, n_tokens: int) -> GraphPlan:
        return self._plan.decode if n_tokens == 1 else self._plan.batch

    def sends_for(self, n_tokens: int) -> bool:
        """Whether a device is sent what it lacks for so many tokens."""
        return self.stream_from is not None and n_tokens >= self.stream_from

    def of(self, n_tokens: int, sends: bool = True) -> list[Step]:
        """A run of one sequence; those of the last few other lengths than 1 and n_batch are kept.

        Args:
            sends: whether the device may be sent what it lacks.

        The CPU's programs take any number of tokens; only launches and copies are made for one.
        """
        if self._cards is None and n_tokens > 1:
            n_tokens = self._plan.n_batch
        if sends and self._plan.streaming is not None and self.sends_for(n_tokens):
            self.last, kept, make = self._plan.streaming.graph, self._sent, self._make_sent
        else:
            self.last, kept, make = self._graph(n_tokens), self.kept, self._make
        if n_tokens not in kept:
            tails = [n for n in kept if n not in self.walks]
            if len(tails) >= TAILS:
                del kept[tails[0]]
            kept[n_tokens] = make(n_tokens)
        return kept[n_tokens]

    def apart(self, n: int) -> list[Step]:
        """A run of one token of each of n sequences."""
        batch = self.last = self._plan.batch
        if n not in self._apart:
            walks = self._host.walks(batch, n)
            self._apart[n] = (
                [*walks] if self._cards is None else self._cards.steps(batch, n, walks, apart=True)
            )
        return self._apart[n]

    def _make(self, n_tokens: int) -> list[Step]:
        graph = self._graph(n_tokens)
        walks = self.walks[graph.placed.n_tokens]
        return [*walks] if self._cards is None else self._cards.steps(graph, n_tokens, walks)

    def _make_sent(self, n_tokens: int) -> list[Step]:
        assert self._cards is not None and self._plan.streaming is not None
        return self._cards.steps_with_sending(self._plan.streaming.graph, n_tokens, self._sent_walks)
