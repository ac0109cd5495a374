"""OpenAI's own client: every endpoint, streamed and whole, says what the engine says."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from serving import CHAT_TEMPLATE, Served

from hotcold import Engine
from hotcold.engine.chat.prompt import ChatPrompt
from hotcold.engine.chat.template import ChatTemplate
from hotcold.engine.generation.generation import Generation

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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 2),
        ("top_p", 0.2),
        ("min_p", 0.4),
        ("repeat_penalty", 1.9),
        ("repeat_last_n", 0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", 3.0),
        ("seed", 4),
        ("temperature", 0.1),
    ],
)
def test_every_sampling_option_reaches_the_engine(
    client: openai.OpenAI, engine: Engine, name: str, value: float
) -> None:
    """Each alone changes a text that would be hot without it, as it does in the engine."""
    before: dict[str, Any] = {"seed": 3, "temperature": 1.5, "repeat_penalty": 1.5, "top_k": 0, "top_p": 1.0}
    before |= {"min_p": 0.0}
    changed = before | {name: value}
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=24, extra_body=changed)
    texts = []
    for settings in (before, changed):
        ours = {("temp" if key == "temperature" else key): each for key, each in settings.items()}
        texts.append(gone_on(engine, PROMPT, 24, **ours)[0])
    assert answer.choices[0].text == texts[1] != texts[0]


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


def test_errors_have_openais_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=PROMPT, temperature=-1)
    body: Any = caught.value.body
    assert body["param"] == "temperature" and body["type"] == "invalid_request_error"
    assert body["message"] == 'temperature: -1 (a finite number of at least 0); such as "temperature": 0.8'
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="Emma " * 200)
    assert caught.value.code == "context_length_exceeded" and "160" in str(caught.value)
