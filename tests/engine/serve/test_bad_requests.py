"""What is wrong with a request is said in OpenAI's form and our four parts; nothing of it is a 500."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from serving import Served, served

from hotcold import Engine
from hotcold.engine.serve.app import ServeOptions, app
from hotcold.engine.serve.guard import MAX_BODY
from hotcold.errors import SettingError

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USER = {"role": "user", "content": "Hm?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER], "max_tokens": 1} | fields


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Emma", "max_tokens": 1} | fields


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (TEXT, b"", "body: 0 bytes (no JSON"),
        (TEXT, b"{", "body: 1 bytes (no JSON"),
        (TEXT, b"\xff\xfe{}", "no JSON"),
        (TEXT, b"[" * 100_000, "nested too deep"),
        (TEXT, b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "no JSON"),
        (TEXT, [1], "body: [1] (a JSON object)"),
        (TEXT, {}, 'prompt: null (a string, token ids, or a list of either); such as "text"'),
        (TEXT, text(regex="\ud800"), "regex (surrogates not allowed)"),
        (TEXT, text(temperature=10**400), "(a finite number of at least 0)"),
        (TEXT, text(frequency_penalty=-(10**400)), "(a finite number)"),
        (TEXT, text(prompt=[]), "prompt: [] (a string, token ids"),
        (TEXT, text(prompt=7), "prompt: 7 (a string"),
        (TEXT, text(prompt=[1, "a"]), "strings or token ids"),
        (TEXT, text(prompt=[True]), "strings or token ids"),
        (TEXT, text(prompt=[[]]), "at least 1"),
        (TEXT, text(prompt=[1 << 70]), "strings or token ids"),
        (TEXT, text(prompt=[-1]), "token id: -1 (the vocabulary has 0 to"),
        (TEXT, text(prompt=["a"] * 65), "prompt: 65 prompts (at most 64)"),
        (TEXT, text(prompt=[1] * 161), "prompt: 161 tokens (the context holds 160); start the server with"),
        (TEXT, text(max_tokens=-2), "max_tokens: -2"),
        (TEXT, text(max_tokens="5"), 'max_tokens: "5" (a whole number from -1'),
        (TEXT, text(max_tokens=1.5), "max_tokens: 1.5"),
        (TEXT, text(temperature="hot"), 'temperature: "hot" (a finite number'),
        (TEXT, b'{"prompt": "a", "temperature": NaN}', "temperature: nan"),
        (TEXT, text(temperature=True), "temperature: True"),
        (TEXT, text(top_p=0), "top_p: 0 (above 0, up to 1)"),
        (TEXT, text(top_k=-1), "top_k: -1"),
        (TEXT, text(seed=-2), "seed: -2"),
        (TEXT, text(n=0), "n: 0 (a whole number from 1 to 16)"),
        (TEXT, text(n=17), "n: 17"),
        (TEXT, text(n=True), "n: true"),
        (TEXT, text(stop=""), "stop"),
        (TEXT, text(stop=[1]), "stop: [1] (a string or a list of strings)"),
        (TEXT, text(stop=["a"] * 17), "stop: 17 strings (at most 16)"),
        (TEXT, text(stream="yes"), 'stream: "yes" (true or false)'),
        (TEXT, text(stream_options=1), "stream_options: 1 (an object)"),
        (TEXT, text(stream_options={"include_usage": 1}), "stream_options.include_usage: 1"),
        (TEXT, text(logprobs=21), "logprobs: 21"),
        (TEXT, text(logprobs=True), "logprobs: true"),
        (TEXT, text(echo=1), "echo: 1"),
        (TEXT, text(suffix="x"), 'suffix: "x" (not here yet); leave it out'),
        (TEXT, text(best_of=2), "best_of: 2"),
        (TEXT, text(logit_bias={"1": 1}), "logit_bias"),
        (CHAT, {}, "messages: null (a list with at least one message)"),
        (CHAT, chat(messages=[]), "messages: []"),
        (CHAT, chat(messages="Hm?"), 'messages: "Hm?"'),
        (CHAT, chat(messages=[1]), "messages[0]: 1 (an object)"),
        (CHAT, chat(messages=[{"content": "a"}]), "messages[0].role: null (known: system, developer, user"),
        (CHAT, chat(messages=[{"role": "god", "content": "a"}]), 'messages[0].role: "god"'),
        (CHAT, chat(messages=[{"role": ["user"], "content": "a"}]), "messages[0].role"),
        (CHAT, chat(messages=[USER, {"role": "user"}]), "messages[1].content: null (a string, or a list of"),
        (CHAT, chat(messages=[{"role": "user", "content": [IMAGE]}]), "text alone: the model sees and hears"),
        (CHAT, chat(messages=[{"role": "user", "content": [1]}]), "messages[0].content[0]: 1"),
        (CHAT, chat(messages=[{"role": "system", "content": "a"}]), "system alone"),
        (
            CHAT,
            chat(messages=[USER, {"role": "tool", "content": "a"}]),
            "refuses this conversation: no tools",
        ),
        (CHAT, chat(messages=[{"role": "user", "content": "Hm? " * 400}]), "the context holds 160"),
        (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), "the chat template knows none"),
        (CHAT, chat(tool_choice="required"), 'tool_choice: "required"'),
        (CHAT, chat(response_format=7), "response_format: 7 (an object)"),
        (
            CHAT,
            chat(response_format={"type": "xml"}),
            'response_format.type: "xml" (known: text, json_object',
        ),
        (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema: null (an object"),
        (
            TEXT,
            text(json_schema={"type": "nonsense"}),
            'json_schema: {"type": "nonsense"} (Invalid type: nonsense)',
        ),
        (TEXT, text(json_schema={"minimum": 5, "maximum": 3, "type": "integer"}), "Unsatisfiable schema"),
        (TEXT, text(json_schema={"$ref": "file:///etc/passwd"}), "does not fetch"),
        (TEXT, text(json_schema={"$ref": "#"}), 'json_schema: {"$ref": "#"} (nothing satisfies it)'),
        (
            TEXT,
            text(json_schema=json.loads('{"items":' * 400 + "{}" + "}" * 400)),
            "json_schema (recursion limit",
        ),
        (
            TEXT,
            text(regex="((a{1000}){1000}){1000}"),
            "lexer error: too many expressions",
        ),
        (TEXT, text(json_schema=[1]), "json_schema: list (a JSON object)"),
        (TEXT, text(response_format={"type": "text"}, grammar="start: x"), 'grammar: "start: x" ('),
        (TEXT, text(grammar="", regex="("), 'regex: "(" ('),
        (
            TEXT,
            text(
                response_format={"type": "json_schema", "json_schema": {"schema": {"title": "x" * 300_000}}}
            ),
            "response_format: 300013 characters (at most",
        ),
        (
            TEXT,
            text(json_schema={}, grammar="a"),
            'grammar: "a" (not together with json_schema); leave one of both out',
        ),
        (TEXT, text(grammar="start: x"), 'unknown name: "x"'),
        (TEXT, text(grammar="root ::= ("), "Expected ')'"),
        (TEXT, text(grammar="x" * 300_000), "grammar: 300000 characters (at most"),
        (CHAT, chat(top_logprobs=3), "top_logprobs: 3 (needs logprobs: true)"),
        (CHAT, chat(logprobs=1), "logprobs: 1 (true or false)"),
        (EMBED, {}, "input: null (a string, token ids"),
        (EMBED, {"input": [1, "a"]}, "input: a list of something else"),
        (TEXT, text(model=5), "model: 5 (a string)"),
        (CHAT, chat(messages=[USER | {"content": []}]), "messages[0].content: [] (a string, or a list of"),
        (CHAT, chat(messages=[USER | {"images": ["AA=="]}]), 'messages[0].images: ["AA=="] (text alone'),
        (
            CHAT,
            chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": []}}}),
            'response_format: {"type": "json_schema"',
        ),
        ("/tokenize", {}, "content: null (a string)"),
        (EMBED, {"input": "a", "encoding_format": "hex"}, 'encoding_format: "hex" (known: float, base64)'),
        (EMBED, {"input": "a", "dimensions": 3}, "dimensions: 3"),
        ("/tokenize", {"content": 1}, "content: 1 (a string)"),
        ("/tokenize", {"content": "Emma " * 9000}, "the context holds 160"),
        ("/detokenize", {"tokens": "a"}, 'tokens: "a" (a list of token ids)'),
        ("/detokenize", {"tokens": [1 << 40]}, "token id: 1099511627776"),
    ],
)
def test_it_is_said_what_is_wrong(server: Served, path: str, body: Any, said: str) -> None:
    told = server.ask(path, body)
    assert told.status == 400 and said in told.message, told.message
    error = told.json["error"]
    assert error["type"] == "invalid_request_error" and error["code"]
    assert "\n" not in error["message"] and "such as -" not in error["message"]


def test_unknown_fields_are_named_in_a_header(server: Served) -> None:
    told = server.ask(TEXT, text(model="gpt-5", user="me", mirostat=2, **{'a"\n\u20ac': 1}))
    assert told.status == 200
    warning = told.headers["warning"]
    assert (
        warning.startswith('299 hotcold "') and "'mirostat'" in warning and "'gpt-5' is not here" in warning
    )
    assert warning.count('"') == 2 and "user" not in warning
    assert "warning" not in server.ask(TEXT, text()).headers
    turn = USER | {"mood": 1, "name": "Anne", "refusal": None}
    told = server.ask(
        CHAT, chat(messages=[turn], stream_options={"pace": 2, "include_usage": False}, top_k=None)
    )
    assert told.headers["warning"] == (
        "299 hotcold \"unknown field 'stream_options.pace' is left out; unknown field 'messages[0].mood' is left out\""
    )


def test_no_such_place(server: Served) -> None:
    assert server.ask("/v1/nothing").status == 404
    told = server.ask(TEXT)
    assert told.status == 405 and told.json["error"]["type"] == "invalid_request_error"


def test_a_body_has_a_bound(server: Served) -> None:
    told = server.ask(TEXT, b" " * (MAX_BODY + 1))
    assert told.status == 413 and str(MAX_BODY) in told.message


def test_pages_of_other_places_may_not_ask(server: Served, engine: Engine) -> None:
    told = server.ask(TEXT, text(), Origin="http://evil.example")
    assert told.status == 403 and "Origin" in told.message
    assert "access-control-allow-origin" not in told.headers
    assert server.ask(TEXT, text(), Origin=f"http://127.0.0.1:{server.port}").status == 200
    assert server.ask(TEXT, text(), Host="rebound.example").status == 200
    with served(engine, only_local=True) as local:
        told = local.ask(TEXT, text(), Host="rebound.example")
        assert told.status == 403 and "rebound.example" in told.message
        for name in ("localhost", "127.0.0.1:8080", "[::1]:8080"):
            assert local.ask(TEXT, text(), Host=name).status == 200
        for headers in ({"Host": "[::1"}, {"Host": "[name]"}, {"Origin": "http://["}):
            assert local.ask(TEXT, text(), **headers).status == 403


def test_a_key_is_asked_for(engine: Engine) -> None:
    with served(engine, api_key="s3cret") as server:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            told = server.ask(TEXT, text(), **headers)
            assert told.status == 401 and told.json["error"]["code"] == "invalid_api_key"
            assert "s3cret" not in told.message
        assert server.ask(TEXT, text(), Authorization="Bearer s3cret").status == 200
        assert server.ask("/metrics").status == 401
        assert server.ask("/health").status == 200


@pytest.mark.parametrize("key", [" s3cret", "s3cret\n", "cl\u00e9", "two\x00"])
def test_a_key_that_no_header_brings_is_refused(engine: Engine, key: str) -> None:
    with pytest.raises(SettingError, match="printable characters of ASCII") as refused:
        app(engine, ServeOptions(api_key=key))
    assert key.strip() not in str(refused.value)


def test_a_model_without_a_template_says_so(engine: Engine) -> None:
    with served(engine) as server:
        told = server.ask(CHAT, chat())
        assert told.status == 400 and "--chat-template FILE, or use /v1/completions" in told.message


def test_control_pieces_of_users_stay_text(server: Served, engine: Engine) -> None:
    (eos,) = engine.tokenizer.end_ids
    mark = engine.tokenizer.piece(eos, special=True).decode()
    for path, body in ((TEXT, text(prompt=mark)), (EMBED, {"input": mark})):
        assert server.ask(path, body).json["usage"]["prompt_tokens"] > 2
    assert eos not in server.ask("/tokenize", {"content": mark}).json["tokens"]
    assert server.ask("/tokenize", {"content": mark, "parse_special": True}).json["tokens"] == [eos]
    parsed = server.ask(TEXT, text(prompt="Emma" + mark, parse_special=True)).json["usage"]["prompt_tokens"]
    plain = server.ask(TEXT, text(prompt="Emma")).json["usage"]["prompt_tokens"]
    assert parsed == plain + 1
    asked = {"role": "user", "content": f"Hm{mark}?"}
    n_marked = server.ask(CHAT, chat(messages=[asked])).json["usage"]["prompt_tokens"]
    n_plain = server.ask(CHAT, chat()).json["usage"]["prompt_tokens"]
    assert n_marked > n_plain + 1


def test_tokens_and_back(server: Served, engine: Engine) -> None:
    content = "Mr. Darcy’s <s> \u20ac"
    ids = server.ask("/tokenize", {"content": content}).json["tokens"]
    assert ids == engine.tokenizer.encode(content, add_special=False)
    assert server.ask("/detokenize", {"tokens": ids}).json["content"].strip() == content
    with_bos = server.ask("/tokenize", {"content": content, "add_special": True, "with_pieces": True}).json
    assert [each["id"] for each in with_bos["tokens"]] == [engine.tokenizer.bos, *ids]
    assert with_bos["tokens"][0]["piece"] == "<s>"


def test_lone_surrogates_are_answered(server: Served) -> None:
    told = server.ask(TEXT, b'{"prompt": "a\\ud800b", "max_tokens": 1, "echo": true}')
    assert told.status == 200 and told.json["choices"][0]["text"].startswith("a\ud800b")
    assert (
        server.ask(CHAT, b'{"messages": [{"role": "user", "content": "\\udcff"}], "max_tokens": 1}').status
        < 500
    )


async def asked(application: Any, path: str, body: bytes) -> int:
    """The status of one request to an application, without a network."""
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http", "root_path": ""}
    messages, statuses = [{"type": "http.request", "body": body, "more_body": False}], list[int]()
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await application(scope, receive, send)
    return statuses[0]


def mutated(body: dict[str, Any], dice: random.Random) -> bytes:
    """A request with something wrong in it, mostly."""
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1e308,
        1 << 64,
        10**30,
        10**400,
        "",
        "a",
        "\ud800",
        [],
        [[]],
        {},
        {"a": 1},
        [None],
        ["", 1],
    ]
    body = dict(body)
    fields = [*body, "stop", "n", "seed", "logprobs", "stream", "top_k", "role", "temperature", "regex"]
    fields.append("frequency_penalty")
    for _ in range(dice.randint(1, 3)):
        body[dice.choice(fields)] = dice.choice(odd)
    data = bytearray(json.dumps(body).encode())
    if dice.random() < 0.4:
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data[: dice.randrange(len(data))] if dice.random() < 0.2 else data)


@pytest.mark.parametrize("n", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_bodies_give_no_500(engine: Engine, template: Path, n: int) -> None:
    dice, application = random.Random(n), app(engine, ServeOptions(chat_template=template, max_waiting=0))
    bodies = [(TEXT, text()), (EMBED, {"input": "Emma"}), ("/tokenize", {"content": "a"})]
    bodies += [("/detokenize", {"tokens": [1]}), (CHAT, {"messages": [{"role": "x", "content": "Hm?"}]})]

    async def all_of_them() -> set[int]:
        chosen = [dice.choice(bodies) for _ in range(n)]
        return {await asked(application, path, mutated(body, dice)) for path, body in chosen}

    try:
        assert asyncio.run(all_of_them()) == {200, 400}
    finally:
        application.close()
