"""OpenAI's own client: every endpoint, streamed and whole, says what the engine says."""

import asyncio
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import openai
import pydantic
import pytest
from serving import CHAT_TEMPLATE, Served, served, until

from hotcold import Engine
from hotcold.engine.chat.prompt import ChatPrompt
from hotcold.engine.chat.template import ChatTemplate
from hotcold.engine.generation.constraint import of_grammar, of_regex, of_schema
from hotcold.engine.generation.generation import Generation
from hotcold.engine.serve import worker
from hotcold.engine.serve.asked import GRAMMARS
from hotcold.engine.serve.fields import RequestFields
from hotcold.errors import DeviceError

PROMPT = "Mr. Darcy looked"
MESSAGES: list[Any] = [
    {"role": "system", "content": "A walk."},
    {"role": "user", "content": [{"type": "text", "text": "Are you "}, {"type": "text", "text": "well?"}]},
]
TURNS = [{"role": "system", "content": "A walk."}, {"role": "user", "content": "Are you well?"}]
NAME = "tiny-relu-llama.q8_0"


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        yield client


def gone_on(
    engine: Engine, prompt: str | list[int], max_tokens: int, **settings: Any
) -> tuple[str, Generation]:
    """What the engine itself says; the prompt's text has no control pieces."""
    generation = engine.generate(prompt, max_tokens, parse_special=False, **settings)
    return "".join(generation), generation


def chat_ids(engine: Engine) -> list[int]:
    return ChatPrompt(engine.tokenizer, ChatTemplate("test", CHAT_TEMPLATE, "<s>", "</s>")).ids(TURNS)


def test_a_completion_is_what_the_engine_says(client: openai.OpenAI, engine: Engine) -> None:
    text, generation = gone_on(engine, PROMPT, 12, temp=0.7, seed=5, top_p=0.9)
    answer = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=12, temperature=0.7, seed=5, top_p=0.9
    )
    assert answer.choices[0].text == text
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == NAME and answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(generation.prompt_ids)
    assert answer.usage.completion_tokens == len(generation.ids) == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


# each alone changes a text that would be hot without it; all that a request may say of how an answer goes on
OPTIONS: dict[str, Any] = {
    "top_k": 2,
    "top_p": 0.2,
    "min_p": 0.4,
    "repeat_penalty": 1.9,
    "repeat_last_n": 0,
    "presence_penalty": 3.0,
    "frequency_penalty": 3.0,
    "seed": 4,
    "temperature": 0.1,
    "max_tokens": 5,
    "max_completion_tokens": 6,
    "n_predict": 7,
    "stop": [" ", "."],
    "json_schema": {"type": "integer"},
    "grammar": 'root ::= "Emma" | "Jane"',
    "regex": "[a-z]{3}",
    "guided_regex": "[A-Z]{3}",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}},
}
ELSEWHERE = {  # options whose effect other tests show, by openai's client too
    *("messages", "prompt", "model", "n", "stream", "stream_options", "logprobs", "top_logprobs", "echo"),
    *("tools", "tool_choice", "parallel_tool_calls", "special", "parse_special", "ignore_eos", "draft"),
    *("logit_bias", "suffix", "best_of", "functions", "function_call", "modalities", "audio"),  # refused
}


