"""Generation: what is run, what is chosen, what is shown, and why it ends."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.tokenizer.sentencepiece import SentencePieceTokenizer
from hotcold.engine.tokenizer.stop_strings import StopStrings
from hotcold.engine.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, Vocabulary
from hotcold.errors import DoesNotFitError, FileError, SettingError

LETTERS = "abcdefghij"
BYTES = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
PIECES = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), *((c, NORMAL) for c in LETTERS), *BYTES]
BOS, EOS, FIRST_LETTER, FIRST_BYTE = 1, 2, 3, 3 + len(LETTERS)
N_VOCAB = len(PIECES) + 3  # more rows than pieces, as padded models have


class ScriptedExecutor:
    """Makes the tokens of a script the likeliest, one after each run; the last one goes on."""

    def __init__(self, script: Sequence[int], n_ctx: int, n_batch: int) -> None:
        self.script, self.n_ctx, self.n_batch, self.n_threads = list(script), n_ctx, n_batch, 1
        self.model, self.taking = SimpleNamespace(n_layer=1, n_vocab=N_VOCAB, lists_head_rows=False), None
        self.gives_candidates = False
        self.devices, self.plan = (), SimpleNamespace(kv_type="f32", sparsity="off")
        self.overflow = lambda n_keys=None: None
        self.runs: list[tuple[list[int], int, int]] = []

    def run(
        self,
        ids: NDArray[np.int32],
        n_past: int,
        logits: NDArray[np.float32] | None = None,
        slot: int = 0,
        sends: bool = True,
        candidates: None = None,
    ) -> None:
        n_out = 0 if logits is None else len(logits)
        self.runs.append((ids.tolist(), n_past, n_out))
        if logits is not None:
            logits[:] = -1.0
            logits[-1, N_VOCAB - 1] = 50.0  # a row without a piece must never be chosen
            logits[-1, EOS] = 0.5  # the second choice
            logits[-1, self.script[0]] = 1.0
            self.script = self.script[1:] or self.script

    def close(self) -> None:
        self.runs.clear()


def scripted(script: Sequence[int], n_ctx: int = 64, n_batch: int = 8) -> Engine:
    tokens, types = zip(*((text.encode(), kind) for text, kind in PIECES), strict=True)
    vocabulary = Vocabulary(tokens, types, bos=BOS, eos=EOS)
    tokenizer = SentencePieceTokenizer(vocabulary, [0.0] * len(tokens), add_space_prefix=False)
    model: Any = SimpleNamespace(n_vocab=N_VOCAB)
    file: Any = SimpleNamespace(path=Path("scripted.gguf"), close=lambda: None)
    executor: Any = ScriptedExecutor(script, n_ctx, n_batch)
    return Engine(file, model, tokenizer, executor)


def runs(engine: Engine) -> list[tuple[list[int], int, int]]:
    executor: Any = engine.executor
    return list(executor.runs)


def letters(text: str) -> list[int]:
    return [FIRST_LETTER + LETTERS.index(c) for c in text]


GREEDY: dict[str, Any] = {"temp": 0.0, "repeat_penalty": 1.0}


def test_prompt_runs_in_batches_and_only_its_last_row_has_logits() -> None:
    engine = scripted(letters("ab"))
    list(engine.generate("a" * 18, 2, **GREEDY))
    a = letters("a")[0]
    assert runs(engine) == [
        ([BOS] + [a] * 7, 0, 0),
        ([a] * 8, 8, 0),
        ([a] * 3, 16, 1),
        ([a], 19, 1),
    ]


def test_nothing_is_run_before_the_first_piece_is_asked_for() -> None:
    engine = scripted(letters("a"))
    generation = engine.generate("abc", 5, **GREEDY)
    assert runs(engine) == []
    assert next(generation) == "a"


def test_length_ends_the_text() -> None:
    generation = scripted(letters("abcdef")).generate("a", 4, **GREEDY)
    assert list(generation) == list("abcd")
    assert generation.ids == letters("abcd")
    assert generation.prompt_ids == [BOS, *letters("a")]
    statistics = generation.statistics
    assert (statistics.n_prompt, statistics.n_generated, statistics.n_decoded) == (2, 4, 3)
    assert statistics.stop_reason == "length"


def test_zero_tokens_run_nothing() -> None:
    engine = scripted(letters("a"))
    generation = engine.generate("abc", 0)
    assert list(generation) == []
    assert generation.statistics.stop_reason == "length"
    assert runs(engine) == []


def test_end_of_text_ends_it_and_is_not_shown() -> None:
    generation = scripted([*letters("ab"), EOS]).generate("a", 9, **GREEDY)
    assert "".join(generation) == "ab"
    assert generation.ids == letters("ab")
    assert generation.statistics.stop_reason == "eos"


def test_end_of_text_can_be_ignored() -> None:
    """The likeliest token but that one is chosen: all others are equal, so the first of them."""
    generation = scripted([*letters("a"), EOS, *letters("b")]).generate("a", 3, ignore_eos=True, **GREEDY)
    list(generation)
    assert generation.ids == [*letters("a"), 0, *letters("b")]
    assert generation.statistics.stop_reason == "length"


@pytest.mark.parametrize("max_tokens", [-1, 1000])
def test_a_full_context_ends_the_text(max_tokens: int) -> None:
    engine = scripted(letters("a"), n_ctx=16)
    generation = engine.generate("abcd", max_tokens, **GREEDY)
    assert "".join(generation) == "a" * 11
    assert generation.statistics.stop_reason == "context"
    assert max(n_past + len(ids) for ids, n_past, _ in runs(engine)) < 16


def test_a_prompt_longer_than_the_context_does_not_fit() -> None:
    engine = scripted(letters("a"), n_ctx=16)
    with pytest.raises(DoesNotFitError, match=r"^prompt: 17 tokens .*16.*n_ctx"):
        engine.generate("a" * 16)
    generation = engine.generate("a" * 15)
    assert list(generation) == []
    assert generation.statistics.stop_reason == "context"


def test_a_prompt_that_is_too_long_anyway_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest piece has 6 bytes: 97 bytes are more than 16 tokens."""
    engine = scripted(letters("a"), n_ctx=16)
    monkeypatch.setattr(engine.tokenizer, "encode", lambda text, **flags: [1])
    assert engine.generate(b"a" * 96).prompt_ids == [1]
    with pytest.raises(DoesNotFitError, match=r"^prompt: 97 bytes, so at least 17 tokens .*16.*n_ctx"):
        engine.generate(b"a" * 97)
    with pytest.raises(DoesNotFitError, match="at least 17 tokens"):
        engine.generate("a" * 97)


