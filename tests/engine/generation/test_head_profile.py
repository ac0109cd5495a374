"""Texts of a head that computes the rows that a profile lists: what it leaves out cannot be chosen, and is no fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from head_profiles import ROW, by_sign, with_profile

import hotcold
from hotcold.engine.generation.logprobs import token_logprobs
from hotcold.engine.generation.sampling import Sampler
from hotcold.engine.generation.settings import SamplingSettings
from hotcold.errors import SettingError

BUNDLED = Path(__file__).parents[3] / "models" / "tiny-moe-austen" / "tiny-moe-austen.q4_0.gguf"
PROMPT = "It is a truth"
DEVICE = {"device": "emulated", "vram_budget": "64MiB"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled mixture with a profile."""
    return with_profile(BUNDLED, tmp_path_factory.mktemp("text") / "a.gguf", *by_sign(BUNDLED))


def greedy_by_hand(path: Path, ids: list[int], n: int, options: dict[str, Any]) -> list[int]:
    """n tokens by whole heads, of which rows count as the profile says."""
    with hotcold.load(path, 64, 16, threads=2, head_sparsity="off", **options) as engine:
        logits = np.zeros((1, engine.model.n_vocab), np.float32)
        found = list(ids)
        engine.executor.run(np.array(ids, np.int32), 0, logits)
        for i in range(n):
            chosen = logits[0]
            if i:  # a prompt's batch has all rows
                is_even = np.arange(chosen.size) % 2 == 0
                chosen = np.where(is_even == (chosen[ROW] > 0), chosen, -np.inf)
            found.append(int(chosen.argmax()))
            engine.executor.run(np.array(found[-1:], np.int32), len(found) - 1, logits)
    return found[len(ids) :]


@pytest.mark.parametrize("options", [{}, pytest.param(DEVICE, marks=pytest.mark.slow)], ids=["cpu", "device"])
def test_texts_are_of_listed_rows_alone(path: Path, options: dict[str, Any], compiler: str) -> None:
    with hotcold.load(path, 64, 16, threads=2, **options) as engine:
        ids = engine.prompt_ids(PROMPT, parse_special=False)
        for logprobs in (0, 3):  # by candidates and by whole rows
            generation = engine.generate(PROMPT, 9, temp=0.0, logprobs=logprobs)
            list(generation)
            assert generation.ids == greedy_by_hand(path, ids, 9, options)
        drawn = engine.generate(PROMPT, 9, seed=3, temp=2.0)
        list(drawn)
        assert len(drawn.ids) == 9


@pytest.mark.parametrize("option", ["--draft", "--grammar"])
def test_a_command_computes_the_whole_head_where_a_text_needs_it(
    option: str, path: Path, tmp_path: Path
) -> None:
    """By --head-sparsity auto."""
    (grammar := tmp_path / "g.lark").write_text('start: "zz" /[0-9]+/')
    value = "ngram" if option == "--draft" else str(grammar)
    given = (
        "generate",
        "-m",
        str(path),
        "-p",
        PROMPT,
        "-n",
        "6",
        "--temp",
        "0",
        "-c",
        "64",
        "-q",
        option,
        value,
    )
    auto, off = run(*given), run(*given, "--head-sparsity", "off")
    assert auto.returncode == off.returncode == 0 and auto.stdout == off.stdout


@pytest.mark.parametrize("settings", [{"temp": 0.0}, {"temp": 0.8}, {"temp": 0.8, "top_k": 0}])
def test_where_all_that_may_follow_were_left_out_that_is_said(settings: dict[str, Any]) -> None:
    """As where nothing but tokens that end a text were listed, and those are banned."""
    nothing = np.full(100, -np.inf, np.float32)
    sampler = Sampler(SamplingSettings(seed=1, **settings))
    with pytest.raises(SettingError, match=r"leaves out every token .*--head-sparsity off"):
        sampler.sample(nothing)
    if settings.get("top_k") != 0:  # of which all tokens are wanted, not candidates
        with pytest.raises(SettingError, match="leaves out every token"):
            sampler.sample_candidates(np.arange(64), nothing[:64])
    nothing[70] = -3
    assert sampler.sample(nothing) == 70
    assert settings.get("top_k") == 0 or sampler.sample_candidates(np.arange(70, 100), nothing[70:]) == 70


def test_probabilities_of_what_was_left_out_are_not_told() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[4, 9]] = 1
    found = token_logprobs(logits, 9, 5)
    assert [token for token, _ in found.top] == [4, 9]
    assert found.logprob == pytest.approx(np.log(0.5))
