"""Answers that follow a schema or a grammar, whatever the model would rather say."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from serving import Served

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NAMED: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]


def check(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"name", "age"} and len(found["name"]) <= 12
    assert isinstance(found["age"], int) and found["age"] <= 99


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_follows_a_schema(server: Served, seed: int, stream: bool) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model="any", messages=MESSAGES, response_format=NAMED, seed=seed, stream=stream, temperature=1.5
        )
        if stream:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            text = answer.choices[0].message.content
            assert answer.choices[0].finish_reason == "stop"
    check(text)


def test_any_object_is_an_object(server: Served) -> None:
    body = {"prompt": "Emma", "response_format": {"type": "json_object"}, "max_tokens": 40, "temperature": 0}
    choice = server.ask("/v1/completions", body).json["choices"][0]
    assert choice["text"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["text"]), dict)


@pytest.mark.parametrize("grammar", ['root ::= "yes" | "no"', 'start: "yes" | "no"'])
def test_a_grammar_is_followed_and_its_text_ends(server: Served, grammar: str) -> None:
    for more in ({}, {"ignore_eos": True}, {"temperature": 3, "top_k": 0}):
        body = {"prompt": "Are you well? ", "grammar": grammar, "max_tokens": 40} | more
        choice = server.ask("/v1/completions", body).json["choices"][0]
        assert choice["text"] in ("yes", "no") and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["regex", "guided_regex"])
def test_a_regular_expression_matches_the_whole_answer(server: Served, name: str) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        for seed in range(3):
            pattern: dict[str, str] = {name: r"\d{2}/[a-c]+(é|\n)"}
            answer = client.completions.create(
                model="any", prompt="Emma", seed=seed, temperature=2, extra_body=pattern, max_tokens=100
            )
            assert re.fullmatch(pattern[name], answer.choices[0].text)


@pytest.mark.parametrize("stream", [False, True])
def test_a_regular_expression_that_takes_too_much_is_named(server: Served, stream: bool) -> None:
    """It is found while the answer is chosen, not before."""
    body = {"prompt": "Emma", "regex": "(a{1000}){1000}", "stream": stream}
    said = server.ask("/v1/completions", body).body.decode()
    assert '"param":"regex"' in said.replace(": ", ":") and "too many expressions" in said, said


def test_requests_with_and_without_one_do_not_meet(server: Served) -> None:
    plain = {"prompt": "Emma", "max_tokens": 20, "temperature": 0}
    wanted = server.ask("/v1/completions", plain).json["choices"][0]["text"]
    bodies = [plain, plain | {"json_schema": SCHEMA, "max_tokens": 60}] * 3
    with ThreadPoolExecutor(6) as pool:
        texts = [
            told.json["choices"][0]["text"]
            for told in pool.map(lambda body: server.ask("/v1/completions", body), bodies)
        ]
    assert texts[::2] == [wanted] * 3
    for text in texts[1::2]:
        check(text)