@pytest.mark.parametrize(("n", "rest"), [(0, ""), (1, "\ufffd"), (2, "\ufffd"), (3, "\ufffd"), (4, "👍")])
def test_a_character_that_is_not_finished_is_one_replacement(n: int, rest: str) -> None:
    """Whatever ends the text: its length, or its end."""
    crowd = [FIRST_BYTE + byte for byte in "👍".encode()][:n]
    assert "".join(scripted([*letters("a"), *crowd]).generate("a", 1 + n, **GREEDY)) == "a" + rest
    assert "".join(scripted([*letters("a"), *crowd, EOS]).generate("a", 9, **GREEDY)) == "a" + rest


def test_a_character_that_is_not_finished_can_be_a_stop_string() -> None:
    generation = scripted([*letters("a"), FIRST_BYTE + 0xE4]).generate("a", 2, stop="\ufffd", **GREEDY)
    assert "".join(generation) == "a"


@pytest.mark.parametrize(
    ("stop", "text", "ids"),
    [
        ("<s>", "ab", [*letters("ab"), BOS]),
        ("b<s>", "a", [*letters("ab"), BOS]),
        ("<s>c", "ab", [*letters("ab"), BOS, *letters("c")]),
        ("bc", "a", [*letters("ab"), BOS, *letters("c")]),  # as it is shown
        (("bc", "s>"), "ab", [*letters("ab"), BOS]),
        ("<s><s>", "abcd", [*letters("ab"), BOS, *letters("cd")]),
        (("x", "<unk>"), "abcd", [*letters("ab"), BOS, *letters("cd")]),
    ],
)
def test_stop_strings_are_looked_for_in_control_pieces(stop: Any, text: str, ids: list[int]) -> None:
    """Which are not shown, wherever they stand."""
    script = [*letters("ab"), BOS, *letters("cd")]
    generation = scripted(script).generate("a", 5, stop=stop, **GREEDY)
    assert "".join(generation) == text
    assert generation.ids == ids
    assert generation.statistics.stop_reason == ("length" if text == "abcd" else "stop")


