"""Drafts: whatever they guess, a text with them is the text without; and they run where they pay alone."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from draft_costs import FixedCosts
from table_models import table_model

from hotcold import Engine, load
from hotcold.engine.generation import token_sequence
from hotcold.engine.generation.constraint import of_schema
from hotcold.engine.generation.draft import MAX_DRAFT, NgramDrafts, RunCosts
from hotcold.engine.generation.session import restore, save
from hotcold.errors import SettingError

IDS = np.random.default_rng(5).integers(3, 200, 110).tolist()
SAMPLED = {"temp": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
PENALTIES = {"temp": 0.9, "seed": 4, "repeat_penalty": 1.3, "frequency_penalty": 0.4, "repeat_last_n": 20}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SETTINGS: list[dict[str, Any]] = [{"temp": 0.0}, SAMPLED, PENALTIES | {"logprobs": 3}]
DENSE = (
    "llama.q4_0",
    "llama.q4_k",
    "falcon.norm2.q4_0",
    "qwen2.f16",
    "qwen3.q4_0",
    "phi3.longrope.q8_0",
    "granite.q4_0",
)
EXPERTS = ("mixtral.q4_0", "qwen2moe.q4_0", "olmoe.f16")
WINDOWS = ("gemma3.f16", "gptoss.mxfp4", "smallthinker.window5.q4_0")
CASES = [(f"llamacpp/{name}", "auto") for name in (*DENSE, *EXPERTS, *WINDOWS)] + [
    (f"powerinfer/{name}.powerinfer", mode)
    for name in ("llama-q4_0", "bamboo-f16", "falcon-q4_0", "opt-f16")
    for mode in ("exact", "predictor")
]
QUICK = {
    ("llamacpp/llama.q4_0", "auto"),
    ("llamacpp/gemma3.f16", "auto"),
    ("powerinfer/bamboo-f16.powerinfer", "predictor"),
}


Same = Callable[..., Any]


class Knowing(NgramDrafts):
    """Knows how the text goes on, guesses a token wrong here and there, and goes on beyond the text's end."""

    known: list[int] = []  # noqa: RUF012 - replaced for every text
    wrong = 5

    def draft(self, most: int, costs: RunCosts) -> list[int]:
        n = len(self._ids)
        assert self.known[:n] == self._ids
        guessed = (self.known[n:] + [self.wrong] * MAX_DRAFT)[: min(most, 1 + n * 7 % MAX_DRAFT)]
        if n % 4 < len(guessed):
            guessed[n % 4] = self.wrong
        return guessed


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What an engine says with drafts, which is what it says without: the generation, at its end."""

    def check(engine: Engine, prompt: Any, **settings: Any) -> Any:
        plain = engine.generate(prompt, **settings)
        text = "".join(plain)
        monkeypatch.setattr(Knowing, "known", plain.prompt_ids + plain.ids)
        monkeypatch.setattr(token_sequence, "NgramDrafts", Knowing)
        drafted = engine.generate(prompt, draft="ngram", **settings)
        assert "".join(drafted) == text and drafted.ids == plain.ids
        assert drafted.logprobs == plain.logprobs
        mine, other = drafted.statistics, plain.statistics
        assert (mine.stop_reason, mine.n_generated, mine.n_decoded) == (
            other.stop_reason,
            other.n_generated,
            other.n_decoded,
        )
        assert len(drafted.held.ids) <= len(plain.held.ids) and mine.n_drafted
        return drafted

    return check


@pytest.mark.parametrize(
    ("name", "sparsity"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_a_text_is_the_same_with_drafts(name: str, sparsity: str, data: Path, same: Same) -> None:
    """Of every architecture; windows move on past what is rolled back."""
    with load(data / f"{name}.gguf", 256, 16, threads=2, sparsity=sparsity, head_sparsity="off") as engine:
        for settings in SETTINGS:
            drafted = same(engine, IDS, max_tokens=50, ignore_eos=True, **settings)
            assert drafted.statistics.n_draft_accepted >= 15
            after = engine.generate([*drafted.held.ids, 7], 3, temp=0.0, after=drafted)
            again = engine.generate([*drafted.held.ids, 7], 3, temp=0.0)
            assert list(after) == list(again) and after.statistics.n_reused == len(drafted.held.ids)


@pytest.mark.parametrize("how", [{"kv_type": "q8_0"}, {"kv_type": "f32", "n_batch": 4}, {"n_ctx": 70}])
def test_it_is_so_with_every_cache(how: dict[str, Any], same: Same) -> None:
    """A batch bounds a draft, and so does the context."""
    with load(**{"n_ctx": 96, "threads": 1} | how) as engine:
        for settings in SETTINGS:
            same(engine, "It is a truth universally", max_tokens=-1, ignore_eos=True, **settings)


def test_a_batch_of_one_has_no_drafts() -> None:
    with load(n_ctx=64, n_batch=1, threads=1) as engine:
        generation = engine.generate("la la la la", 20, temp=0.0, ignore_eos=True, draft="ngram")
        assert "".join(generation) and not generation.statistics.n_drafted


def test_drafts_and_grammars_need_the_whole_head() -> None:
    """A token by itself would be chosen among fewer than one of a draft, and maybe none that a grammar allows."""
    with load(n_ctx=64, threads=1) as engine:
        executor = engine.executor
        executor.model = replace(executor.model, sparse_head=True, head_fc1=executor.model.output)
        with pytest.raises(SettingError, match=r"draft: ngram .*head_sparsity='off'"):
            engine.generate("Emma", draft="ngram")
        with pytest.raises(SettingError, match=r"grammar .*head_sparsity='off'"):
            engine.generate("Emma", grammar="any")
        executor.model = replace(executor.model, sparse_head=False)
        assert "".join(engine.generate("Emma", 3, draft="ngram", ignore_eos=True))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=96, threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    "settings",
    [
        {"stop": ["the", "ed "]},
        {"grammar": SCHEMA, "temp": 0.7, "seed": 1},
        {"max_tokens": 1},
        {"max_tokens": 2},
        {"max_tokens": -1, "ignore_eos": True, "seed": 5},  # until the context is full
        {"special": True, "seed": 7},
    ],
)
def test_whatever_ends_a_text_ends_it_with_drafts(
    engine: Engine, settings: dict[str, Any], same: Same
) -> None:
    settings = {"temp": 0.0, "max_tokens": 40} | settings
    if "grammar" in settings:
        settings["grammar"] = of_schema(settings["grammar"])
    if settings["max_tokens"] in (1, 2):  # nothing is left to draft
        generation = engine.generate("Emma", draft="ngram", **settings)
        assert "".join(generation) == "".join(engine.generate("Emma", **settings))
        assert generation.statistics.n_drafted == 0
    else:
        same(engine, "It is a truth universally acknowledged", **settings)


def test_a_text_may_end_inside_a_draft(tmp_path: Path, same: Same, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end's token, which a draft may have, or have something else in its place."""
    path = table_model(tmp_path / "m.gguf", dict(zip("abcdefg", [*"bcdefg", "</s>"], strict=True)))
    with load(path, threads=1, n_ctx=64) as engine:
        for wrong in (2, 5, 300):
            monkeypatch.setattr(Knowing, "wrong", wrong)
            drafted = same(engine, "a", temp=0.0, max_tokens=-1)
            assert drafted.statistics.stop_reason == "eos"


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["2MiB", "6MiB"])
def test_a_device_says_the_same_with_drafts(budget: str, same: Same) -> None:
    with load(n_ctx=64, n_batch=16, threads=2, device="emulated", vram_budget=budget) as engine:
        for settings in SETTINGS:
            same(engine, "It is a truth", max_tokens=30, ignore_eos=True, **settings)


