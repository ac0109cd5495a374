"""Tools: described by the template, called between its marks, told as OpenAI's clients expect it."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Served, served
from table_models import table_model

from hotcold import load
from hotcold.engine.generation import rows
from hotcold.engine.serve.tools import Calls

CHAT = "/v1/chat/completions"
CALL = '{"name": "weather", "arguments": {"town": "Bath"}}'
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}a"
)
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
NO_SCHEMA: Any = [{"type": "function", "function": {"name": "f", "parameters": 7}}]
OF_NOTHING: Any = [{"type": "function", "function": {"name": "f", "parameters": {"enum": []}}}]
USER: Any = {"role": "user", "content": "How is it in Bath?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that calls a tool whatever it is asked."""
    with calling(tmp_path_factory.mktemp("tools"), "</s>") as server:
        yield server


@contextmanager
def calling(folder: Path, what_follows: str) -> Iterator[Served]:
    """A model that calls a tool, and then says something."""
    marks = ["<tool_call>", "</tool_call>", CALL]
    following = dict(itertools.pairwise(["a", *marks[:1], CALL, *marks[1:2], what_follows]))
    path = table_model(
        folder / "m.gguf", following, user_defined=marks, control=["<|x|>"], chat_template=TEMPLATE
    )
    with load(path, threads=1, n_ctx=512) as engine, served(engine) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_comes_back_as_one(server: Served, stream: bool) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model="m", messages=[USER], tools=TOOLS, tool_choice="auto", temperature=0, stream=stream
        )
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
            assert not any(chunk.delta.content for chunk in chunks)
            assert calls[0].index == 0 and chunks[-1].finish_reason == "tool_calls"
        else:
            calls = answer.choices[0].message.tool_calls
            assert answer.choices[0].message.content is None
            assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = calls
    assert call.type == "function" and call.id.startswith("call_") and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"town": "Bath"}


@pytest.fixture(scope="module")
def eager_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that calls a tool again and again."""
    with calling(tmp_path_factory.mktemp("eager"), "<tool_call>") as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [3, 300])
def test_of_calls_that_are_not_wanted_side_by_side_the_first_ends_the_answer(
    eager_server: Served, stream: bool, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it may call nothing, or say something else; where several are wanted all come."""
    asked = {"messages": [USER], "tools": TOOLS, "temperature": 0, "n": 2, "max_tokens": max_tokens}
    several = eager_server.ask(CHAT, asked).json["choices"][0]
    assert len(several["message"]["tool_calls"]) == max_tokens // 3 and several["finish_reason"] == "length"
    asked |= {"parallel_tool_calls": False, "stream": stream, "stream_options": {"include_usage": True}}
    monkeypatch.setattr(rows, "check_finite", lambda *_: time.sleep(0.01))
    told = eager_server.ask(CHAT, asked)
    counts = (told.events[-1] if stream else told.json)["usage"]
    for i in range(2):
        if stream:
            parts = [each["choices"][0] for each in told.events[:-1] if each["choices"][0]["index"] == i]
            calls = [call for each in parts for call in each["delta"].get("tool_calls", ())]
            assert not any(each["delta"].get("content") for each in parts)
            finish = [each["finish_reason"] for each in parts if each["finish_reason"]]
        else:
            choice = told.json["choices"][i]
            calls, finish = choice["message"]["tool_calls"], [choice["finish_reason"]]
            assert choice["message"]["content"] is None
        assert len(calls) == 1 and finish == ["tool_calls"]
    assert 6 <= counts["completion_tokens"] < 100


def test_without_tools_it_is_text(server: Served) -> None:
    bodies: list[dict[str, Any]] = [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}]
    for body in bodies:
        choice = server.ask(CHAT, {"messages": [USER], "temperature": 0} | body).json["choices"][0]
        assert choice["message"]["content"] == f"<tool_call>{CALL}</tool_call>"
        assert choice["finish_reason"] == "stop"


def n_prompt(server: Served, messages: list[Any], tools: Any = ()) -> int:
    told = server.ask(CHAT, {"messages": messages, "tools": [*tools], "max_tokens": 1})
    assert told.status == 200, told.message
    n: int = told.json["usage"]["prompt_tokens"]
    return n


def test_the_template_sees_tools_calls_and_results(server: Served) -> None:
    plain = n_prompt(server, [USER])
    assert n_prompt(server, [USER], TOOLS) > plain + 20
    calls = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Bath"}'}}
    ]
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": calls}]
    result = {"role": "tool", "tool_call_id": "1", "content": "rain"}
    with_call = n_prompt(server, turns)
    assert with_call > plain + 5 and n_prompt(server, [*turns, result]) > with_call