def test_control_pieces_are_shown_if_wanted() -> None:
    """That which ends the text too; it is none of its ids."""
    script = [*letters("a"), BOS, *letters("b"), EOS]
    for special, text in ((True, "a<s>b</s>"), (False, "ab")):
        generation = scripted(script).generate("a", 9, special=special, **GREEDY)
        assert "".join(generation) == text
        assert generation.ids == script[:-1]
        assert generation.statistics.stop_reason == "eos"
    assert "".join(scripted(script).generate("a", 9, special=True, stop="s>b", **GREEDY)) == "a<"


def test_a_prompt_that_brings_bos_gets_no_other() -> None:
    for prompt in ("<s>ab", b"<s>ab", "<s>"):
        generation = scripted(letters("a")).generate(prompt, 0)
        assert generation.prompt_ids == [BOS, *letters("ab")][: len(generation.prompt_ids)]
        assert generation.warnings == ("the prompt begins with BOS, so none is put in front of it",)
    for plain in ("ab", "a<s>b", ""):
        generation = scripted(letters("a")).generate(plain, 0)
        assert generation.prompt_ids[0] == BOS
        assert generation.warnings == ()
    assert scripted(letters("a")).generate([BOS, BOS], 0).prompt_ids == [BOS, BOS]


def test_control_pieces_in_a_prompt_can_be_text() -> None:
    generation = scripted(letters("a")).generate("<s>a</s>", 0, parse_special=False)
    as_bytes = [[FIRST_BYTE + byte for byte in text] for text in (b"<s>", b"</s>")]
    assert generation.prompt_ids == [BOS, *as_bytes[0], *letters("a"), *as_bytes[1]]
    assert generation.warnings == ()


def test_prompts_of_special_pieces_ids_and_bytes() -> None:
    engine = scripted(letters("a"))
    assert engine.generate("a</s>b").prompt_ids == [BOS, *letters("a"), EOS, *letters("b")]
    assert engine.generate([5, 6]).prompt_ids == [5, 6]
    assert engine.generate(b"a\xff").prompt_ids == [BOS, *letters("a"), FIRST_BYTE + 0xFF]