def test_a_session_holds_what_stands(engine: Engine, tmp_path: Path, same: Same) -> None:
    drafted = same(engine, "Mr. Darcy looked", max_tokens=20, seed=1)
    save(engine, drafted.held, tmp_path / "one")
    more = [*drafted.prompt_ids, *drafted.ids, 7]
    wanted = list(engine.generate(more, 8, temp=0.0))
    after = engine.generate(more, 8, temp=0.0, after=restore(engine, tmp_path / "one"))
    assert list(after) == wanted and after.statistics.n_reused == len(drafted.held.ids)


def test_what_followed_is_drafted_where_it_pays() -> None:
    text = [10, 11, 12, 13, 14, 15, 16, 17] * 3
    drafts = NgramDrafts(text)
    assert (
        drafts.draft(MAX_DRAFT, FixedCosts(0.0)) == (text * 2)[:MAX_DRAFT]
    )  # beyond the end of what there is
    assert drafts.draft(3, FixedCosts(0.0)) == text[:3]
    assert drafts.draft(0, FixedCosts(0.0)) == drafts.draft(-1, FixedCosts(0.0)) == []
    assert drafts.draft(MAX_DRAFT, FixedCosts(1.0)) == []  # n tokens take n times as long
    some = drafts.draft(MAX_DRAFT, FixedCosts(0.1))
    assert 0 < len(some) < MAX_DRAFT
    assert NgramDrafts([1, 2, 3]).draft(9, FixedCosts(0.0)) == []  # nothing comes twice