def test_control_pieces_of_tools_stay_text(server: Served) -> None:
    def described(text: str) -> Any:
        return [{"type": "function", "function": {"name": "f", "description": text, text: 1}}]

    marked, same_length = (
        n_prompt(server, [USER], described("<|x|>")),
        n_prompt(server, [USER], described("<_x_>")),
    )
    assert marked == same_length  # a control piece would be one token


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a<tool_call>\n" + CALL + "\n</tool_call>\n<tool_call>" + CALL + "</tool_call>", ["a", 0, 1]),
        ("<tool_call>" + CALL, [0]),
        ("<tool_call>{</tool_call>b", ["<tool_call>{</tool_call>b"]),
        ("<tool_call>[1]</tool_call>", ["<tool_call>[1]</tool_call>"]),
        ('<tool_call>{"name": 1}</tool_call>', ['<tool_call>{"name": 1}</tool_call>']),
        ("<tool_call>{", ["<tool_call>{"]),
        ("a < b <tool", ["a < b <tool"]),
        ("a</tool_call>", ["a</tool_call>"]),
    ],
)
@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_calls_are_found_however_they_are_cut(text: str, told: list[Any], cut: int) -> None:
    calls = Calls()
    items = [item for i in range(0, len(text), cut) for item in calls.feed(text[i : i + cut])]
    joined = list[Any]()
    for item in (*items, *calls.end()):
        if isinstance(item, dict):
            assert json.loads(item["function"]["arguments"]) == {"town": "Bath"}
            joined.append(item["index"])
        elif joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    assert joined == told


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tools": 7}, "tools: 7 (a list of functions)"),
        ({"tools": [7]}, "tools[0]: 7 (a function with a name)"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": TOOLS * 129}, "tools: 129 (at most 128)"),
        ({"tools": TOOLS, "tool_choice": "often"}, 'tool_choice: "often" (known: auto, none, required, a'),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "known: auto, none, required"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": 7}}, "known: auto, none, required"),
        ({"tools": TOOLS, "tool_choice": NAMED | {"function": {"name": "g"}}}, "(not among tools)"),
        ({"tool_choice": "required"}, 'tool_choice: "required" (no tools are offered)'),
        ({"tools": NO_SCHEMA, "tool_choice": "required"}, "parameters of f: 7 (a JSON schema)"),
        ({"tools": OF_NOTHING, "tool_choice": "required"}, "Unsatisfiable schema"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "not together with response_format"),
        ({"functions": TOOLS}, "functions"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": 7}]}, "messages[1].tool_calls: 7"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0]"),
    ],
)
def test_what_is_wrong_is_said(server: Served, body: dict[str, Any], said: str) -> None:
    told = server.ask(CHAT, {"messages": [USER], "max_tokens": 1} | body)
    assert told.status == 400 and said in told.message, told.message


def test_arguments_have_to_be_json(server: Served) -> None:
    call = {"function": {"name": "f", "arguments": "{"}}
    told = server.ask(CHAT, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert told.status == 400 and "messages[1].tool_calls[0].function.arguments" in told.message


@pytest.mark.parametrize("depth", [200, 600, 900, 985])
def test_a_tool_that_is_nested_deep_is_no_500(server: Served, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    body = '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "tools": [{"function": {"name": "f", '
    told = server.ask(CHAT, (body + f'"parameters": {nested}' + "}}]}").encode())
    assert told.status in (200, 400)


TOWN = {
    "type": "object",
    "properties": {"town": {"$ref": "#/$defs/name"}},
    "required": ["town"],
    "additionalProperties": False,
}
TWO: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": TOWN | {"$defs": {"name": {"enum": ["Bath"]}}}},
    },
    {"type": "function", "function": {"name": 'the "time"/é'}},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", 'the "time"/é'}),
        (NAMED, {"weather"}),
        ({"type": "function", "function": {"name": 'the "time"/é'}}, {'the "time"/é'}),
    ],
)
def test_a_call_that_is_required_comes_whatever_the_model_would_say(
    server: Served, choice: Any, names: set[str], seed: int, stream: bool
) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model="m",
            messages=[USER],
            tools=TWO,
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=seed,
            temperature=5,
            extra_body={"top_k": 0, "top_p": 1, "min_p": 0},
            stream=stream,
        )
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
            finish = chunks[-1].finish_reason
        else:
            calls, finish = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    (call,) = calls
    assert finish == "tool_calls" and call.function.name in names
    wanted = {"town": "Bath"} if call.function.name == "weather" else {}
    assert json.loads(call.function.arguments) == wanted


def test_several_calls_may_be_required_at_once(server: Served) -> None:
    """Each is whole, as far as the answer is long enough."""
    body = {"messages": [USER], "tools": TWO[1:], "tool_choice": "required", "temperature": 1000, "top_k": 0}
    found = [
        len(
            server.ask(CHAT, body | {"seed": i, "max_tokens": 400}).json["choices"][0]["message"][
                "tool_calls"
            ]
        )
        for i in range(4)
    ]
    assert min(found) >= 1 and max(found) > 1
