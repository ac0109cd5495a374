"""Tools of a chat: what a request offers, and the calls that a model writes, as Hermes and Qwen do.

    <tool_call>
    {"name": "weather", "arguments": {"town": "Bath"}}
    </tool_call>

How tools are described to the model is its template's; of those that know tools only such as write these marks are
served.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from hotcold.engine.chat.thoughts import Unsure
from hotcold.engine.generation.constraint import SPACING, of_grammar
from hotcold.engine.serve.fields import RequestFields, wrong
from hotcold.errors import SettingError

OPENING, CLOSING = "<tool_call>", "</tool_call>"
MAX_TOOLS = 128
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
EXAMPLE = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'


def knows_tools(template: str) -> bool:
    """Whether a template describes tools, to a model that calls them between our marks."""
    return "tools" in template and OPENING in template


def parse_tools(fields: RequestFields) -> list[dict[str, Any]]:
    """The tools that a request offers; none where it does not want any called.

    Raises:
        SettingError: no list of functions with names.
    """
    given = fields.get("tools")
    if given is None or given == []:
        return []
    if not isinstance(given, list):
        raise fields.wrong("tools", "a list of functions", EXAMPLE)
    if len(given) > MAX_TOOLS:
        raise SettingError("tools", len(given), f"at most {MAX_TOOLS}", "leave some out")
    for i, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong(f"tools[{i}]", tool, "a function with a name", EXAMPLE)
    return [] if fields.get("tool_choice") == "none" else given


def wants_several(fields: RequestFields) -> bool:
    """Whether an answer may call more than one tool.

    Raises:
        SettingError: neither true nor false.
    """
    return fields.flag("parallel_tool_calls", True)


def calls_grammar(fields: RequestFields, tools: Sequence[dict[str, Any]]) -> str:
    """What an answer has to follow by the request's choice: calls of any tool, or one of a named one; "" for any text.

    Raises:
        SettingError: a choice that is none, or of a tool that is not offered; parameters that are no schema.
    """
    several, choice = wants_several(fields), fields.get("tool_choice")
    if choice in (None, "none", "auto"):
        return ""
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    if choice != "required":
        function = (
            choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        )
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            known = "known: auto, none, required, a function by its name"
            raise fields.wrong("tool_choice", known, '{"type": "function", "function": {"name": "f"}}')
        functions, several = {name: functions[name]} if name in functions else {}, False
    if not functions:
        raise fields.wrong("tool_choice", "not among tools" if tools else "no tools are offered", '"auto"')
    first = 'start: call ("\\n" call)*' if several else "start: call"
    lines = [first, "call: " + " | ".join(f"call{i}" for i in range(len(functions)))]
    for i, function in enumerate(functions.values()):
        parameters = function.get("parameters")
        if not isinstance(parameters, dict | None):
            raise wrong(
                f"parameters of {function['name'][:40]}", parameters, "a JSON schema", '{"type": "object"}'
            )
        name = json.dumps(function["name"], ensure_ascii=False)
        before, behind = f'{OPENING}\n{{"name": {name}, "arguments": ', f"}}\n{CLOSING}"
        lines.append(f"call{i}: {_quoted(before)} arguments{i} {_quoted(behind)}")
        schema = NO_PARAMETERS if parameters is None else parameters
        lines.append(f"arguments{i}: %json {json.dumps(schema | {'x-guidance': SPACING})}")
    return of_grammar("\n".join(lines), "tools")


def _quoted(text: str) -> str:
    """As a string of a grammar in Lark."""
    return json.dumps(text, ensure_ascii=False)


def parse_calls(given: Any, name: str) -> list[dict[str, Any]]:
    """The calls of an assistant's turn, as templates expect them: arguments as an object where they are one.

    Raises:
        SettingError: no list of calls.
    """
    example = '[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]'
    if not isinstance(given, list):
        raise wrong(name, given, "a list of calls", example)
    calls = []
    for i, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong(f"{name}[{i}]", call, "a call of a function by its name", example)
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as error:
                raise wrong(f"{name}[{i}].function.arguments", arguments, "JSON", '"{}"') from error
        of_call = {"name": function["name"], "arguments": arguments}
        calls.append({"id": str(call.get("id", "")), "type": "function", "function": of_call})
    return calls


class Calls:
    """Text in pieces goes in; text and whole calls come out. What is no call between the marks stays text.

    Attributes:
        is_over: whether the one call that is wanted has come: nothing comes any more.
    """

    def __init__(self, several: bool = True) -> None:
        """Look for calls, or for one alone."""
        self._held, self._n, self._several = Unsure((OPENING, CLOSING)), 0, several
        self.is_over = False
        self._inside: str | None = None  # what has been read of a call; None outside

    def feed(self, text: str) -> Iterator[str | dict[str, Any]]:
        """What is certain now."""
        for part in self._held.feed(text):
            yield from self._take(part)

    def end(self) -> Iterator[str | dict[str, Any]]:
        """What was held back: a call that nothing closes is one too, if it is whole."""
        for part in self._held.end():
            yield from self._take(part)
        if self._inside is not None:
            yield from self._take(CLOSING, "")

    def _take(self, part: str, closing: str = CLOSING) -> Iterator[str | dict[str, Any]]:
        if self.is_over:
            return
        if part == OPENING and self._inside is None:
            self._inside = ""
        elif part == CLOSING and self._inside is not None:
            inside, self._inside = self._inside, None
            yield self._call(inside) or OPENING + inside + closing
        elif self._inside is not None:
            self._inside += part
        elif not self._n or part.strip():  # blank lines between calls are no text
            yield part

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            found = json.loads(text)
            name, arguments = found["name"], found.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not isinstance(name, str):
            return None
        function = {"name": name, "arguments": json.dumps(arguments)}
        self._n += 1
        index, self.is_over = self._n - 1, not self._several
        return {
            "index": index,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": function,
        }