def test_a_text_that_disappoints_is_drafted_no_more_until_it_does_not() -> None:
    dice = np.random.default_rng(0)
    drafts = NgramDrafts(dice.integers(0, 30, 400).tolist())
    assert drafts.draft(MAX_DRAFT, FixedCosts(0.2)) == []
    for token in list(range(100, 130)) * 3:
        drafts.append(token)
    assert len(drafts.draft(MAX_DRAFT, FixedCosts(0.2))) > 4


def test_the_longest_beginning_that_is_alike_says_what_comes() -> None:
    text = [1, 2, 3, 4, 9, 3, 5, 1, 2, 3]
    assert NgramDrafts(text).draft(1, FixedCosts(0.0)) == [4]
    assert NgramDrafts([*text[:-3], 8, 3]).draft(1, FixedCosts(0.0)) == [5]


def test_costs_are_what_was_measured_and_forgotten_slowly() -> None:
    costs = RunCosts()
    assert costs.times() is None
    costs.measured(4, 1.0)  # in times of what?
    costs.measured(1, 0.01)
    table = costs.times()
    assert table is not None and table[1] == 1.0 and np.all(np.diff(table) >= 0)
    for _ in range(20):
        costs.measured(4, 0.035)
    dear = costs.times()
    assert dear is not None and dear[4] == pytest.approx(3.5, rel=0.02) and dear[5] >= dear[4]
    for _ in range(1000):
        costs.measured(1, 0.01)
    assert (found := costs.times()) is not None and found[4] == pytest.approx(table[4], rel=0.02)


@pytest.mark.parametrize("how", [{"draft": "yes"}, {"draft": ""}])
def test_unknown_drafts_are_named(engine: Engine, how: Any) -> None:
    with pytest.raises(SettingError, match=r"draft: .*known: off, ngram"):
        engine.generate("Emma", **how)


def test_the_command_says_what_was_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotcold.engine.generation.generation.RunCosts", FixedCosts)
    words = ("generate", "-p", "la la la la la la", "-n", "40", "--temp", "0", "-t", "1", "--ignore-eos")
    done = run(*words, "--json", "--draft", "ngram")
    told = json.loads(done.stdout)
    assert 0 < told["n_draft_accepted"] <= told["n_drafted"]
    assert f"drafts: {told['n_draft_accepted']} of {told['n_drafted']} tokens accepted" in done.stderr
    assert told["text"] == json.loads(run(*words, "--json").stdout)["text"]
    assert "known: off, ngram" in run(*words, "--draft", "model").stderr
