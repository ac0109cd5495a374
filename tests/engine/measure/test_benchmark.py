"""The benchmark: what it runs and what it reports."""

import json

import pytest
from commands import run

from hotcold import load
from hotcold.engine.measure import benchmark
from hotcold.engine.measure.traffic import token_bytes
from hotcold.errors import DoesNotFitError, SettingError


def test_it_reports_both_tests() -> None:
    with load(n_ctx=32, sparsity="off") as engine:
        prompt, decode = benchmark.run(engine, 32, 8, 2)
        assert decode.bytes_a_token == token_bytes(engine.model)
    assert (prompt.test, decode.test) == ("pp32", "tg8")
    assert prompt.tokens_per_second > 0
    assert decode.tokens_per_second > 0
    assert decode.bandwidth_share > 0


def test_a_sparse_token_reads_less() -> None:
    with load(n_ctx=8, sparsity="predictor") as engine:
        (decode,) = benchmark.run(engine, 0, 8, 1)
        assert 0 < decode.bytes_a_token < token_bytes(engine.model)


def test_more_tokens_than_the_context_are_refused() -> None:
    with load(n_ctx=8) as engine, pytest.raises(DoesNotFitError, match="tokens of a test: 9 "):
        benchmark.run(engine, 9, 1, 1)


def test_nothing_to_measure_is_refused() -> None:
    with load(n_ctx=8) as engine, pytest.raises(SettingError, match="tests: -p 0 and -n 0 "):
        benchmark.run(engine, 0, 0, 1)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(as_json: bool) -> None:
    done = run("bench", "-p", "16", "-n", "4", "-r", "1", *["--json"] * as_json)
    assert done.returncode == 0, done.stderr
    if as_json:
        tests = json.loads(done.stdout)["tests"]
        assert [test["test"] for test in tests] == ["pp16", "tg4"]
    else:
        assert "tg4" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