def test_bad_prompts_are_named() -> None:
    engine = scripted(letters("a"))
    with pytest.raises(SettingError, match="prompt: 0 tokens"):
        engine.generate([])
    with pytest.raises(SettingError, match=f"token id: {N_VOCAB}"):
        engine.generate([N_VOCAB])
    with pytest.raises(SettingError, match="token id: -1"):
        engine.logits([1, -1])
    with pytest.raises(SettingError, match=f"token id: {1 << 32}"):
        engine.logits([1 << 32])
    with pytest.raises(SettingError, match="whole numbers"):
        engine.logits(np.array([1.5]))
    with pytest.raises(DoesNotFitError, match="65 tokens"):
        engine.logits([1] * 65)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"max_tokens": -2}, "max_tokens: -2"),
        ({"temp": -1.0}, "temp: -1"),
        ({"top_p": 0.0}, "top_p: 0"),
        ({"seed": -5}, "seed: -5"),
        ({"stop": [""]}, "stop string: ''"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(changed: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}"):
        scripted(letters("a")).generate("a", **changed)


def test_stop_strings_end_the_text_and_are_not_shown() -> None:
    generation = scripted(letters("abcabdabe")).generate("a", 9, stop="abd", **GREEDY)
    assert "".join(generation) == "abc"
    assert generation.statistics.stop_reason == "stop"
    assert generation.ids == letters("abcabd")


def test_text_that_only_began_a_stop_string_is_shown_at_the_end() -> None:
    generation = scripted(letters("abcab")).generate("a", 5, stop=["abd", "xyz"], **GREEDY)
    assert "".join(generation) == "abcab"


def test_only_whole_characters_are_shown() -> None:
    script = [FIRST_BYTE + byte for byte in "é👍".encode()] + letters("a")
    assert list(scripted(script).generate("a", 7, **GREEDY)) == ["é", "👍", "a"]
    assert list(scripted(script).generate("a", 4, **GREEDY)) == ["é", "\ufffd"]


def test_repetition_looks_back_into_the_prompt() -> None:
    """The script's token is as likely as it gets, but a penalty on positive logits pulls it below."""
    engine = scripted(letters("a"))
    generation = engine.generate("a", 1, temp=0.0, repeat_penalty=4.0)
    assert list(generation) == []
    assert generation.statistics.stop_reason == "eos"


def test_by_default_nothing_is_penalised() -> None:
    generation = scripted(letters("a")).generate("aaaa", 40, temp=0.0)
    assert "".join(generation) == "a" * 40


def test_log_probabilities_are_of_the_logits_before_penalties_and_bans() -> None:
    """The script's token has 1, EOS 0.5, all others -1; rows without a piece do not count."""
    engine = scripted(letters("ab"))
    options: dict[str, Any] = {"repeat_penalty": 4.0, "ignore_eos": True, "logprobs": 2}
    generation = engine.generate("c", 2, temp=0.0, **options)
    list(generation)
    whole = np.log(np.exp(1.0) + np.exp(0.5) + (len(PIECES) - 2) * np.exp(-1.0))
    assert [one.id for one in generation.logprobs] == generation.ids == letters("ab")
    for one in generation.logprobs:
        assert [token for token, _ in one.top] == [one.id, EOS]
        np.testing.assert_allclose(
            [one.logprob, one.top[0][1], one.top[1][1]], [1 - whole, 1 - whole, 0.5 - whole]
        )


def test_as_many_log_probabilities_as_there_are_pieces() -> None:
    generation = scripted(letters("a")).generate("c", 1, **GREEDY, logprobs=1 << 20)
    list(generation)
    (one,) = generation.logprobs
    assert len(one.top) == len(PIECES)
    assert sum(np.exp(value) for _, value in one.top) == pytest.approx(1.0)
    assert scripted(letters("a")).generate("c", 1, **GREEDY).logprobs == []


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_model_that_computes_no_numbers_is_named(value: float, name: str) -> None:
    engine = scripted([0])
    executor: Any = engine.executor
    executor.run = lambda ids, n_past, logits=None, slot=0, sends=True: logits.fill(value)
    with pytest.raises(FileError, match=rf"scripted\.gguf.*computes {name}"):
        list(engine.generate("a", ignore_eos=True))


def test_a_text_goes_on_after_another_call_by_running_its_tokens_again() -> None:
    engine = scripted(letters("abcdefghij"))
    first = engine.generate("abcabcabcabc", 9, **GREEDY)
    text = next(first) + next(first)
    engine.logits([1])
    n_runs, prompt = len(runs(engine)), first.prompt_ids
    next(first)
    assert text == "ab"
    n = len(prompt)
    passed = [(prompt[:8], 0, 0), (prompt[8:], 8, 0), (letters("a"), n, 0), (letters("b"), n + 1, 1)]
    assert runs(engine)[n_runs:] == passed


def test_a_closed_engine_says_so() -> None:
    engine = scripted(letters("a"))
    with engine:
        pass
    with pytest.raises(SettingError, match="engine: closed"):
        engine.logits([1])


def test_logits_come_in_slices() -> None:
    engine = scripted(letters("abcd"))
    logits = engine.logits([1] * 19)
    assert logits.shape == (19, N_VOCAB)
    assert logits.dtype == np.float32
    assert [(len(ids), n_past, n_out) for ids, n_past, n_out in runs(engine)] == [
        (8, 0, 8),
        (8, 8, 8),
        (3, 16, 3),
    ]
    assert engine.logits([]).shape == (0, N_VOCAB)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
@settings(deadline=None)
def test_stop_strings_in_any_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(stops))]
    met = [len(stop) for stop in stops if ends and text[: ends[0]].endswith(stop)]
    expected = text[: ends[0] - max(met)] if ends else text
    filtered, shown, rest = StopStrings(tuple(stops)), "", text
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        shown += filtered.feed(rest[:n])
        assert expected.startswith(shown)
        rest = rest[n:]
    assert shown + filtered.end() == expected
    assert filtered.found == bool(ends)


def test_text_is_held_back_no_longer_than_needed() -> None:
    filtered = StopStrings(("abc",))
    assert [filtered.feed(c) for c in "xabab"] == ["x", "", "", "ab", ""]
    assert filtered.end() == "ab"


def test_statistics_in_a_line() -> None:
    statistics = Statistics(2.34, 1000, 1000, 999, 30.0, 100.0, "length")
    line = statistics.line()
    assert line == "1000 prompt tokens 33.3/s, 1000 new 9.99/s, load 2.34 s, length reached"
    assert len(f"hotcold: {line}") <= 80
    assert statistics.prompt_tokens_per_second == 1000 / 30
    assert statistics.decode_tokens_per_second == 999 / 100
    assert Statistics(0.5, 5).line() == "5 prompt tokens, 0 new, load 0.50 s, interrupted"
    assert Statistics(0.0, 5).decode_tokens_per_second == 0
    assert Statistics(0.0, 5).numbers()["stop_reason"] == "interrupted"
