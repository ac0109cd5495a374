"""Drafts behind HTTP: the answers of a server without them, alone and among others, and what is told of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from draft_costs import FixedCosts
from serving import Served, served

from hotcold import Engine, load
from hotcold.engine.generation.generation import Generation

TEXT = "/v1/completions"
PROMPTS = (
    "la la la la la la",
    "It is a truth universally acknowledged, that a single man",
    "Emma, Emma, Emma",
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=160, threads=1, n_slots=2) as engine:
        engine.run_costs = FixedCosts()  # else a busy machine has none
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Served]:
    with served(engine, draft="ngram") as server:
        yield server


def asked(i: int) -> dict[str, Any]:
    return {"prompt": PROMPTS[i % 3], "max_tokens": 40, "temperature": (0, 0.9)[i % 2], "seed": i}


def text_of(server: Served, i: int) -> str:
    told = server.ask(TEXT, asked(i))
    assert told.status == 200, told.message
    text: str = told.json["choices"][0]["text"]
    return text


def test_answers_are_what_they_are_without_drafts(engine: Engine) -> None:
    with served(engine) as server:
        wanted = [text_of(server, i) for i in range(6)]
    with served(engine, draft="ngram") as server, ThreadPoolExecutor(6) as pool:
        assert [text_of(server, i) for i in range(6)] == wanted
        assert list(pool.map(lambda i: text_of(server, i), range(6))) == wanted
    with load(n_ctx=160, threads=1, n_slots=2) as other:
        generations: list[Generation] = [
            other.generate(body["prompt"], 40, temp=body["temperature"], seed=i, parse_special=False)
            for i, body in enumerate(map(asked, range(6)))
        ]
        assert ["".join(each) for each in generations] == wanted


def test_a_client_hears_what_was_drafted(server: Served) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        answer = client.completions.create(model="m", prompt=PROMPTS[0] * 4, max_tokens=60, temperature=0)
        chunks = list(
            client.completions.create(
                model="m",
                prompt=PROMPTS[0] * 4,
                max_tokens=60,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == answer.choices[0].text
    for usage in (answer.usage, chunks[-1].usage):
        assert usage is not None and usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.accepted_prediction_tokens
    metrics = server.ask("/metrics").body.decode()
    assert float(metrics.split("\nhotcold_accepted_draft_tokens_total ")[1].split()[0]) > 0


def test_an_answer_may_end_inside_a_draft(server: Served) -> None:
    """At a stop string, and where the next request begins alike the cache holds what stands alone."""
    body: dict[str, Any] = {"prompt": PROMPTS[0] * 4, "max_tokens": 60, "temperature": 0}
    whole: str = server.ask(TEXT, body).json["choices"][0]["text"]
    body["stop"] = [whole[40:46]]
    told = server.ask(TEXT, body).json["choices"][0]
    assert told["finish_reason"] == "stop" and told["text"] == whole.partition(whole[40:46])[0]
    again = server.ask(TEXT, body | {"max_tokens": 50, "stop": []}).json
    with load(n_ctx=160, threads=1) as other:
        wanted = other.generate(PROMPTS[0] * 4, 50, temp=0.0, parse_special=False)
        assert again["choices"][0]["text"] == "".join(wanted)