def engines_own(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same by the engine's names."""
    ours = dict(options)
    for field in ("max_completion_tokens", "n_predict"):
        if field in ours:
            ours["max_tokens"] = ours.pop(field)
    if "temperature" in ours:
        ours["temp"] = ours.pop("temperature")
    given = {name: ours.pop(name) for name in GRAMMARS if name in ours}
    for name, value in given.items():
        schema = value["json_schema"]["schema"] if name == "response_format" else value
        is_schema = name in ("response_format", "json_schema")
        ours["grammar"] = (of_schema if is_schema else of_grammar if name == "grammar" else of_regex)(schema)
    return ours


WAYS = [("chat", True), ("completion", False), ("chat", False), ("completion", True)]
# every option by every way; in a quick run each by one of the first two
CASES = [
    pytest.param(name, *way, marks=() if at == i % 2 else pytest.mark.slow)
    for i, name in enumerate(OPTIONS)
    for at, way in enumerate(WAYS)
]


@pytest.mark.parametrize(("name", "kind", "stream"), CASES)
def test_every_option_reaches_the_engine(
    client: openai.OpenAI, engine: Engine, name: str, kind: str, stream: bool
) -> None:
    """By both endpoints, streamed and whole: what the engine says with it, and not what it says without."""
    before: dict[str, Any] = {"seed": 3, "temperature": 1.5, "repeat_penalty": 1.5, "top_k": 0, "top_p": 1.0}
    before |= {"min_p": 0.0, "max_tokens": 24}
    changed = before | {name: OPTIONS[name]}
    if name in ("max_completion_tokens", "n_predict"):
        del changed["max_tokens"]
    prompt = chat_ids(engine) if kind == "chat" else PROMPT
    texts = []
    for options in (before, changed):
        ours = engines_own(options)
        texts.append(gone_on(engine, prompt, ours.pop("max_tokens"), **ours)[0])
    assert said(client, kind, stream, changed) == texts[1] != texts[0]


def said(client: openai.OpenAI, kind: str, stream: bool, options: dict[str, Any]) -> str:
    """The text of an answer."""
    how: dict[str, Any] = {"model": NAME, "stream": stream, "extra_body": options}
    if kind == "chat":
        answer: Any = client.chat.completions.create(messages=MESSAGES, **how)
        if stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        return answer.choices[0].message.content or ""
    answer = client.completions.create(prompt=PROMPT, **how)
    return "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text


def test_no_option_is_left_out(monkeypatch: pytest.MonkeyPatch, server: Served) -> None:
    """Every field that the endpoints ask a request for is in the table, or among those shown elsewhere."""
    asked, get = set[str](), RequestFields.get

    def noted(self: RequestFields, field: str) -> Any:
        asked.add(self.name(field))
        return get(self, field)

    monkeypatch.setattr(RequestFields, "get", noted)
    for path, body in (("chat/completions", {"messages": TURNS}), ("completions", {"prompt": PROMPT})):
        assert server.ask(f"/v1/{path}", body | {"max_tokens": 1}).status == 200
    top = {name for name in asked if not name.startswith(("messages[", "stream_options."))}
    assert top <= OPTIONS.keys() | ELSEWHERE and OPTIONS.keys() <= top


def test_a_stream_that_is_closed_ends_the_answer(client: openai.OpenAI, server: Served) -> None:
    for _ in range(3):
        with client.chat.completions.create(
            model=NAME, messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            next(stream)
        until(lambda: b"hotcold_running 0.0" in server.ask("/metrics").body)


def test_a_chat_streams_its_usage_and_several_answers(client: openai.OpenAI, engine: Engine) -> None:
    stream = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        max_tokens=5,
        n=2,
        seed=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, chunks = ["", ""], list(stream)
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [gone_on(engine, chat_ids(engine), 5, seed=seed)[0] for seed in (6, 7)]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 10


def test_what_is_parsed_follows_its_model(client: openai.OpenAI) -> None:
    """The client's own way to structured answers, by a pydantic model."""

    class Walk(pydantic.BaseModel):
        is_long: bool

    answer = client.chat.completions.parse(
        model=NAME, messages=MESSAGES, response_format=Walk, max_tokens=60, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Walk)


def test_coroutines_ask_too(server: Served, engine: Engine) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
            whole = await client.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0)
            stream = await client.completions.create(
                model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, stream=True
            )
            return [whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])]

    assert asyncio.run(ask()) == [gone_on(engine, PROMPT, 6, temp=0.0)[0]] * 2


def test_a_stream_brings_the_same_text(client: openai.OpenAI, engine: Engine) -> None:
    text, generation = gone_on(engine, PROMPT, 20, temp=0.0, stop="\n")
    chunks = list(
        client.completions.create(
            model=NAME,
            prompt=PROMPT,
            max_tokens=20,
            temperature=0,
            stop="\n",
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    reason = "stop" if generation.statistics.stop_reason == "stop" else "length"
    assert chunks[-2].choices[0].finish_reason == reason
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(generation.ids)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_goes_on_from_the_template(client: openai.OpenAI, engine: Engine) -> None:
    text, generation = gone_on(engine, chat_ids(engine), 12, temp=0.0)
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None and answer.usage.prompt_tokens == len(generation.prompt_ids)
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_completion_tokens=12, temperature=0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_repeated_prompt_is_reused(client: openai.OpenAI) -> None:
    prompt = "It is a truth universally acknowledged, that"
    first = client.completions.create(model=NAME, prompt=prompt, max_tokens=2, temperature=0)
    again = client.completions.create(model=NAME, prompt=prompt, max_tokens=2, temperature=0)
    assert again.usage and again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert first.choices[0].text == again.choices[0].text


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI, engine: Engine) -> None:
    texts = [gone_on(engine, PROMPT, 10, seed=seed)[0] for seed in (8, 9, 10)]
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=10, n=3, seed=8)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None and answer.usage.completion_tokens == 30
    assert answer.usage.prompt_tokens == len(engine.tokenizer.encode(PROMPT))
    parts = ["", "", ""]
    stream = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=10, n=3, seed=8, stream=True)
    for chunk in stream:
        parts[chunk.choices[0].index] += chunk.choices[0].text
    assert parts == texts


def test_several_prompts_and_ids(client: openai.OpenAI, engine: Engine) -> None:
    ids = engine.tokenizer.encode(PROMPT)
    by_text = client.completions.create(model=NAME, prompt=[PROMPT, "Emma"], max_tokens=5, temperature=0)
    by_ids = client.completions.create(
        model=NAME, prompt=[ids, engine.tokenizer.encode("Emma")], max_tokens=5, temperature=0
    )
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    assert by_text.choices[0].text == gone_on(engine, PROMPT, 5, temp=0.0)[0]
    alone = client.completions.create(model=NAME, prompt=ids, max_tokens=5, temperature=0)
    assert alone.choices[0].text == by_text.choices[0].text


