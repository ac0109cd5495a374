"""Renders a chat template, in a process of its own: a program of its own, that imports nothing of ours.

A template is a program that came with a file. Jinja's sandbox keeps it from Python's inside, but bounds
neither its time nor its memory; a process can be bounded in both.

Reads one JSON object from standard input: template (text), conversations (lists of messages), variables,
seconds. Writes one: texts, or error (the reason in words).
"""

import contextlib
import datetime
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jinja2 import Environment, FunctionLoader, TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY = 512 << 20  # bytes of address space
MAX_TEXT = 1 << 24  # characters


class Raised(Exception):
    """The template called raise_exception."""


class TooLong(Exception):
    """The template writes more than MAX_TEXT."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Says what a template must not reach, where Jinja would hand it something undefined."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse the access."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__}")


class GenerationBlock(Extension):
    """`{% generation %}` marks an answer for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 does not declare it as the class's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as templates of models expect it: without the escapes that HTML needs."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse a conversation."""
    raise Raised(message)


def strftime_now(form: str) -> str:
    """The date and time of this moment."""
    return datetime.datetime.now().strftime(form)


def refuse_file(name: str) -> NoReturn:
    """A template stands alone."""
    raise SecurityError(f"file {name!r}")


def environment() -> Environment:
    """What templates of models expect: blocks leave no line behind, and these functions are there."""
    sandbox = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, GenerationBlock],
        loader=FunctionLoader(refuse_file),
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return sandbox


def render(template: str, conversations: list[list[dict[str, str]]], variables: dict[str, Any]) -> list[str]:
    """A text a conversation."""
    compiled = environment().from_string(template)
    texts = []
    for messages in conversations:
        pieces, n = [], 0
        for piece in compiled.generate(messages=messages, **variables):
            pieces.append(piece)
            n += len(piece)
            if n > MAX_TEXT:
                raise TooLong
        texts.append("".join(pieces))
    return texts


def reason(error: BaseException) -> str:
    """In words, what was wrong."""
    if isinstance(error, Raised):
        return f"it refuses this conversation: {error}"
    if isinstance(error, TooLong):
        return f"it writes more than {MAX_TEXT} characters"
    if isinstance(error, SecurityError):
        return f"it reaches outside its sandbox: {error}"
    if isinstance(error, MemoryError):
        return f"it takes more than {MAX_MEMORY >> 20} MiB"
    if isinstance(error, RecursionError):
        return "it calls itself without an end"
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def limit(seconds: float) -> None:
    """Bound memory and time, where the system can; the parent bounds the time as well."""
    try:
        import resource
    except ImportError:
        return
    wanted = {resource.RLIMIT_AS: MAX_MEMORY, resource.RLIMIT_CPU: int(seconds) + 2, resource.RLIMIT_CORE: 0}
    for what, most in wanted.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (most, most))


def answer(run: Callable[[], list[str]]) -> dict[str, Any]:
    """What is written: texts or an error."""
    try:
        return {"texts": run()}
    except Exception as error:  # noqa: BLE001 - whatever a template does, its reason is said
        return {"error": reason(error)[:1000]}


def main() -> None:
    """Read, render, write."""
    request = json.load(sys.stdin)
    limit(request["seconds"])
    written = answer(lambda: render(request["template"], request["conversations"], request["variables"]))
    json.dump(written, sys.stdout)


if __name__ == "__main__":
    main()
