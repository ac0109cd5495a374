"""The next token follows the settings, and the same seed draws the same tokens."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotcold.engine.generation.sampling import Sampler, kept_by_top_p, most_likely
from hotcold.engine.generation.settings import SamplingSettings
from hotcold.errors import SettingError
from hotcold.kernels import ref

PLAIN = SamplingSettings(temp=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=1)


def logits_of(*probabilities: float) -> Any:
    return np.log(np.array(probabilities, np.float64)).astype(np.float32)


def drawn(settings: SamplingSettings, logits: Any, n: int = 400, recent: tuple[int, ...] = ()) -> list[int]:
    sampler = Sampler(settings)
    return [sampler.sample(logits, recent) for _ in range(n)]


def plain(**changed: Any) -> SamplingSettings:
    return SamplingSettings(**({**vars(PLAIN)} | changed))


def test_temperature_zero_takes_the_first_largest() -> None:
    assert drawn(plain(temp=0.0), np.array([1, 3, 2, 3], np.float32), 20) == [1] * 20


def test_frequencies_are_the_probabilities() -> None:
    counts = np.bincount(drawn(PLAIN, logits_of(0.5, 0.3, 0.15, 0.05), 8000), minlength=4) / 8000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)  # 5 standard deviations


def test_temperature_sharpens() -> None:
    """At temperature 1/2 probabilities are squared: 0.8, 0.2 from 2 : 1."""
    counts = np.bincount(drawn(plain(temp=0.5), logits_of(2 / 3, 1 / 3), 8000), minlength=2) / 8000
    np.testing.assert_allclose(counts, [0.8, 0.2], atol=0.03)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.3}, {1}),
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 0.7}, {1}),
        ({"min_p": 0.3}, {0, 1, 3}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.6}, {1, 3}),
    ],
)
def test_filters_keep_the_likely_tokens(changed: dict[str, Any], kept: set[int]) -> None:
    assert set(drawn(plain(**changed), logits_of(0.2, 0.45, 0.05, 0.3))) == kept


def test_filters_never_leave_nothing() -> None:
    flat = np.zeros(5, np.float32)
    assert set(drawn(plain(top_p=1e-9, min_p=1.0), flat)) == {0}
    assert kept_by_top_p(np.array([0.5, 0.4999999]), 0.99999999) == 2


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    greedy = plain(temp=0.0, repeat_penalty=2.0)
    positive, negative = np.array([3.0, 2.0], np.float32), np.array([-1.0, -1.5], np.float32)
    assert Sampler(greedy).sample(positive, [0, 0]) == 1
    assert Sampler(greedy).sample(positive, [0, 1]) == 0  # 1.5 and 1: the penalty counts once a token
    assert Sampler(greedy).sample(negative, [0]) == 1
    assert positive.tolist() == [3.0, 2.0]


def test_repeat_penalty_forgets_after_64_tokens() -> None:
    greedy, logits = plain(temp=0.0, repeat_penalty=2.0), np.array([3.0, 2.0, 0.0], np.float32)
    assert Sampler(greedy).sample(logits, [0] + [2] * 63) == 1
    assert Sampler(greedy).sample(logits, [0] + [2] * 64) == 0


def test_how_far_penalties_look_back_can_be_said() -> None:
    logits = np.array([3.0, 2.0, 0.0], np.float32)

    def first(n: int, ids: list[int], prompt_ids: list[int]) -> int:
        return Sampler(plain(temp=0.0, repeat_penalty=2.0, repeat_last_n=n)).sample(logits, ids, prompt_ids)

    assert first(2, [0, 2], []) == 1
    assert first(2, [2, 2], [0]) == 0  # the prompt counts where the text is shorter
    assert first(3, [2, 2], [0]) == 1
    assert first(-1, [2] * 100, [0] + [2] * 100) == 1
    assert first(0, [0, 0], [0]) == 0


def test_presence_counts_once_and_frequency_every_time() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)

    def first(recent: list[int], **penalties: float) -> int:
        return Sampler(plain(temp=0.0, **penalties)).sample(logits, recent)

    assert first([0], presence_penalty=0.9) == first([0, 0, 0], presence_penalty=0.9) == 0
    assert first([0], presence_penalty=1.1) == 1
    assert first([0, 0], frequency_penalty=0.4) == 0
    assert first([0, 0, 0], frequency_penalty=0.4) == 1
    assert first([2], presence_penalty=-2.5) == 2  # a negative one invites
    assert first([0], repeat_penalty=2.0, presence_penalty=-0.6) == 0  # 3 / 2 + 0.6: divided, then taken


def test_by_default_the_likeliest_stays_the_likeliest() -> None:
    logits = np.array([2.0, 1.99], np.float32)
    assert Sampler(SamplingSettings(temp=0.0)).sample(logits, [0] * 100, [0] * 100) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "likeliest"), [("presence_penalty", 0), ("frequency_penalty", 0)])
@pytest.mark.parametrize("penalty", [1.7e308, -1.7e308, 10**30, -(10**30)])
def test_penalties_beyond_float64_choose_quietly(name: str, likeliest: int, penalty: float) -> None:
    logits = np.array([50.0, 4.0, -np.inf], np.float32)
    expected = likeliest if penalty > 0 else 1
    assert set(drawn(plain(temp=0.8, **{name: penalty}), logits, 20, (1, 1, 2))) == {expected}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("penalty", "likeliest"), [(5e-324, 1), (1e-308, 1), (1e308, 0)])
@pytest.mark.parametrize("temp", [0.0, 5e-324, 0.8])
def test_numbers_beyond_float64_choose_quietly(temp: float, penalty: float, likeliest: int) -> None:
    """4 / 1e-308 and -3 * 1e308 have no float64; a banned token stays banned."""
    logits = np.array([50.0, 4.0, -3.0, -np.inf], np.float32)
    assert set(drawn(plain(temp=temp, repeat_penalty=penalty), logits, 20, (1, 2, 3))) == {likeliest}


def test_same_seed_same_tokens() -> None:
    logits = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    defaults = SamplingSettings(seed=7)
    assert drawn(defaults, logits, 50) == drawn(defaults, logits, 50)
    assert drawn(defaults, logits, 50) != drawn(SamplingSettings(seed=8), logits, 50)


def test_a_missing_seed_is_drawn_and_can_be_used_again() -> None:
    logits = np.zeros(1000, np.float32)
    first = Sampler(plain(seed=None))
    again = Sampler(plain(seed=first.settings.seed))
    assert [first.sample(logits) for _ in range(9)] == [again.sample(logits) for _ in range(9)]
    assert first.settings.seed != Sampler(plain(seed=None)).settings.seed


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60), st.integers(0, 70))
def test_most_likely_is_a_stable_sort(values: list[float], top_k: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[: top_k or None]
    assert most_likely(np.array(values), top_k).tolist() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temp", -0.1),
        ("temp", float("nan")),
        ("temp", float("inf")),
        ("temp", "hot"),
        ("temp", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_k", None),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", float("nan")),
        ("repeat_last_n", -2),
        ("repeat_last_n", 1.5),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", "much"),
        ("frequency_penalty", -(10**400)),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_values_out_of_bounds_are_named(name: str, value: Any) -> None:
    option = "--" + name.replace("_", "-")
    shown = f'"{value}"' if isinstance(value, str) else value
    with pytest.raises(SettingError, match=rf"^{name}: {shown} \(.+\); such as {option} \d"):
        SamplingSettings(**{name: value}).checked()


@pytest.mark.parametrize("name", ["temp", "top_k", "presence_penalty"])
def test_numbers_that_python_does_not_write_are_told_of(name: str) -> None:
    with pytest.raises(SettingError, match=rf"^{name}: a number of thousands of digits \("):
        SamplingSettings(**{name: 10**5000}).checked()


def test_the_bounds_themselves_are_allowed() -> None:
    edge = SamplingSettings(temp=0, top_k=0, top_p=1, min_p=1, repeat_penalty=1, seed=(1 << 64) - 1)
    assert edge.checked() == edge


@pytest.mark.parametrize("changed", [{"temp": 0.0}, {"top_k": 40}, {"top_k": 5, "min_p": 0.3}, {"top_k": 64}])
@pytest.mark.parametrize("step", [0.01, 1.0])
def test_candidates_give_the_same_tokens(changed: dict[str, Any], step: float) -> None:
    """Of logits that are all different, and of such with many that are equal."""
    rng, settings = np.random.default_rng(5), plain(**{"temp": 0.9, "top_p": 0.95} | changed)
    whole, some = Sampler(settings), Sampler(settings)
    for _ in range(50):
        logits = (np.round(rng.standard_normal(700) / step) * step).astype(np.float32)
        ids, values = np.split(ref.candidates(logits)[1:], 2)
        assert some.sample_candidates(ids, values.view(np.float32)) == whole.sample(logits)