def test_an_answer_may_begin_with_its_prompt(client: openai.OpenAI) -> None:
    plain = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=5, temperature=0)
    echo = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=5, temperature=0, echo=True)
    assert echo.choices[0].text == PROMPT + plain.choices[0].text
    streamed = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=5, temperature=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == echo.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_of_a_chat(client: openai.OpenAI, engine: Engine, stream: bool) -> None:
    _, generation = gone_on(engine, chat_ids(engine), 6, temp=0.0, logprobs=3)
    answer: Any = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        stream=stream,
    )
    of_choices = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    tokens = [token for told in of_choices if told is not None for token in told.content]
    assert [token.logprob for token in tokens] == [each.logprob for each in generation.logprobs]
    for token, each in zip(tokens, generation.logprobs, strict=True):
        assert [top.logprob for top in token.top_logprobs] == [logprob for _, logprob in each.top]
        assert bytes(token.bytes) == engine.tokenizer.piece(each.id, special=True)


def test_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=0)
    told = answer.choices[0].logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.text_offset
    assert "".join(told.tokens) == answer.choices[0].text
    assert told.top_logprobs == [{}] * 6
    assert all(logprob is not None and logprob <= 0 for logprob in told.token_logprobs)
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(6)]
    chunks = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2, stream=True
    )
    some = [chunk.choices[0].logprobs for chunk in chunks]
    assert [at for each in some if each for at in each.text_offset or ()] == told.text_offset
    tops = [top for each in some if each for top in each.top_logprobs or ()]
    assert all(len(top) == 2 for top in tops) and len(tops) == 6


def test_embeddings(client: openai.OpenAI, engine: Engine) -> None:
    ids = engine.tokenizer.encode(PROMPT)
    both = client.embeddings.create(model=NAME, input=[PROMPT, "Emma"])  # base64, as the client asks for it
    one = client.embeddings.create(model=NAME, input=PROMPT, encoding_format="float")
    np.testing.assert_allclose(both.data[0].embedding, one.data[0].embedding, rtol=1e-6)
    assert len(one.data[0].embedding) == engine.model.n_embd
    assert math.isclose(float(np.linalg.norm(one.data[0].embedding)), 1, rel_tol=1e-6)
    assert both.usage.prompt_tokens == len(ids) + len(engine.tokenizer.encode("Emma"))


def test_models(client: openai.OpenAI, engine: Engine) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME and client.models.retrieve(NAME).id == NAME
    assert (model.model_extra or {})["meta"]["n_ctx"] == engine.n_ctx
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.models.retrieve("gpt-5")


def test_embeddings_of_ids(client: openai.OpenAI, engine: Engine) -> None:
    ids = engine.tokenizer.encode(PROMPT)
    by_text = client.embeddings.create(model=NAME, input=PROMPT, encoding_format="float").data[0].embedding
    for given in (ids, [ids]):
        told: Any = client.embeddings.create(model=NAME, input=given, encoding_format="float")
        assert told.data[0].embedding == by_text


def test_errors_are_those_of_the_client(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each status as the exception that the client has for it; within a stream too."""
    with served(engine, api_key="s3cret", max_waiting=0) as server:
        with (
            openai.OpenAI(base_url=server.base_url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="API key"),
        ):
            client.models.list()
        with openai.OpenAI(base_url=server.base_url, api_key="s3cret", max_retries=0) as client:
            with pytest.raises(openai.PermissionDeniedError, match="Origin"):
                client.models.list(extra_headers={"Origin": "http://evil.example"})
            with pytest.raises(openai.NotFoundError, match="unknown"):
                client.responses.create(model=NAME, input="Hm?")
            long: Any = {
                "model": NAME,
                "prompt": PROMPT,
                "max_tokens": -1,
                "extra_body": {"ignore_eos": True},
            }
            with client.completions.create(stream=True, **long) as stream:
                next(iter(stream))
                with pytest.raises(openai.RateLimitError, match="at most 1 at a time"):
                    client.completions.create(**long)
            until(
                lambda: b"hotcold_running 0.0" in server.ask("/metrics", Authorization="Bearer s3cret").body
            )

            def fail(*_: Any) -> None:
                raise DeviceError("device", "cuda", "it does not answer")

            monkeypatch.setattr(worker, "step", fail)
            with pytest.raises(openai.InternalServerError, match="does not answer"):
                client.completions.create(**long)
            with pytest.raises(openai.APIError, match="does not answer"):
                list(client.completions.create(stream=True, **long))


def test_errors_have_openais_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=PROMPT, temperature=-1)
    body: Any = caught.value.body
    assert body["param"] == "temperature" and body["type"] == "invalid_request_error"
    assert body["message"] == 'temperature: -1 (a finite number of at least 0); such as "temperature": 0.8'
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="Emma " * 200)
    assert caught.value.code == "context_length_exceeded" and "160" in str(caught.value)
