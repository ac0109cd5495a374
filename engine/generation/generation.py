"""Text from a loaded model: feed it a prompt, choose tokens, stream their text, count and stop."""

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.closing import Closing
from hotcold.engine.generation.draft import MAX_DRAFT, RunCosts
from hotcold.engine.generation.first_prompt import FirstPrompt
from hotcold.engine.generation.line import Line
from hotcold.engine.generation.lookahead import rows_that_stand, run_ahead
from hotcold.engine.generation.not_finite import overflow_warning
from hotcold.engine.generation.prompt_length import check_length, checked_ids
from hotcold.engine.generation.rows import Rows
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.generation.token_sequence import TokenSequence, n_alike
from hotcold.engine.model.model import Model
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.use import DeviceMeter, DeviceUse
from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import DeviceError, SettingError
from hotcold.gguf_io import GGUFFile

if TYPE_CHECKING:
    from hotcold.kernels.cuda.device.device import Device

DEFAULTS = GenerationSettings()
ROLLED_OVER = "the model's windows have moved on, so the whole prompt runs again"


class Engine(Closing):
    """A loaded model: logits of given tokens, and text that goes on from a prompt.

    Make one with `loading.load`. For any number of threads, whose texts come one after the other. A context manager:
    leaving it ends the threads and closes the file.

    Attributes:
        sparsity: "off", "exact", "predictor" or "threshold".
        sparsity_reason: why, in words.
        warnings: what a user should know of the file and the settings, one line each.
        load_seconds: what loading took.
        first_prompt: runs it, and then has what it says of the model.
        run_costs: what runs of a few tokens take.
        line: those who use it, and who waits.
    """

    def __init__(
        self,
        file: GGUFFile,
        model: Model,
        tokenizer: Tokenizer,
        executor: Executor,
        *,
        sparsity: str = "off",
        sparsity_reason: str = "",
        warnings: tuple[str, ...] = (),
        devices: "Sequence[Device]" = (),
        load_seconds: float = 0.0,
    ) -> None:
        self.file, self.model, self.tokenizer = file, model, tokenizer
        self._executor: Executor | None = executor
        self._devices = devices
        self.n_ctx, self.n_batch, self.n_threads = executor.n_ctx, executor.n_batch, executor.n_threads
        self.sparsity, self.sparsity_reason = sparsity, sparsity_reason
        self.warnings, self.load_seconds = warnings, load_seconds
        self.device_meter = DeviceMeter(executor)
        self._turn = 0
        self.first_prompt = FirstPrompt(executor, file)
        self.run_costs, self.line = RunCosts(), Line()

    @property
    def executor(self) -> Executor:
        """What runs the model.

        Raises:
            SettingError: the engine is closed.
        """
        if self._executor is None:
            raise SettingError("engine", "closed", next_step="load the model again")
        return self._executor

    @property
    def turn(self) -> int:
        """The use of the KV cache that was the last: see `take_turn`."""
        return self._turn

    @property
    def is_open(self) -> bool:
        """Whether it still has its memory."""
        return self._executor is not None

    def logits(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Logits after each of the tokens, which start at position 0: float32 [n_tokens, n_vocab].

        Raises:
            SettingError: an id that is no whole number within the vocabulary.
            DoesNotFitError: more tokens than n_ctx.
        """
        tokens = checked_ids("tokens", ids, self.model.n_vocab, self.n_ctx)
        logits = np.empty((tokens.size, self.model.n_vocab), np.float32)
        with self.line.alone():
            self.take_turn()
            for start in range(0, tokens.size, self.n_batch):
                stop = start + self.n_batch
                self.executor.run(tokens[start:stop], start, logits[start:stop])
        return logits

    def generate(
        self,
        prompt: str | bytes | Sequence[int],
        max_tokens: int = DEFAULTS.max_tokens,
        *,
        temp: float = DEFAULTS.temp,
        top_k: int = DEFAULTS.top_k,
        top_p: float = DEFAULTS.top_p,
        min_p: float = DEFAULTS.min_p,
        repeat_penalty: float = DEFAULTS.repeat_penalty,
        repeat_last_n: int = DEFAULTS.repeat_last_n,
        presence_penalty: float = DEFAULTS.presence_penalty,
        frequency_penalty: float = DEFAULTS.frequency_penalty,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        parse_special: bool = DEFAULTS.parse_special,
        special: bool = DEFAULTS.special,
        logprobs: int = DEFAULTS.logprobs,
        grammar: str = DEFAULTS.grammar,
        draft: str = DEFAULTS.draft,
        after: "Generation | Held | None" = None,
    ) -> "Generation":
        """Text that goes on from `prompt`, as an iterator of pieces; it runs as it is iterated.

        Args:
            prompt: text, or token ids.
            max_tokens, temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n, presence_penalty,
                frequency_penalty, seed, stop, ignore_eos, parse_special, special, logprobs, grammar,
                draft: see `GenerationSettings`.
            after: the last generation of this engine, or what a session file brought; what its text and this
                prompt begin with alike is in the KV cache and does not run again.

        Raises:
            SettingError: a value out of its bounds, an empty prompt.
            DoesNotFitError: a prompt longer than the context.
        """
        settings = GenerationSettings(
            temp,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            presence_penalty,
            frequency_penalty,
            seed,
            max_tokens,
            stop,
            ignore_eos,
            parse_special,
            special,
            logprobs,
            grammar,
            draft,
        )
        return self.generate_with(prompt, settings, after)

    def generate_with(
        self,
        prompt: str | bytes | Sequence[int],
        settings: GenerationSettings,
        after: "Generation | Held | None" = None,
    ) -> "Generation":
        """`generate` with its settings as one value.

        Raises:
            SettingError, DoesNotFitError: see `generate`.
        """
        settings = self.checked_settings(settings)
        if isinstance(prompt, str | bytes):
            own_bos = settings.parse_special and self.tokenizer.brings_bos(prompt)
            ids = self.prompt_ids(prompt, parse_special=settings.parse_special)
        else:
            own_bos, ids = False, self.checked_prompt(prompt)
        generation = Generation(self, ids, settings, after)
        if own_bos:
            generation.warnings = ("the prompt begins with BOS, so none is put in front of it",)
        return generation

    def checked_settings(self, settings: GenerationSettings) -> GenerationSettings:
        """The same settings, with a seed.

        Raises:
            SettingError: a value out of its bounds, or one that this model cannot have.
        """
        if self.executor.model.lists_head_rows:
            settings.check_some_rows()
        return settings.checked()

    def prompt_ids(self, text: str | bytes, *, parse_special: bool) -> list[int]:
        """Ids of a prompt's text, with BOS in front if the model wants it and the text does not bring it.

        Raises:
            SettingError, DoesNotFitError: see `generate`.
        """
        self.check_length(text)
        own_bos = parse_special and self.tokenizer.brings_bos(text)
        return self.checked_prompt(
            self.tokenizer.encode(text, add_special=not own_bos, parse_special=parse_special)
        )

    def checked_prompt(self, ids: Sequence[int]) -> list[int]:
        """The ids of a prompt, if they are such.

        Raises:
            SettingError, DoesNotFitError: see `generate`.
        """
        checked = checked_ids("prompt", ids, self.model.n_vocab, self.n_ctx)
        if not checked.size:
            raise SettingError("prompt", "0 tokens", "at least 1", "give some text")
        found: list[int] = checked.tolist()
        return found

    def check_length(self, prompt: str | bytes) -> None:
        """Refuse what is too long whatever its tokens are, since making them takes time and memory."""
        check_length(prompt, self.tokenizer, self.n_ctx)

    def take_turn(self) -> int:
        """A number for one use of the KV cache; a later use makes it stale."""
        self._turn += 1
        return self._turn

    def run_prompt(
        self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None, slot: int = 0
    ) -> None:
        """Let a slice of a prompt pass, as `Executor.run`; the first prompt tells something of the model."""
        if self.first_prompt.is_over or slot:
            self.executor.run(ids, n_past, logits, slot)
        else:
            self.first_prompt.run(ids, n_past, logits)

    def close(self) -> None:
        """End the threads and close the file, once no step runs any more."""
        with self.line.step(None, overtakes=True):
            if self._executor is not None:
                self._executor.close()
                self._executor = None
                for device in self._devices:
                    device.close()
                self.file.close()


@dataclass(frozen=True)
class Held:
    """What an engine's KV cache holds: ids, and the turn of the call that left them there."""

    ids: Sequence[int]
    turn: int


class Generation(Iterator[str]):
    """The text of one `Engine.generate`, piece by piece; only whole characters come out.

    While it goes on, other threads wait; who has taken the cache from one that rested has it run its tokens again.

    Attributes:
        prompt_ids, ids: tokens of the prompt, and tokens chosen so far.
        statistics: counts and times so far.
        sampling: the settings in use, with the seed.
        warnings: what a user should know of the prompt, one line each.
        logprobs: of each chosen token, if they were asked for.
    """

    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        engine: Engine,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        after: "Generation | Held | None" = None,
    ) -> None:
        """`settings` are checked, so they have a seed."""
        self._engine, self.sampling = engine, settings
        self.statistics = Statistics(engine.load_seconds, len(prompt_ids))
        self._sequence = TokenSequence(engine.tokenizer, prompt_ids, settings, engine.n_ctx, self.statistics)
        self.prompt_ids, self.ids = self._sequence.prompt_ids, self._sequence.ids
        self.logprobs = self._sequence.logprobs
        n_rows = 1 if settings.draft == "off" else 1 + MAX_DRAFT
        self._rows = Rows(engine.executor, n_rows)
        self._first: FirstPrompt | None = None  # if this is the engine's first prompt, once it has passed
        self._after, self._turn, self._n_cached, self._stopped = after, -1, 0, False
        self._is_over, self._used_before, self._key = False, DeviceUse(), object()
        weakref.finalize(self, engine.line.end, self._key).atexit = False  # nobody asks on

    def __next__(self) -> str:
        return self._engine.line.advance(self._key, self._advance)

    @property
    def findings(self) -> tuple[str, ...]:
        """What a user should know of the model once it has run, one line each.

        What its cache shows is among them while the engine is open.
        """
        of_prompt = () if self._first is None else self._first.warnings
        of_cache = overflow_warning(self._engine.executor, self._n_cached) if self._engine.is_open else ""
        return (*of_prompt, *filter(None, (of_cache,)))

    @property
    def lines(self) -> tuple[str, ...]:
        """More about the model, likewise."""
        return () if self._first is None else self._first.lines

    def stop(self) -> None:
        """End the text after the step that runs at this moment."""
        self._stopped = True

    @property
    def held(self) -> Held:
        """What it has left in the KV cache."""
        return Held((self.prompt_ids + self.ids)[: self._n_cached], self._turn)

    def _advance(self) -> str:
        """The next piece; StopIteration behind the last one."""
        goes_on = False
        try:
            if self._turn < 0 and not self._is_over:
                self._begin()
            while not self._stopped and self._sequence.has_room and not self._is_over:
                if piece := self._next_piece():
                    goes_on = True
                    return piece
            if not self._is_over and (rest := self._sequence.end()):
                return rest
            raise StopIteration
        finally:
            if not goes_on and not self._is_over:
                self._is_over = True
                with suppress(DeviceError):  # a lost device cannot be asked
                    self.statistics.use = self._engine.device_meter.read().since(self._used_before)

    def _begin(self) -> None:
        """Take the cache, and let the prompt pass, but for what is there of it."""
        statistics = self.statistics
        if self._after is not None:  # the last token runs again: its logits are needed
            after = self._after if isinstance(self._after, Held) else self._after.held
            held = after.ids if after.turn == self._engine.turn else ()
            n_reused = min(n_alike(held, self.prompt_ids), len(self.prompt_ids) - 1)
            if self._engine.executor.slots.can_go_on(n_reused):
                statistics.n_reused = n_reused
            else:
                self.warnings = (*self.warnings, ROLLED_OVER)
        self._after, self._turn = None, self._engine.take_turn()
        self._used_before = self._engine.device_meter.read()
        statistics.use = self._used_before.since(self._used_before)
        if self._sequence.has_room:
            self._run_prompt()

    def _run_prompt(self) -> None:
        """Let the prompt pass in batches; only the last token's logits are computed."""
        engine, first, started = self._engine, self._engine.first_prompt, time.perf_counter()
        ids, self._n_cached = np.array(self.prompt_ids, np.int32), self.statistics.n_reused
        while self._n_cached < ids.size and not self._stopped:
            batch = ids[self._n_cached : self._n_cached + engine.n_batch]
            last = self._n_cached + batch.size == ids.size
            engine.run_prompt(batch, self._n_cached, self._rows.of_run(1)[0] if last else None)
            self._n_cached += batch.size
        self.statistics.prompt_seconds = time.perf_counter() - started
        self._first, first.is_over = None if first.is_over else first, True

    def _next_piece(self) -> str:
        """Let the last token pass, choose what follows, and return what text can be shown then, maybe none."""
        if not self.ids:  # of the first choice the prompt has brought the logits
            return self._rows.accept(0, self._sequence, self._engine.executor, self._engine.file)
        engine, sequence, statistics = self._engine, self._sequence, self.statistics
        if self._turn != engine.turn:
            self._bring_back()
        started, n_past, text = time.perf_counter(), statistics.n_prompt + statistics.n_generated - 1, ""
        draft = run_ahead(engine.executor, engine.run_costs, sequence, n_past, self._rows)
        for row in rows_that_stand(sequence, draft):
            self._n_cached = n_past + 1 + row
            statistics.n_decoded += 1
            text += self._rows.accept(row, sequence, engine.executor, engine.file)
        statistics.decode_seconds += time.perf_counter() - started
        return text

    def _bring_back(self) -> None:
        """Let all tokens but the last pass again: somebody else has used the cache since."""
        engine, self._n_cached, self._turn = self._engine, 0, self._engine.take_turn()
        for ids, sends in ((self.prompt_ids, True), (self.ids[:-1], False)):  # with the bits of single tokens
            for start in range(0, len(ids), engine.n_batch):
                some = np.array(ids[start : start + engine.n_batch], np.int32)
                engine.executor.run(some, self._n_cached, sends=sends)
                self._n_cached += some.size
