"""Counts of the server in Prometheus's text format."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.serve.worker import Worker


class Metrics:
    """What is counted while requests are answered.

    Attributes:
        n_run, n_generated: tokens of prompts that had to run, and tokens chosen, in answers that have ended.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "hotcold_requests", "Requests by endpoint and status.", ("path", "status"), registry=registry
        )
        self._prompt = Counter("hotcold_prompt_tokens", "Of prompts, reused ones too.", registry=registry)
        self._reused = Counter("hotcold_reused_tokens", "Of those, found in the KV cache.", registry=registry)
        self._generated = Counter("hotcold_generated_tokens", "Tokens chosen.", registry=registry)
        self._drafted = Counter("hotcold_drafted_tokens", "Tokens of drafts.", registry=registry)
        self._accepted = Counter(
            "hotcold_accepted_draft_tokens", "Of those, the ones that stand.", registry=registry
        )
        self._prompt_seconds = Counter("hotcold_prompt_seconds", "That prompts ran.", registry=registry)
        self._decode_seconds = Counter(
            "hotcold_decode_seconds", "That tokens ran behind prompts.", registry=registry
        )
        self._ended = Counter(
            "hotcold_answers", "Answers by what ended them.", ("reason",), registry=registry
        )
        self._length = Histogram(
            "hotcold_answer_tokens",
            "Tokens of an answer.",
            buckets=(1, 4, 16, 64, 256, 1024, 4096),
            registry=registry,
        )

        self.n_run, self.n_generated = 0, 0

    def watch(self, worker: Worker) -> None:
        """Tell of a worker's queue too."""
        registry = self._registry
        waiting = Gauge("hotcold_waiting", "Answers that have not begun.", registry=registry)
        waiting.set_function(lambda: worker.n_waiting)
        running = Gauge("hotcold_running", "Answers under way.", registry=registry)
        running.set_function(lambda: worker.n_running)
        executor = worker.engine.executor
        used = Gauge("hotcold_vram_bytes", "Taken on a card.", ("device",), registry=registry)
        budget = Gauge("hotcold_vram_budget_bytes", "At most.", ("device",), registry=registry)
        for device, card in zip(executor.devices, executor.plan.cards, strict=False):
            used.labels(device.name).set_function(partial(getattr, device.tally, "live_bytes"))
            budget.labels(device.name).set(card.totals.budget)

    def ended(self, done: Statistics) -> None:
        """Count an answer that has ended."""
        self.n_run += done.n_prompt - done.n_reused
        self.n_generated += done.n_generated
        self._prompt.inc(done.n_prompt)
        self._reused.inc(done.n_reused)
        self._generated.inc(done.n_generated)
        self._drafted.inc(done.n_drafted)
        self._accepted.inc(done.n_draft_accepted)
        self._prompt_seconds.inc(done.prompt_seconds)
        self._decode_seconds.inc(done.decode_seconds)
        self._ended.labels(done.stop_reason or "stopped").inc()
        self._length.observe(done.n_generated)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
